"""Backends: one call signature, several runtimes."""
