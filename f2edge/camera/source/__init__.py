"""Sources of frames: cameras, files, streams and the demo."""
