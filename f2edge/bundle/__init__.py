"""Model bundles: the folder that export writes and every backend reads."""

from f2edge.bundle.bundle import Bundle, list_bundles

__all__ = ["Bundle", "list_bundles"]
