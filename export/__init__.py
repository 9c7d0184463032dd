"""The workstation side: train, trace, lower, quantize, verify, write a bundle."""
