"""``python -m export``: the workstation's command line."""

from export.cli import main

if __name__ == "__main__":
    main()
