"""Entry point of ``python -m f2edge``."""

from __future__ import annotations

from f2edge.cli.main import main

if __name__ == "__main__":
    main()
