"""The CPUs, GPUs and memory that a container may use."""
