"""Bytes and operations of each kernel of the GPU's layers: shapes and a `plan` go in.

Two numbers for each argument of a kernel. *Requested*: the bytes of every lane that loads or
stores, which the L2 has to serve; `tests/test_gpu_model.py` counts them in Triton's interpreter.
*Distinct*: each address once, which memory has to move at least, and does move where the L2 keeps
what one kernel reads again. Products by a library are counted as if each matrix passed once.

Letters: T rows, C hidden, H query heads, K key/value heads, D head size; G = H / K.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from benchmarks.gpu_model.machines import LAUNCH, LIBRARY, MEMORY, SCORE, TRITON, Machine
from urial_engine.kernels.attention.plan import I32, Plan

BLOCK = 64  # tokens
F32, I32_BYTES, BF16 = 4, 4, 2
HEADS = 8  # that one program of rope turns
TILE = 64  # rows, columns and depth of a tile of the fixed-order product


class Moved(NamedTuple):
    """Bytes of one argument."""

    requested: int
    distinct: int


def once(size: int) -> Moved:
    """Every byte is asked for by one lane only."""
    return Moved(size, size)


@dataclass(frozen=True)
class Kernel:
    """What one launch moves and computes; `launches` of them that are too small to tell apart."""

    name: str
    loads: Mapping[str, Moved]
    stores: Mapping[str, Moved]
    operations: float = 0  # on tensor cores, whole tiles
    share: float = TRITON  # of the tensor rate
    instructions: float = 0  # fp32, where they are many
    launches: int = 1

    @property
    def requested(self) -> int:
        return sum(m.requested for m in (*self.loads.values(), *self.stores.values()))

    @property
    def distinct(self) -> int:
        return sum(m.distinct for m in (*self.loads.values(), *self.stores.values()))

    def limits(self, machine: Machine) -> dict[str, float]:
        """Seconds, by what would take them if nothing else did."""
        return {
            "memory": self.distinct / (machine.bandwidth * MEMORY),
            "L2": self.requested / machine.l2_bandwidth,
            "tensor cores": self.operations / (machine.tensor * self.share),
            "fp32": self.instructions / (machine.vector / 2),
        }

    def seconds(self, machine: Machine) -> float:
        return max(self.limits(machine).values()) + self.launches * LAUNCH

    def bound(self, machine: Machine) -> str:
        """What it waits for most."""
        limits = {**self.limits(machine), "launch": self.launches * LAUNCH}
        return max(limits, key=lambda name: limits[name])


def add_rmsnorm(rows: int, size: int, item: int, *, delta: bool) -> Kernel:
    """The residual stream is fp32; every row asks for the weight again."""
    loads = {"x": once(rows * size * F32), "weight": Moved(rows * size * F32, size * F32)}
    stores = {"out": once(rows * size * item)}
    if delta:
        loads["delta"], stores["x"] = once(rows * size * item), once(rows * size * F32)
    return Kernel("add_rmsnorm_kernel", loads, stores)


def silu_mul(rows: int, size: int, item: int) -> Kernel:
    loads = {"gate_up": once(2 * rows * size * item)}
    return Kernel("silu_mul_kernel", loads, {"out": once(rows * size * item)})


def rope(positions: I32, heads: int, kv_heads: int, head_dim: int, item: int) -> Kernel:
    """A program turns HEADS heads of a row, and reads its angles."""
    rows, all_heads = len(positions), heads + 2 * kv_heads
    programs, angles = rows * -(-all_heads // HEADS), head_dim // 2 * F32
    table = Moved(programs * angles, len(np.unique(positions)) * angles)
    number = Moved(programs * I32_BYTES, rows * I32_BYTES)
    loads = {"qkv": once(rows * all_heads * head_dim * item), "cos": table, "sin": table}
    loads |= {"positions": number, "slots": number}
    stores = {"q": once(rows * heads * head_dim * item)}
    stores["cache"] = once(rows * 2 * kv_heads * head_dim * item)
    return Kernel("rope_kernel", loads, stores)


class Heads(NamedTuple):
    """What attention has to know of a model and of its numbers."""

    heads: int
    kv_heads: int
    head_dim: int
    item: int  # bytes of a number


def attention(work: Plan, tables: I32, h: Heads, queries: int, programs: int) -> list[Kernel]:
    """As the plan says: an item's program reads its blocks once for all its rows and query heads.

    queries: of a tile. programs: how many run at a time; each asks for the number of items.
    """
    kernel = _attend(work.items, tables, h, queries, programs)
    return [kernel, merge(work, h)] if work.slots else [kernel]


def _attend(items: I32, tables: I32, h: Heads, queries: int, programs: int) -> Kernel:
    split = items[:, 5] >= 0
    rows, blocks = int(items[:, 1].sum()), int((items[:, 4] - items[:, 3]).sum())
    parts, whole = int(items[split, 1].sum()), int(items[~split, 1].sum())  # rows of each kind
    named = {(t, b) for _, _, t, first, end, _ in items.tolist() for b in range(first, end)}
    physical = {int(tables[place]) for place in named}
    row, block = h.heads * h.head_dim * h.item, 2 * h.kv_heads * BLOCK * h.head_dim * h.item
    number, each_head = I32_BYTES, h.heads * I32_BYTES
    loads = {
        "count": Moved(number * min(programs, len(items) * h.kv_heads), number),
        # First row and rows once more after the loop over keys.
        "items": Moved((items.nbytes + 2 * number * len(items)) * h.kv_heads, items.nbytes),
        "positions": Moved(each_head * rows, number * _distinct_rows(items)),
        "q": Moved(row * rows, row * _distinct_rows(items)),
        "tables": Moved(number * h.kv_heads * blocks, number * len(named)),
        "cache": Moved(block * blocks, block * len(physical)),
    }
    stores = {"out": once(row * whole)}
    if parts:
        loads["first_slots"] = Moved(each_head * parts, number * _distinct_rows(items[split]))
        stores["part"] = once(h.heads * h.head_dim * F32 * parts)
        stores["part_stats"] = once(h.heads * 2 * F32 * parts)
    # Scores and weighted values: a tile is computed whole, however few of its queries are there.
    padded = max(1 << (h.head_dim - 1).bit_length(), 16)
    scores = queries * BLOCK * h.kv_heads * blocks
    return Kernel(
        "attention_kernel", loads, stores, 4 * padded * scores, instructions=SCORE * scores
    )


def _distinct_rows(items: I32) -> int:
    return len({row for first, rows in items[:, :2].tolist() for row in range(first, first + rows)})


def merge(work: Plan, h: Heads) -> Kernel:
    """What splits left behind, once for each row and head."""
    rows, split = len(work.first_slots), int((work.first_slots >= 0).sum())
    loads = {"first_slots": Moved(rows * h.heads * I32_BYTES, rows * I32_BYTES)}
    loads["positions"] = Moved(split * h.heads * I32_BYTES, split * I32_BYTES)
    loads["part"] = once(work.slots * h.heads * h.head_dim * F32)
    loads["part_stats"] = once(work.slots * h.heads * 2 * F32)
    return Kernel("merge_kernel", loads, {"out": once(split * h.heads * h.head_dim * h.item)})


class Product(NamedTuple):
    """x [rows, depth] times weight [columns, depth]."""

    rows: int
    columns: int
    depth: int
    item: int
    out_item: int
    bias: bool = False

    def by_library(self) -> Kernel:
        """cuBLAS, as if its tiles read nothing twice."""
        loads = {"x": once(self.rows * self.depth * self.item)}
        loads["weight"] = once(self.columns * self.depth * self.item)
        if self.bias:
            loads["bias"] = once(self.columns * self.item)
        stores = {"out": once(self.rows * self.columns * self.out_item)}
        operations = 2 * self.rows * self.columns * self.depth
        return Kernel("product", loads, stores, operations, share=LIBRARY)

    def in_fixed_order(self) -> Kernel:
        """`kernels/matmul`: every tile of the result reads its rows and its columns."""
        tiles_m, tiles_n = -(-self.rows // TILE), -(-self.columns // TILE)
        plain = self.by_library()
        again = {"x": tiles_n, "weight": tiles_m, "bias": tiles_m}
        loads = {k: Moved(m.requested * again[k], m.distinct) for k, m in plain.loads.items()}
        operations = 2 * tiles_m * TILE * tiles_n * TILE * (-(-self.depth // TILE) * TILE)
        return Kernel("matmul_kernel", loads, plain.stores, operations)
