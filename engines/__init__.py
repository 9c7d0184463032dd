"""The TensorRT side: from a bundle to plans for one device, plug-in kernels, device profiles.  Imports f2edge, never PyTorch."""
