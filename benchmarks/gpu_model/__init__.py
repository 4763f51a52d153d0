"""How fast the GPU backend should be, from what its kernels move and compute.

machines.py holds what is taken for granted; kernels.py counts a layer's kernels, head.py those that
choose and score; step.py adds them up to a step; tables.py and head_tables.py show. `python -m
benchmarks.gpu_model` prints the tables of docs/gpu.md, or puts them there.
"""
