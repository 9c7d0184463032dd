"""Image loading behind a guard, pixel conversion, and regions of a face."""

from f2edge.imaging.images import load_image

__all__ = ["load_image"]
