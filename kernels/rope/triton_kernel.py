"""Rotation on a GPU, with the write to the KV-cache.

Enters qkv [T, (H + 2 K) D] of rows at positions; leaves the queries turned, `reference(q, ...)`,
and in the cache the keys turned likewise and the values as they are.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

HEADS = 8  # that one program turns


@triton.jit(do_not_specialize=["layer"])
def rope_kernel(
    qkv,  # [T, H + 2 K, D]
    cos,  # [positions, D / 2] fp32
    sin,
    positions,  # [T] int32
    slots,  # [T] int32: the place in the pool, block * BLOCK_SIZE + offset
    q,  # [T, H, D]
    cache,  # one layer of the pool: [blocks, 2, K, BLOCK_SIZE, D], `block_stride` apart
    bad,  # [T] int32
    layer,
    block_stride,
    H,
    K,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEADS: tl.constexpr,
):
    row = tl.program_id(0)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]  # [HEADS, 1]
    d = tl.arange(0, BLOCK_HALF)[None, :]  # [1, D / 2]
    inside = (head < H + 2 * K) & (d < HALF)
    source = qkv + row.to(tl.int64) * (H + 2 * K) * (2 * HALF) + head * (2 * HALF) + d
    first = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)

    # A value is turned by nothing: a * 1 - b * 0 is a.
    turns = head < H + K
    angle = tl.load(positions + row) * HALF + d
    c = tl.where(turns, tl.load(cos + angle, mask=d < HALF, other=1.0), 1.0)
    s = tl.where(turns, tl.load(sin + angle, mask=d < HALF, other=0.0), 0.0)
    dtype = q.dtype.element_ty
    turned_first = (first * c - second * s).to(dtype)
    turned_second = (second * c + first * s).to(dtype)

    is_query = inside & (head < H)
    target = q + row.to(tl.int64) * H * (2 * HALF) + head * (2 * HALF) + d
    tl.store(target, turned_first, mask=is_query)
    tl.store(target + HALF, turned_second, mask=is_query)

    # What is not finite is never written to the cache: 0 * NaN would reach rows that must not even
    # see it.
    first_ok = tl.abs(turned_first.to(tl.float32)) < float("inf")
    second_ok = tl.abs(turned_second.to(tl.float32)) < float("inf")
    slot = tl.load(slots + row)
    plane = head - H  # K keys, then K values
    place = (slot // BLOCK_SIZE).to(tl.int64) * block_stride
    place = place + (plane * BLOCK_SIZE + slot % BLOCK_SIZE) * (2 * HALF) + d
    stored = inside & (head >= H)
    tl.store(cache + place, tl.where(first_ok, turned_first, 0.0), mask=stored)
    tl.store(cache + place + HALF, tl.where(second_ok, turned_second, 0.0), mask=stored)
    wrong = tl.where(inside & (first_ok & second_ok == 0), 1, 0)
    if tl.max(tl.max(wrong, axis=1), axis=0) > 0:
        tl.store(bad + row, tl.minimum(tl.load(bad + row), layer))


def rope(
    qkv: torch.Tensor,
    tables: tuple[torch.Tensor, torch.Tensor],
    positions: torch.Tensor,
    slots: torch.Tensor,
    cache: torch.Tensor,
    bad: torch.Tensor,
    layer: int,
) -> torch.Tensor:
    """qkv [T, (H + 2 K) D] -> the queries [T, H, D], turned.

    tables: cos and sin, [positions, D / 2] in fp32. positions [T], slots [T] int32: where the row
    stands in its sequence, and its token in the cache, block * 64 + offset. cache: a layer of the
    pool, [blocks, 2, K, 64, D]. bad [T]: see `add_rmsnorm`.
    """
    rows = qkv.shape[0]
    _, _, kv_heads, block_size, head_dim = cache.shape
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    q = torch.empty(rows, heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    grid = (rows, triton.cdiv(heads + 2 * kv_heads, HEADS))
    rope_kernel[grid](
        qkv,
        *tables,
        positions,
        slots,
        q,
        cache,
        bad,
        layer,
        cache.stride(0),
        heads,
        kv_heads,
        HALF=head_dim // 2,
        BLOCK_HALF=triton.next_power_of_2(head_dim // 2),
        BLOCK_SIZE=block_size,
        HEADS=HEADS,
        num_warps=2,
        enable_fp_fusion=False,
    )
    return q
