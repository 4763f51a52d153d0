"""The sampler on a rung of the native backend, behind a head: `head(weight, ...).next_tokens`.

Enters hidden states [M, C], the fields of `SampleBatch` by name, and how many of the likeliest
tokens to report; leaves ids [M], their log-probability and rank among the raw logits, the likeliest
ids and their log-probabilities, and the first row with nothing to choose from, or -1.
"""

from urial_engine._native import head, philox

__all__ = ["head", "philox"]
