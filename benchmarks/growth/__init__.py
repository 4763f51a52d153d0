"""How time and memory grow, one parameter at a time, beside what the counted work says.

models.py makes a model; point.py measures one point, in a process of its own; work.py says what it
should cost; curves.py fits; page.py and plot.py show; memory.py measures the memory of each
workload. `python -m benchmarks.growth` does it all.
"""
