"""Attention on a GPU, over the blocks of the KV-cache.

Enters queries [T, H, D] of rows at positions, the cache and a `plan`; leaves `reference` of each
row over its sequence's keys and values. The query heads of a key head are rows of one tile, so that
they share each tile of keys. A block of keys is reduced by itself (maximum, sum, weighted values)
and merged into what stands before it; a split leaves that behind, and `merge` goes on in order,
with the same operations: so a walked and a split row get the same bits where a split is one block.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .tiles import Tile


@triton.jit
def nothing(ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """The softmax of no keys: maximum, sum and weighted values."""
    top = tl.full([ROWS], float("-inf"), tl.float32)
    return top, tl.zeros([ROWS], tl.float32), tl.zeros([ROWS, BLOCK_D], tl.float32)


@triton.jit
def leave(part, part_stats, place, d, D: tl.constexpr, top, total, values, inside, held):
    """Put a split's result away for `merge_kernel`."""
    tl.store(part + place[:, None] * D + d[None, :], values, mask=held)
    tl.store(part_stats + place * 2, top, mask=inside)
    tl.store(part_stats + place * 2 + 1, total, mask=inside)


@triton.jit
def give(out, query, d, D: tl.constexpr, total, values, inside, held):
    """The average of the values, where the queries stand among all [T, H]."""
    share = values / tl.where(inside, total, 1.0)[:, None]
    tl.store(out + query[:, None] * D + d[None, :], share.to(out.dtype.element_ty), mask=held)


@triton.jit
def combine(top, total, values, own_top, own_total, own_values):
    """Two partial softmaxes [rows], [rows], [rows, D], in this order, into one."""
    new = tl.maximum(top, own_top)
    base = tl.where(new == float("-inf"), 0.0, new)  # nothing is visible yet
    a, b = tl.exp2(top - base), tl.exp2(own_top - base)
    total = tl.fma(total, a, own_total * b)
    values = tl.fma(values, a[:, None], own_values * b[:, None])
    return new, total, values


@triton.jit
def reduce(queries, k, v, visible, scale):
    """Queries [rows, D] over one block of keys [D, n] and values [n, D]: maximum, sum, values."""
    scores = tl.dot(queries, k, input_precision="ieee") * scale  # [rows, n]
    scores = tl.where(visible, scores, float("-inf"))
    top = tl.max(scores, axis=1)
    p = tl.exp2(scores - tl.where(top == float("-inf"), 0.0, top)[:, None])
    values = tl.dot(p.to(v.dtype), v, input_precision="ieee")  # [rows, D]
    return top, tl.sum(p, axis=1), values


@triton.jit
def queries_of(item, m, head, H, G: tl.constexpr):
    """Of the queries m of a tile: the row of each, whether there is one, and its place among all
    [T, H]. Volatile, so that a second call reads again."""
    row = tl.load(item, volatile=True) + m // G
    inside = m < tl.load(item + 1, volatile=True) * G
    return row, inside, row.to(tl.int64) * H + head + m % G


@triton.jit
def first_split(position, window, KEYS: tl.constexpr, WINDOWED: tl.constexpr):
    """The first split of which a row sees something."""
    if WINDOWED:
        return tl.maximum(position - window + 1, 0) // KEYS
    return position * 0


@triton.jit(do_not_specialize=["table_stride"])
def attention_kernel(
    q,  # [T, H, D]
    cache,  # one layer of the pool: [blocks, 2, K, BLOCK_SIZE, D], `block_stride` apart
    out,  # [T, H, D]
    part,  # [slots, H, D] fp32, of split rows
    part_stats,  # [slots, H, 2] fp32: maximum and sum
    items,  # [count, 6], see `plan`
    count,  # [1]
    positions,  # [T]
    first_slots,  # [T]
    tables,  # [B, table_stride]
    table_stride,
    block_stride,
    scale,  # of the scores, in units of log 2
    window,  # read where WINDOWED
    K,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SPLIT: tl.constexpr,
    WINDOWED: tl.constexpr,
    STAGES: tl.constexpr,
):
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_SIZE)
    d = tl.arange(0, BLOCK_D)
    H = K * G
    for work in range(tl.program_id(0), tl.load(count) * K, tl.num_programs(0)):
        item, kv = items + (work // K) * 6, work % K  # see plan.FIELDS
        row, inside, query = queries_of(item, m, kv * G, H, G)
        position = tl.load(positions + row, mask=inside, other=-1)
        held = inside[:, None] & (d < D)[None, :]
        queries = tl.load(q + query[:, None] * D + d[None, :], mask=held, other=0.0)
        table = tables + tl.load(item + 2) * table_stride

        top, total, values = nothing(BLOCK_M, BLOCK_D)
        for block in tl.range(tl.load(item + 3), tl.load(item + 4), num_stages=STAGES):
            base = cache + tl.load(table + block).to(tl.int64) * block_stride
            at_k = base + kv * BLOCK_SIZE * D
            k = tl.load(at_k + n[None, :] * D + d[:, None], mask=(d < D)[:, None], other=0.0)
            at_v = base + (K + kv) * BLOCK_SIZE * D
            v = tl.load(at_v + n[:, None] * D + d[None, :], mask=(d < D)[None, :], other=0.0)
            key = block * BLOCK_SIZE + n
            visible = key[None, :] <= position[:, None]
            if WINDOWED:
                visible &= key[None, :] > position[:, None] - window
            own_top, own_total, own = reduce(queries, k, v, visible, scale)
            top, total, values = combine(top, total, values, own_top, own_total, own)

        # All this again: kept, it would stand in registers that the loop needs.
        row, inside, query = queries_of(item, m, kv * G, H, G)
        held = inside[:, None] & (d < D)[None, :]
        split = tl.load(item + 5)
        if split < 0:
            give(out, query, d, D, total, values, inside, held)
        else:
            slot = split - first_split(position, window, BLOCK_SIZE * SPLIT, WINDOWED)
            slot += tl.load(first_slots + row, mask=inside, other=0)
            place = slot.to(tl.int64) * H + kv * G + m % G
            leave(part, part_stats, place, d, D, top, total, values, inside, held)


@triton.jit
def merge_kernel(
    part,
    part_stats,
    out,
    positions,
    first_slots,
    window,
    H,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KEYS: tl.constexpr,  # of a split
    WINDOWED: tl.constexpr,
):
    row, head = tl.program_id(0), tl.program_id(1)
    slot = tl.load(first_slots + row)
    if slot >= 0:
        d = tl.arange(0, BLOCK_D)[None, :]
        position = tl.load(positions + row)
        first = first_split(position, window, KEYS, WINDOWED)
        one = tl.arange(0, 1)
        top, total, values = nothing(1, BLOCK_D)
        for split in range(first, position // KEYS + 1):
            place = (slot + split - first).to(tl.int64) * H + head
            own = tl.load(part + place * D + d, mask=d < D, other=0.0)
            own_top = tl.load(part_stats + place * 2 + one)
            own_total = tl.load(part_stats + place * 2 + 1 + one)
            top, total, values = combine(top, total, values, own_top, own_total, own)
        at = (row.to(tl.int64) * H + head) * D + d
        tl.store(out + at, (values / total[:, None]).to(out.dtype.element_ty), mask=d < D)


class Work(NamedTuple):
    """`plan`'s list and `Batch`'s arrays on the device, all int32."""

    items: torch.Tensor  # [n, 6]
    how_many: torch.Tensor  # [1] of them are to be done
    positions: torch.Tensor  # [T]
    first_slots: torch.Tensor  # [T]
    tables: torch.Tensor  # [B, blocks]


class Parts(NamedTuple):
    """Memory for what splits leave behind."""

    values: torch.Tensor  # [slots, H, D] fp32
    stats: torch.Tensor  # [slots, H, 2] fp32


def attention(
    q: torch.Tensor,
    cache: torch.Tensor,
    work: Work,
    parts: Parts,
    *,
    tile: Tile,
    split: int,
    window: int,
    programs: int,
) -> torch.Tensor:
    """q [T, H, D], cache [blocks, 2, K, 64, D] -> [T, H, D].

    tile, split: what the plan was made with. window: keys a row sees, 0 for all. programs: how many
    run at a time; they take the items in turn, so that a graph can be used again with another
    count.
    """
    out = torch.zeros_like(q)  # rows that only fill a graph up have no items
    rows, heads, head_dim = q.shape
    kv_heads, block_size = cache.shape[2:4]
    block_d = max(triton.next_power_of_2(head_dim), 16)
    attention_kernel[(min(programs, len(work.items) * kv_heads),)](
        q,
        cache,
        out,
        *parts,
        *work,
        work.tables.stride(0),
        cache.stride(0),
        head_dim**-0.5 * 1.4426950408889634,  # log2(e)
        window,
        kv_heads,
        G=heads // kv_heads,
        D=head_dim,
        BLOCK_D=block_d,
        BLOCK_M=tile.queries,
        BLOCK_SIZE=block_size,
        SPLIT=split,
        WINDOWED=window > 0,
        STAGES=tile.stages,
        num_warps=tile.warps,
        enable_fp_fusion=False,
    )
    if not len(parts.values):
        return out
    merge_kernel[(rows, heads)](
        *parts,
        out,
        work.positions,
        work.first_slots,
        window,
        heads,
        D=head_dim,
        BLOCK_D=block_d,
        KEYS=split * block_size,
        WINDOWED=window > 0,
        num_warps=1,
        enable_fp_fusion=False,
    )
    return out
