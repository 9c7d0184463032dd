"""Energy of a piece of work: of a Jetson, of CPUs, of an NVIDIA GPU."""
