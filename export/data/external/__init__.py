"""Data sets in the layouts that people have."""
