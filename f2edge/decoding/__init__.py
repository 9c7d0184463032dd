"""Decoding: schedules, noise, the parallel and the autoregressive loop; they take functions, not models."""
