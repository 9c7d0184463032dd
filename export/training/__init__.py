"""Training loop and training tasks."""
