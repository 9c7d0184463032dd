"""PyTorch modules of the model."""
