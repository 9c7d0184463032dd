"""Weight files of other projects, and random ones in their place."""
