"""The workstation side: train, trace, lower, quantise, verify, write a bundle."""
