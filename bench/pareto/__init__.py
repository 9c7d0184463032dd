"""Quality against time of every way to draw."""
