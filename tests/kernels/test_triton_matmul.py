"""The matrix product of one fixed order, interpreted, against the reference."""

from __future__ import annotations

import numpy as np
import torch

from urial_engine.kernels.matmul import reference
from urial_engine.kernels.matmul.triton_kernel import matmul

from .rungs import assert_no_worse
from .triton_cases import DEVICE, DTYPES, Case, put, random_cases, rounding, single, wide


@random_cases
def test_every_shape(part: range) -> None:
    """With and without a bias, in the dtype of x and in fp32 with rows apart."""
    for case in map(Case, part):
        m, n, k = (case.size(64, 128, most=most) for most in (140, 140, 200))
        x, weight = case.normal(m, k), case.normal(n, k, scale=k**-0.5)
        bias = case.normal(n) if case.rng.random() < 0.5 else None
        memory = torch.full((m, n + 7), 9.0, device=DEVICE)
        y = matmul(x, weight, bias, out=memory[:, :n] if case.index % 4 > 1 else None)
        assert (memory[:, n:] == 9).all()

        offset = np.zeros(n) if bias is None else wide(bias)
        truth = reference(wide(x), wide(weight), offset)
        size = reference(np.abs(wide(x)), np.abs(wide(weight)), np.abs(offset)) + 1e-30
        plain = reference(single(x), single(weight), offset.astype(np.float32))
        plain = single(torch.from_numpy(plain).to(y.dtype))
        assert_no_worse(single(y), plain, truth, size, epsilon=rounding(y.dtype))


def test_a_row_has_the_same_bits_among_any_others() -> None:
    rng = np.random.default_rng(0)
    x, weight = (put(rng.normal(size=(rows, 150))).to(DTYPES[0]) for rows in (200, 130))
    whole = matmul(x, weight)
    for rows in (slice(0, 1), slice(63, 65), slice(70, 199), slice(199, 200)):
        assert torch.equal(matmul(x[rows].contiguous(), weight), whole[rows])
