"""Where a face shows each attribute: the named regions to draw again for it.

A slot that is not listed, and one whose regions a bundle does not have or a picture does not show, is anywhere in the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_FEATURES = ("brows", "eyes", "nose", "mouth")
_HEAD = ("hair", "skin", "chin", "ears", *_FEATURES)
_SKIN = ("skin", "nose", "chin", "ears", "neck")

#: Slot of the f2edge schema → regions.
SLOT_REGIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "gender_presentation": _HEAD,
        "age": _HEAD,
        "skin_tone": (*_SKIN, *_FEATURES),
        "skin_texture": ("skin", "nose", "chin"),
        "cheeks": ("skin",),
        "cheekbones": ("skin",),
        "face_shape": ("skin", "chin", "ears", "hair"),
        "build": ("skin", "chin", "neck"),
        "chin": ("chin", "neck"),
        "hair_color": ("hair", "brows"),
        "hair_length": ("hair", "neck", "ears", "background"),
        "hair_texture": ("hair",),
        "hairline": ("hair", "brows"),
        "bangs": ("hair", "brows"),
        "eyebrow_shape": ("brows",),
        "eyebrow_thickness": ("brows",),
        "eye_color": ("eyes",),
        "eye_shape": ("eyes", "brows"),
        "eye_bags": ("eyes",),
        "makeup": ("eyes", "brows"),
        "nose_size": ("nose",),
        "nose_shape": ("nose",),
        "lips": ("mouth",),
        "lipstick": ("mouth",),
        "beard": ("chin", "mouth", "skin"),
        "mustache": ("mouth", "nose"),
        "sideburns": ("ears", "hair", "skin"),
        "eyewear": ("eyes", "brows", "nose"),
        "hat": ("hat", "hair", "background"),
        "earrings": ("ears", "neck"),
        "necklace": ("neck", "clothing"),
        "necktie": ("neck", "clothing"),
        "face_mask": ("mouth", "nose", "chin"),
        "clothing_color": ("clothing",),
        "emotion": ("brows", "eyes", "mouth"),
        "action": ("mouth", "eyes", "chin"),
        "background": ("background",),
    }
)
