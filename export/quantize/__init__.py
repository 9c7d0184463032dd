"""Quantization recipes and their application to graphs."""
