"""TensorRT engines: plans of a bundle for one device, plug-in kernels, device profiles.  Imports f2edge, never PyTorch."""
