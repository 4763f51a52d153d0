"""Scores from materialised logits: enters logits [M, V], leaves numbers a row, in their dtype."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Scores(NamedTuple):
    """Of M rows. Log-probabilities and entropy in nats."""

    rank: NDArray[np.int32]  # [M] 1 + how many other tokens have a larger logit
    ties: NDArray[np.int32]  # [M] how many other tokens have an equal one
    logprob: NDArray[Any]  # [M]
    entropy: NDArray[Any]  # [M]
    top_ids: NDArray[np.int32]  # [M, k] by falling logit, then rising id
    top_logprobs: NDArray[Any]  # [M, k]


def log_softmax(z: NDArray[Any]) -> NDArray[Any]:
    """[M, V] -> [M, V]. ValueError names the first row whose largest logit is not finite."""
    largest = z.max(axis=-1, keepdims=True)  # [M, 1], NaN where any is
    if not np.isfinite(largest).all():
        raise ValueError(f"row {int(np.argmin(np.isfinite(largest)))} has no finite largest logit")
    shifted = z - largest
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def expectation(logp: NDArray[Any], value: NDArray[Any]) -> NDArray[Any]:
    """Sum of p * value, [M, V] twice -> [M]. Where p is 0 the term is 0, whatever the value."""
    p = np.exp(logp)
    return np.asarray(np.multiply(p, value, where=p > 0, out=np.zeros_like(p)).sum(axis=-1))


def rank(z: NDArray[Any], targets: NDArray[Any], top_k: int = 0) -> Scores:
    """z [M, V], targets [M], 0 <= top_k <= V -> Scores."""
    logp = log_softmax(z)  # [M, V]
    z_target = np.take_along_axis(z, targets[:, None], axis=-1)  # [M, 1]
    top_ids = np.argsort(-z, axis=-1, kind="stable")[:, :top_k]  # stable: equals stay by id
    return Scores(
        rank=(1 + (z > z_target).sum(axis=-1)).astype(np.int32),
        ties=((z == z_target).sum(axis=-1) - 1).astype(np.int32),  # the target equals itself
        logprob=np.take_along_axis(logp, targets[:, None], axis=-1)[:, 0],
        entropy=-expectation(logp, logp),
        top_ids=top_ids.astype(np.int32),
        top_logprobs=np.take_along_axis(logp, top_ids, axis=-1),
    )


def compare(base: NDArray[Any], aligned: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Logits [M, V] of two heads -> KL(aligned || base), KL(base || aligned), [M] each."""
    b, a = log_softmax(base), log_softmax(aligned)  # [M, V]
    with np.errstate(invalid="ignore"):  # -inf - -inf, where both exclude a token: never taken
        return expectation(a, a - b), expectation(b, b - a)
