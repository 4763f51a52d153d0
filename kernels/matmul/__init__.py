"""A linear layer. Enters x [M, K], weight [N, K], bias [N] or None; leaves y [M, N].

The naive one-liner is `x @ weight.T + bias`: the weight lies as a checkpoint holds it, a row an
output. Every output has one order of summation over K, whatever M is: a row gives the same bits
alone and among a thousand.
"""

from .reference import matmul as reference

__all__ = ["reference"]
