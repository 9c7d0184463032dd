"""From PyTorch modules to lowered ONNX graphs."""
