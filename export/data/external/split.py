"""A split of pictures into training and validation that has no picture on both sides, not even as a copy in another size or quality.

Pictures whose perceptual hashes (imagehash's pHash, 256 bits) differ in few bits are one group, and a group is never divided.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Hashes = NDArray[np.uint8]
HASH_BYTES = 32
#: Copies in other sizes and JPEG qualities differ by less; other pictures by about 128.
NEAR_BITS = 12
_MIXED = np.random.default_rng(0).permutation(256)  # low frequencies alone are alike in all faces
_SET_BITS = np.array([value.bit_count() for value in range(256)], np.uint8)
_BANDS = 16  # of 16 bits: two hashes that differ in fewer bits than there are bands agree in one of them


def picture_hash(image: Image.Image) -> Hashes:
    """Return the perceptual hash (32,) uint8 of a picture."""
    import imagehash

    bits = imagehash.phash(image, hash_size=16).hash.reshape(-1)
    return np.packbits(bits)


def groups_of(hashes: Hashes) -> NDArray[np.int64]:
    """Return the group (n,) of each hash (n, 32): the first row of those that are near each other, directly or through others."""
    unique, first, inverse = np.unique(hashes, axis=0, return_index=True, return_inverse=True)
    parent = np.arange(len(unique))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i

    mixed = np.packbits(np.unpackbits(unique, axis=1)[:, _MIXED], axis=1)
    bands = np.ascontiguousarray(mixed).view(np.uint16).reshape(len(unique), _BANDS)
    for band in range(_BANDS):
        order = np.argsort(bands[:, band], kind="stable")
        for a, b in _near_pairs(unique, order, bands[order, band]):
            one, two = root(int(a)), root(int(b))
            parent[max(one, two)] = min(one, two)
    roots = np.array([root(i) for i in range(len(unique))], np.int64)
    least = np.full(len(unique), len(hashes), np.int64)
    np.minimum.at(least, roots, first)
    return np.asarray(least[roots][inverse.reshape(-1)])


def _near_pairs(unique: Hashes, order: NDArray[np.int64], keys: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Return pairs (k, 2) of near hashes among those with equal keys, comparing neighbours at every distance in the sorted order."""
    found = []
    for step in range(1, len(order)):
        same = np.flatnonzero(keys[step:] == keys[:-step])
        if not len(same):
            break
        a, b = order[same], order[same + step]
        bits = _SET_BITS[unique[a] ^ unique[b]].sum(axis=1)
        near = bits <= NEAR_BITS
        found.append(np.stack((a[near], b[near]), axis=1))
    return np.concatenate(found) if found else np.zeros((0, 2), np.int64)


def validation_rows(hashes: Hashes, wanted: int) -> NDArray[np.bool_]:
    """Return which rows (n,) are held out: whole groups, in a random order that follows from their hashes, about ``wanted`` rows.

    A group of more than a third of ``wanted`` stays in training, so that one picture repeated often is not the whole validation.
    """
    groups = groups_of(hashes)
    names, sizes = np.unique(groups, return_counts=True)
    names, sizes = names[sizes * 3 <= max(wanted, 3)], sizes[sizes * 3 <= max(wanted, 3)]
    lots = [hashlib.sha256(hashes[name].tobytes()).digest() for name in names]
    order = sorted(range(len(names)), key=lots.__getitem__)
    total = np.cumsum(sizes[order]) if order else np.zeros(0, np.int64)
    chosen = names[order][: int(np.searchsorted(total, wanted, side="left")) + 1] if wanted else names[:0]
    return np.isin(groups, chosen)
