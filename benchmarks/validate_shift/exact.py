"""Measures of a pair against all of its logits: what the streamed heads say, and what fp64 does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from urial_engine import Engine, TokenShift

ANSWERS = 8  # that are looked at: a position's logits are held in fp64, twice


def differences(base: Engine, other: Engine, shift: TokenShift) -> dict[str, float]:
    """Of the first answers: ranks and ties that differ at all, and by how much divergences and
    log-probabilities do, in nats."""
    ranks, kl, logprobs = 0, 0.0, 0.0
    for number, a in enumerate(shift.answers[:ANSWERS]):
        rows = (shift.answer == number) & (shift.context == 0)
        y = shift.token_id[rows]
        z = _logits(base, next(iter(a.base_context_ids.values())), a.token_ids)
        q = _log_softmax(_logits(other, next(iter(a.aligned_context_ids.values())), a.token_ids))
        p, own = _log_softmax(z), z[np.arange(len(y)), y][:, None]
        ranks += int((shift.base_rank[rows] != 1 + (z > own).sum(1)).sum())
        ranks += int((shift.base_ties[rows] != (z == own).sum(1) - 1).sum())
        there, back = (np.exp(q) * (q - p)).sum(1), (np.exp(p) * (p - q)).sum(1)
        kl = max(kl, _gap(shift.kl_aligned_base[rows], there))
        kl = max(kl, _gap(shift.kl_base_aligned[rows], back))
        logprobs = max(logprobs, _gap(shift.base_logprob[rows], p[np.arange(len(y)), y]))
    return {"ranks": ranks, "kl": kl, "logprob": logprobs}


def _logits(engine: Engine, context: Sequence[int], ids: Sequence[int]) -> NDArray[np.float64]:
    """[n, V] of an answer's positions, materialised."""
    hidden = engine.hidden_states([[*context, *ids[:-1]]], [len(context) - 1])[0]
    return engine.backend.logits(hidden).astype(np.float64)


def _log_softmax(z: NDArray[np.float64]) -> NDArray[np.float64]:
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def _gap(a: NDArray[np.float32], b: NDArray[np.float64]) -> float:
    return float(np.abs(a - b).max(initial=0.0))
