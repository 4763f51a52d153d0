"""What logits say of one token: rank, ties, log-probability, entropy, top-k; and two heads' KL.

Enters logits z [M, V] and targets y [M]; leaves arrays [M] and [M, k]. The naive one-liners, v != y
by index: `rank = 1 + sum(z_v > z_y)`, `ties = sum(z_v == z_y)`, `logprob = log_softmax(z)[y]`,
`entropy = -sum(p * log p)`, top-k by falling logit, then rising id; in `compare`
`KL(a || b) = sum(p_a * (log p_a - log p_b))`. All in nats.

A logit of -inf is a token of probability 0. A row whose largest logit is not finite (a NaN
anywhere, a +inf, nothing but -inf) has no softmax: ValueError names it, it never has a rank.
"""

from .reference import Scores, compare
from .reference import rank as reference

__all__ = ["Scores", "compare", "reference"]
