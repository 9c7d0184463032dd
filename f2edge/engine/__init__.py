"""Step-level continuous batching: requests at different steps share one forward pass."""
