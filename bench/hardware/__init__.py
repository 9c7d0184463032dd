"""Ceilings, kernels, power and rooflines."""
