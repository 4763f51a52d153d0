"""Scores on the device: hidden states and target tokens go in; ranks and divergences come out.

The vocabulary is walked in tiles of 2,048 columns: a matrix product into one small workspace, which
the kernels of csrc/cuda read and forget. No `[M, V]` exists, but for up to 128 rows, whose tile is
the whole vocabulary: there launches would take longer than products.

A rank compares logits, so the target's own must have the bits that its tile gives it. A first
product with the targets' rows of the head has the shape of every other; where a library should give
other bits all the same, the kernels count it, and the block is scored again with the tile's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import DeviceError
from .base import I32, HeadComparison, HeadScores
from .cuda_forward import Rows
from .cuda_head import MOST_ROWS, Head, check_finite
from .cuda_transfer import Results, upload
from .cuda_weights import HEAD_TILE

ROWS = 2048  # scored together
Scored = tuple[NDArray[Any], ...]  # the arrays of HeadScores, then KL to the other head


def score(head: Head, rows: Rows, targets: I32, top_k: int) -> HeadScores:
    """What the head says of the targets [M]."""
    found = [block[0][:-1] for block in _blocks([head], [rows], targets, top_k)]
    return HeadScores(*(np.concatenate(column) for column in zip(*found, strict=True)))


def compare(
    heads: tuple[Head, Head], rows: tuple[Rows, Rows], targets: I32, top_k: int
) -> HeadComparison:
    """The base and the aligned head, and their divergences, from one walk over the vocabulary."""
    found = _blocks(heads, rows, targets, top_k)
    (*mine, kl_base_aligned), (*theirs, kl_aligned_base) = (
        [np.concatenate(column) for column in zip(*(block[i] for block in found), strict=True)]
        for i in (0, 1)
    )
    return HeadComparison(HeadScores(*mine), HeadScores(*theirs), kl_aligned_base, kl_base_aligned)


def workspace_bytes(head: Head, rows: int, top_k: int) -> int:
    """What scoring so many rows by one head takes on the device, beside the rows themselves."""
    m, tile = min(rows, ROWS), _tile_columns(head, rows)
    gathered = tile * int(head.weight.shape[1]) * head.weight.element_size()
    side = head.statistics(0).shape[1] + head.entries(0, top_k).shape[1]
    own = m * (4 * tile + int(side) + 4 * (9 + 2 * top_k))
    return own if rows <= MOST_ROWS else own + gathered


def _tile_columns(head: Head, rows: int) -> int:
    """How much of the vocabulary is one product."""
    return len(head.weight) if rows <= MOST_ROWS else HEAD_TILE


@dataclass
class Side:
    """One head at work on M <= ROWS rows: everything that its kernels read and write."""

    head: Head
    rows: Rows
    targets: torch.Tensor  # [M] int32
    z: torch.Tensor  # [M, columns of a tile] fp32: the workspace
    target_logit: torch.Tensor  # [M] fp32
    seen: torch.Tensor  # [M] fp32: the same, as the target's own tile has it
    stats: torch.Tensor  # of all tiles of the vocabulary
    entries: torch.Tensor
    results: Results

    def launch(self, name: str, **arguments: Any) -> None:
        self.head.launch(name, rows=len(self.rows), **arguments)


def _blocks(
    heads: Sequence[Head], rows: Sequence[Rows], targets: I32, top_k: int
) -> list[list[Scored]]:
    """Of each ROWS rows, of each head."""
    found = []
    for first in range(0, max(len(targets), 1), ROWS):
        part = slice(first, first + ROWS)
        on_device = upload({"targets": targets[part]}, heads[0].device.torch)["targets"]
        sides = [_side(h, r[part], on_device, top_k) for h, r in zip(heads, rows, strict=True)]
        found.append(_walk(sides, top_k, first))
    return found


def _side(head: Head, rows: Rows, targets: torch.Tensor, top_k: int) -> Side:
    """Allocates; where there are several tiles, finds the targets' logits by a product of the shape
    of theirs."""
    m, place = len(rows), head.device.torch
    i32, f32 = torch.int32, torch.float32
    kinds = {
        **dict.fromkeys(("rank", "ties", "finite", "bad"), (i32, (m,))),
        **dict.fromkeys(("logprob", "entropy", "kl"), (f32, (m,))),
        "top_ids": (i32, (m, top_k)),
        "top_logprobs": (f32, (m, top_k)),
        "mismatches": (i32, (1,)),
    }
    tile = _tile_columns(head, m)
    z = torch.empty(m, tile, device=place)
    target_logit, seen = torch.empty(m, device=place), torch.empty(m, device=place)
    stats, entries = head.statistics(m), head.entries(m, top_k)
    results = Results(kinds, place)
    side = Side(head, rows, targets, z, target_logit, seen, stats, entries, results)
    results.on_device["bad"].copy_(rows.bad)
    if tile < len(head.weight):
        wanted = targets.repeat(-(-tile // m))[:tile]
        head.product(rows.values, head.weight.index_select(0, wanted), out=z)
        side.launch("take_logits", z=z, out=target_logit, stride=tile)
    return side


def _walk(sides: list[Side], top_k: int, first: int) -> list[Scored]:
    """All tiles; once more where the targets' logits were not those of their tiles."""
    for attempt in (0, 1):
        for side in sides:
            side.results.on_device["mismatches"].zero_()
        for begin in range(0, sides[0].head.vocab, sides[0].z.shape[1]):
            _tile(sides, begin, 0 if attempt else top_k)
        for side, other in zip(sides, reversed(sides), strict=True):
            _finish(side, None if other is side else other, top_k)
        found = [side.results.fetch() for side in sides]
        for arrays in found:
            check_finite(arrays["bad"], arrays["finite"] != 0, first)
        if not any(arrays["mismatches"][0] for arrays in found):
            names = (*HeadScores._fields, "kl")
            return [tuple(arrays[name] for name in names) for arrays in found]
        for side in sides:
            side.target_logit.copy_(side.seen)
    raise DeviceError(
        f"{sides[0].head.device.name}: the same matrix product gave other bits the second time, so "
        "a rank would mean nothing; open the engine with invariant=True"
    )


def _tile(sides: list[Side], begin: int, top_k: int) -> None:
    """One tile of the vocabulary: the products of all heads, then what they say."""
    vocab, tile = sides[0].head.vocab, sides[0].z.shape[1]
    for side in sides:
        side.head.product(side.rows.values, side.head.weight[begin : begin + tile], out=side.z)
        if tile >= vocab:
            own = {"ids": side.targets, "out": side.target_logit}
            side.launch("take_logits", z=side.z, stride=tile, **own)
    where = {"columns": min(tile, vocab - begin), "stride": tile, "first": begin, "vocab": vocab}
    for side, other in zip(sides, reversed(sides), strict=True):
        side.launch(
            "rank_tile",
            z=side.z,
            other=None if other is side else other.z,
            targets=side.targets,
            target_logit=side.target_logit,
            seen=side.seen,
            stats=side.stats,
            **where,
        )
        if top_k:
            lists = {"z": side.z, "stats": side.stats, "entries": side.entries}
            side.launch("top_k_tile", k=top_k, **lists, **where)


def _finish(side: Side, other: Side | None, top_k: int) -> None:
    out = side.results.on_device
    side.launch(
        "rank_finish",
        stats=side.stats,
        other_stats=None if other is None else other.stats,
        target_logit=side.target_logit,
        seen=side.seen,
        entries=side.entries,
        vocab=side.head.vocab,
        k=top_k,
        kl=None if other is None else out["kl"],
        **{name: out[name] for name in (*HeadScores._fields, "finite", "mismatches")},
    )
