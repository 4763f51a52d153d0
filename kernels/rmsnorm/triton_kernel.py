"""The norm on a GPU, with the addition to the residual stream that stands before it.

Enters the residual stream x [T, C] in fp32, changed in place, and what a layer adds to it; leaves
`reference(x + delta, weight, epsilon)` rounded to the dtype of the layers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["layer"])
def add_rmsnorm_kernel(
    x,  # [T, C] fp32
    delta,  # [T, C], read where HAS_DELTA
    weight,  # [C]
    out,  # [T, C]
    bad,  # [T] int32
    layer,
    epsilon,
    C,
    HAS_DELTA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < C
    at = row.to(tl.int64) * C + column
    value = tl.load(x + at, mask=inside, other=0.0)
    if HAS_DELTA:
        value += tl.load(delta + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(x + at, value, mask=inside)
    mean_square = tl.sum(value * value, axis=0) / C
    scale = 1.0 / tl.sqrt_rn(mean_square + epsilon)
    normed = value * scale * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    rounded = normed.to(out.dtype.element_ty)
    tl.store(out + at, rounded, mask=inside)
    # 0 * inf and 0 * NaN are NaN. An infinite square would hide behind a row of zeros.
    zero = tl.sum(rounded.to(tl.float32) * 0.0, axis=0) + mean_square * 0.0
    if zero != zero:
        tl.store(bad + row, tl.minimum(tl.load(bad + row), layer))


def add_rmsnorm(
    x: torch.Tensor,
    delta: torch.Tensor | None,
    weight: torch.Tensor,
    epsilon: float,
    bad: torch.Tensor,
    layer: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """x [T, C] fp32 += delta [T, C]; returns the norm of that, [T, C] in `dtype`.

    bad [T] int32 holds the first layer after which a row is not finite: `layer` goes into it where
    this row is not, and it holds no smaller number.
    """
    rows, size = x.shape
    out = torch.empty_like(x, dtype=dtype)
    block = triton.next_power_of_2(size)
    add_rmsnorm_kernel[(rows,)](
        x,
        x if delta is None else delta,
        weight,
        out,
        bad,
        layer,
        epsilon,
        size,
        HAS_DELTA=delta is not None,
        BLOCK=block,
        num_warps=min(max(block // 512, 1), 16),
        enable_fp_fusion=False,
    )
    return out
