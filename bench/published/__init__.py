"""The import held against the published code itself: ``python -m bench showo --source CHECKOUT``."""
