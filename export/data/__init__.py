"""Training data: rendered or external faces, their texts, and cached tokens."""
