"""Generated stubs of ``proto/f2edge/v1/face.proto``; ``proto/generate.sh`` writes them."""
