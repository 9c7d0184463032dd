"""What a machine could do at best, measured in the same run as everything that is compared with it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

#: Read by all threads together; far above any cache.
_READ_BYTES = 1 << 29


def read_rate(threads: int, repeats: int = 5) -> float:
    """Rate at which ``threads`` threads read memory that no cache holds, in GB/s; the best pass."""
    parts = np.array_split(np.ones(_READ_BYTES // 8, dtype=np.int64), threads)
    with ThreadPoolExecutor(threads) as pool:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            total = sum(int(part) for part in pool.map(np.max, parts))
            times.append(time.perf_counter() - start)
            assert total == threads
    return _READ_BYTES / min(times) / 1e9
