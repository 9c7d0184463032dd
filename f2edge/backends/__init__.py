"""Runtime backends with one call signature."""
