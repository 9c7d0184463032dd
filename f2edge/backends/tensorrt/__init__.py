"""TensorRT backend for NVIDIA GPUs."""
