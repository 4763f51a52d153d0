"""Choose one token from a row of logits. Enters z [V] in fp32 and how to choose; leaves an id.

The naive one-liner is `argmax(z)` at temperature 0, else `choice(V, p=softmax(z / temperature))`.
In full, in this order:

1. Every z of a banned id becomes -inf.
2. Of an id with penalties, z becomes z / penalty (where z > 0) or z * penalty if the repetition
   penalty applies to it, then z - (frequency * count + presence * (count > 0)). Each operation
   rounds to fp32: no fused multiply-add.
3. At temperature 0: the largest z, the smallest id among equals. Else z / temperature in fp32.
4. Tokens stand by falling z, then rising id; top_k keeps exactly the first k.
   p = exp(z - largest z) in fp64, not normalised: nothing below depends on its scale.
5. top_p keeps the shortest prefix whose running sum reaches top_p of the whole sum, then min_p
   keeps p >= min_p * largest p. The first token always stays. Sums run in order, one by one.
6. The first token whose running sum exceeds u times the sum of those left.

u = (x + 0.5) / 2^32, x the first word of Philox4x32-10 (Salmon et al., "Parallel random numbers:
as easy as 1, 2, 3", 2011) under the key (seed's low word, high word) and the counter (position,
sample, 0, 0). So a draw depends on seed, sample and position, never on the batch.
"""

from .reference import philox4x32, uniform
from .reference import sample as reference

__all__ = ["philox4x32", "reference", "uniform"]
