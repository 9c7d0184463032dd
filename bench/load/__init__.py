"""How a server behaves under load and under hostile input."""
