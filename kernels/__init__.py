"""Operations of the forward pass and the head, one folder each; imported as `urial_engine.kernels`.

Each folder states its contract in its docstring and holds the operation's one reference, which
tests and benchmarks import. Everything here is a leaf: it knows arrays and nothing of the engine.
"""
