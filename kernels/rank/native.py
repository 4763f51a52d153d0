"""Scores on a rung of the native backend: the logits stay in its caches, a tile at a time.

Enters hidden states [M, C] and a head that holds the weight [V, C]; leaves `reference` of its
logits in fp32.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from urial_engine._native import Model, head

from .reference import Scores

__all__ = ["compare", "head", "score"]


def score(model: Model, hidden: NDArray[Any], targets: NDArray[Any], top_k: int = 0) -> Scores:
    """hidden [M, C], targets [M], 0 <= top_k <= V -> Scores. ValueError names the first row with a
    logit that is not finite, -inf included."""
    scores, bad = model.score(hidden, targets, top_k)
    _check(bad)
    return Scores(*scores)


def compare(
    base: Model,
    hidden: NDArray[Any],
    targets: NDArray[Any],
    aligned: Model,
    aligned_hidden: NDArray[Any],
    top_k: int = 0,
) -> tuple[Scores, Scores, NDArray[Any], NDArray[Any]]:
    """Both heads' scores, and KL(aligned || base) and KL(base || aligned) in nats, [M] each."""
    *found, bad = base.compare(hidden, targets, top_k, aligned, aligned_hidden)
    _check(bad)
    mine, theirs, kl_aligned_base, kl_base_aligned = found
    return Scores(*mine), Scores(*theirs), kl_aligned_base, kl_base_aligned


def _check(bad: int) -> None:
    if bad >= 0:
        raise ValueError(f"row {bad} has a logit that is not finite")
