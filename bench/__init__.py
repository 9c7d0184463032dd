"""Benchmarks: quality, latency, load, hardware, camera."""
