"""What this container may use: CPUs, GPUs and memory."""
