"""The ``f2edge`` command line."""
