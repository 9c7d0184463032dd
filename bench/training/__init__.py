"""Benches of training: what choices of losses and experts change."""
