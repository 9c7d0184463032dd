"""Readers of external data sets."""
