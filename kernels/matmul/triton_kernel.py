"""A linear layer on a GPU in one fixed order, whatever the number of rows.

Enters x [M, K], weight [N, K]; leaves `reference`, summed in fp32 and rounded once. A library
chooses another kernel, and with it another order of additions, for another M. Here one tile shape
serves all, K is walked from its beginning to its end, and nothing is split.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

TILE = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64}
GROUP = 8  # tiles of rows that are computed beside each other, so that they share columns in L2


@triton.jit(do_not_specialize=["M"])
def matmul_kernel(
    x,
    weight,
    bias,
    out,
    M,
    N,
    K,
    out_stride,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    tile = tl.program_id(0)
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    group = tile // (GROUP * tiles_n)
    in_group = min(tiles_m - group * GROUP, GROUP)
    inner = tile - group * GROUP * tiles_n
    m = (group * GROUP + inner % in_group) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = inner // in_group * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    x_at = x + m.to(tl.int64)[:, None] * K + k[None, :]
    w_at = weight + n.to(tl.int64)[None, :] * K + k[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        left = K - start
        a = tl.load(x_at, mask=(m[:, None] < M) & (k[None, :] < left), other=0.0)
        b = tl.load(w_at, mask=(n[None, :] < N) & (k[:, None] < left), other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
        x_at += BLOCK_K
        w_at += BLOCK_K
    if HAS_BIAS:
        total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    at = m.to(tl.int64)[:, None] * out_stride + n[None, :]
    inside = (m[:, None] < M) & (n[None, :] < N)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


def matmul(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """x [M, K], weight [N, K], bias [N] or None -> [M, N] in x's dtype, or in that of `out`.

    `out` [M, N] may have rows that are further apart than N.
    """
    rows, depth = x.shape
    columns = weight.shape[0]
    if out is None:
        out = torch.empty(rows, columns, dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(rows, TILE["BLOCK_M"]) * triton.cdiv(columns, TILE["BLOCK_N"]),)
    matmul_kernel[grid](
        x,
        weight,
        weight if bias is None else bias,
        out,
        rows,
        columns,
        depth,
        out.stride(0),
        HAS_BIAS=bias is not None,
        GROUP=GROUP,
        num_warps=4,
        num_stages=3,
        enable_fp_fusion=False,
        **TILE,
    )
    return out
