"""Bench of the camera."""
