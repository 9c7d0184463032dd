"""The TensorRT flavour of a bundle's graphs."""
