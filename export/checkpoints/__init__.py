"""Checkpoints of other projects, and random weights in their layouts."""
