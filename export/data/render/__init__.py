"""The parametric face renderer."""
