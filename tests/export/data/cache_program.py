"""Program for tests: write a cache of nano's parts; arguments are the data, the folder and the number of processes."""

from __future__ import annotations

import sys
from pathlib import Path

from export.checkpoints.parts import PartNames
from export.data.cache_plan import CacheRequest
from export.data.caching import write_cache
from f2edge.spec.configuration import NANO

if __name__ == "__main__":
    data, out, processes = sys.argv[1:]
    parts = PartNames("nano", "nano")
    write_cache(CacheRequest(Path(data), Path(out), parts, NANO, shard_rows=5, batch=4, validation=3, bf16=False, processes=int(processes)))
