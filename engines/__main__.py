"""``python -m engines …``."""

from __future__ import annotations

from engines.cli import main

if __name__ == "__main__":
    main()
