"""Marks of origin: label, watermark, content credentials, and how they are read again."""
