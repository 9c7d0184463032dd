"""Graphs on an NVIDIA GPU through TensorRT plans."""
