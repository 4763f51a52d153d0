"""The Triton kernels that work on one row: norm, gated activation, rotation with the write to the
cache. Interpreted, against the references."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from urial_engine.kernels import rmsnorm, rope, silu_mul
from urial_engine.kernels.rmsnorm.triton_kernel import add_rmsnorm
from urial_engine.kernels.rope.triton_kernel import rope as turn
from urial_engine.kernels.silu_mul.triton_kernel import silu_mul as gate

from .rungs import assert_no_worse
from .triton_cases import DEVICE, Case, naive, put, random_cases, rounding, single, wide

NEVER = 99  # in place of a layer, where a row is finite
TINY = 2.0**-24  # the smallest fp16


def never(rows: int) -> torch.Tensor:
    return put(np.full(rows, NEVER, np.int32))


def norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, list[int]]:
    bad = never(len(x))
    return add_rmsnorm(x, delta, weight, 1e-5, bad, 3, dtype), bad.tolist()


@random_cases
def test_norm_after_addition(part: range) -> None:
    for case in map(Case, part):
        rows, size = case.size(most=4), case.size(16, 32, 64, 512, most=600)
        scale = float(10.0 ** case.rng.integers(-3, 4))
        x = put(case.rng.normal(size=(rows, size), scale=scale)).float()
        delta, weight = case.normal(rows, size, scale=scale), case.normal(size)
        total = x + delta.float()
        out, bad = norm(x, delta, weight, case.dtype)
        assert torch.equal(x, total), "the residual stream is changed in place"
        assert bad == [NEVER] * rows
        truth = rmsnorm.reference(wide(total), wide(weight), 1e-5)
        plain = naive(rmsnorm.reference, case.dtype, single(total), single(weight), 1e-5)
        bound = {"scale": np.abs(truth) + TINY, "epsilon": rounding(case.dtype)}
        assert_no_worse(single(out), plain, truth, **bound)


def test_norm_without_addition_leaves_the_stream_alone() -> None:
    x = put(np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32))
    before, weight = x.clone(), torch.ones(40, device=DEVICE)
    out, _ = norm(x, None, weight, torch.float32)
    assert torch.equal(x, before)
    expected = rmsnorm.reference(single(x), single(weight), 1e-5)
    np.testing.assert_allclose(single(out), expected, rtol=1e-6)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_norm_names_the_first_layer_that_is_not_finite(value: float) -> None:
    """1e30 is finite, and its square is not."""
    x, weight = torch.ones(3, 40, device=DEVICE), torch.ones(40, device=DEVICE)
    x[1, 7] = value
    bad = put(np.array([NEVER, NEVER, 1], np.int32))
    add_rmsnorm(x, None, weight, 1e-5, bad, 3, torch.float32)
    assert bad.tolist() == [NEVER, 3, 1]
    x[2, 0] = value
    add_rmsnorm(x, None, weight, 1e-5, bad, 4, torch.float32)
    assert bad.tolist() == [NEVER, 3, 1], "an earlier layer stands"


@pytest.mark.filterwarnings("ignore:overflow")
@random_cases
def test_gated_activation(part: range) -> None:
    for case in map(Case, part):
        rows, size = case.size(most=3), case.size(16, 1024, 2048, most=1200)
        x = case.normal(rows, 2 * size, scale=float(case.rng.choice([0.1, 3, 40])))
        x = x.clamp(-200, 200)  # so that a product of two stays in fp16
        gates, up = x[:, :size], x[:, size:]
        truth = silu_mul.reference(wide(gates), wide(up))
        plain = naive(silu_mul.reference, case.dtype, single(gates), single(up))
        # Far below zero the exponential alone decides, and its argument was rounded.
        scale = np.abs(truth) * (1 + np.abs(wide(gates))) + TINY
        epsilon = rounding(case.dtype)
        assert_no_worse(single(gate(x)), plain, truth, scale, epsilon=epsilon)


@random_cases
def test_rotation_and_what_it_writes(part: range) -> None:
    for case in map(Case, part):
        kv_heads, group, rows = case.size(most=3), case.size(most=5), case.size(most=4)
        half = case.constant(8, 16, 32, most=40, few=(1, 8, 17, 32, 40))
        heads = kv_heads * group
        qkv = case.normal(rows, (heads + 2 * kv_heads) * 2 * half)
        positions = put(case.rng.integers(0, 50, size=rows)).int()
        angle = case.rng.uniform(-7, 7, size=(50, half)).astype(np.float32)
        tables = put(np.cos(angle)), put(np.sin(angle))
        slots = put(case.rng.permutation(5 * 64)[:rows]).int()
        pool = torch.full((5, 2, 2, kv_heads, 64, 2 * half), 7.0, dtype=case.dtype, device=DEVICE)
        bad = never(rows)
        q = turn(qkv, tables, positions, slots, pool[:, 1], bad, 0)
        assert bad.tolist() == [NEVER] * rows
        assert (pool[:, 0] == 7).all(), "another layer is left alone"

        split = qkv.view(rows, -1, 2 * half).split([heads, kv_heads, kv_heads], dim=1)
        c, s = (single(table)[positions.cpu().numpy()] for table in tables)
        places = [(int(slot) // 64, int(slot) % 64) for slot in slots]
        for given, found in (
            (split[0], q),
            (split[1], torch.stack([pool[block, 1, 0, :, at] for block, at in places])),
        ):
            truth = rope.reference(wide(given), c.astype(np.float64), s.astype(np.float64))
            plain = naive(rope.reference, case.dtype, single(given), c, s)
            # What a pair can cancel is as large as the pair.
            size = np.hypot(*np.split(wide(given), 2, axis=-1))
            scale = np.concatenate([size, size], axis=-1) + TINY
            assert_no_worse(single(found), plain, truth, scale, epsilon=rounding(case.dtype))
        stored = torch.stack([pool[block, 1, 1, :, at] for block, at in places])
        assert torch.equal(stored, split[2]), "values are stored as they are"
        pool[[b for b, _ in places], 1, :, :, [at for _, at in places]] = 7
        assert (pool == 7).all(), "nothing else was written"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 60000.0])
@pytest.mark.parametrize("at", [0, 9, 14, 30, 39])
def test_what_is_not_finite_never_reaches_the_cache(value: float, at: int) -> None:
    """In a query, a key, a value, first and last; 60,000 turned by 45 degrees leaves fp16."""
    qkv = torch.ones(2, 5 * 8, dtype=torch.float16, device=DEVICE)
    qkv[1, at] = value
    if value == 60000.0:
        qkv[1] = value
    half = np.full((3, 4), 0.5**0.5, np.float32)
    pool = torch.zeros(1, 1, 2, 1, 64, 8, dtype=torch.float16, device=DEVICE)
    bad = never(2)
    rows = put(np.arange(2, dtype=np.int32))
    turn(qkv, (put(-half), put(half)), rows, rows, pool[:, 0], bad, 5)
    assert bad.tolist() == [NEVER, 5]
    assert torch.isfinite(pool).all()
    assert (pool[0, 0, :, 0, 0] != 0).any()
