"""Training data: rendered or external faces, their words, and tokens."""
