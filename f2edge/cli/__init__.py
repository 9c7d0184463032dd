"""The command line ``f2edge``."""
