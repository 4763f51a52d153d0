"""Everything that the CUDA backend must show on a GPU, in one command: `make gpu-check`."""
