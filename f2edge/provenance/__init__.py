"""Marks of origin: XMP label, watermark and C2PA content credentials, written and read."""
