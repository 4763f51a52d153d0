"""A token shift against another program's full logits in fp64: transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fixtures import TinyModel
from tests.oracle import oracle_logits
from tests.test_token_shift import ALIGNED, BASE, check_measures, log_softmax
from urial_engine import Engine, TokenShift, token_shift

Case = tuple[TokenShift, np.ndarray, np.ndarray]


def shift_and_logits(length: int, tiny_model: TinyModel, **settings: Any) -> Case:
    """Of one answer: our shift of a random pair, and the oracle's logits [n, V] of both."""
    longest = {"max_position_embeddings": 2048}
    names: list[tuple[str, int]] = [("base", 3), ("tuned", 4)]
    folders: list[Path] = [tiny_model(folder=n, seed=seed, **longest) for n, seed in names]
    ids = np.random.default_rng(length).integers(3, 320, length).tolist()
    base, aligned = (Engine(f, kv_cache_gib=0.05, **settings) for f in folders)
    with base, aligned:
        prompts = {"base_prompt": BASE, "aligned_prompt": ALIGNED}
        shift = token_shift(base, aligned, ["why?"], answers=[ids], top_k=5, **prompts)
    (a,) = shift.answers
    contexts = a.base_context_ids[BASE], a.aligned_context_ids[ALIGNED]
    z, z_q = (
        oracle_logits(folder, context + ids[:-1], "float64")[len(context) - 1 :]
        for folder, context in zip(folders, contexts, strict=True)
    )
    return shift, z, z_q


@pytest.mark.parametrize("length", [1, 2, 63, 65, 500, 2000])
def test_in_fp64_every_measure_is_that_of_transformers(length: int, tiny_model: TinyModel) -> None:
    """The whole program in fp64: ranks are exact."""
    shift, z, z_q = shift_and_logits(length, tiny_model, device="reference")
    check_measures(shift, np.ones(length, bool), z, z_q)


@pytest.mark.parametrize("length", [1, 65, 2000])
def test_the_cpu_differs_by_no_more_than_fp32_does(length: int, tiny_model: TinyModel) -> None:
    """Native code in fp32: a rank may differ only by tokens whose logits are equal but for 1e-3."""
    shift, z, z_q = shift_and_logits(length, tiny_model, device="cpu", dtype="float32")
    own = z[np.arange(length), shift.token_id][:, None]
    least = 1 + (z > own + 1e-3).sum(1)
    most = (z > own - 1e-3).sum(1)  # the token itself is among these
    assert (least <= shift.base_rank).all() and (shift.base_rank <= most).all()
    assert (shift.base_rank == 1 + (z > own).sum(1)).mean() > 0.98
    b, q = log_softmax(z), log_softmax(z_q)
    for ours, truth in (
        (shift.kl_aligned_base, (np.exp(q) * (q - b)).sum(1)),
        (shift.kl_base_aligned, (np.exp(b) * (b - q)).sum(1)),
        (shift.base_logprob, b[np.arange(length), shift.token_id]),
    ):
        np.testing.assert_allclose(ours, truth, rtol=0, atol=5e-4)
