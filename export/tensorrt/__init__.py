"""Graphs of the "tensorrt" flavour."""
