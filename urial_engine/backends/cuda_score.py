"""Scores on the device: hidden states and target tokens go in; ranks and divergences come out.

The vocabulary is walked in tiles: a matrix product into one small workspace, which the kernels of
csrc/cuda read and forget. No `[M, V]` exists, but for up to 128 rows, whose tile is the whole
vocabulary. All of one head's walk is one recorded graph for a rounded number of rows: with few
rows, launches would take longer than what they do.

A rank compares logits, so the target's own must have the bits that its tile gives it. A first
product with the targets' rows of the head has the shape of every other; where a library should give
other bits all the same, the kernels count it, and the block is scored again with the tile's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import DeviceError
from .base import I32, HeadComparison, HeadScores, Hidden
from .cuda_forward import FINITE, Rows
from .cuda_graph import MOST_ROWS, Kept, Recorder, rounded, rounded_rows, rounded_top
from .cuda_head import Head, check_finite
from .cuda_transfer import Results, upload

ROWS = 2048  # scored together
TILE = 2048  # columns
FEW = 512  # up to so many rows take tiles of about a thirtieth of the vocabulary
Scored = tuple[NDArray[Any], ...]  # the arrays of HeadScores


class Scorer:
    """Scores by one head."""

    def __init__(self, head: Head, recorder: Recorder) -> None:
        self._head, self._recorder = head, recorder
        self._recorded: Kept[tuple[int, int], Recorded] = Kept()
        self._rows = Rows(torch.empty(0), torch.empty(0))
        self._targets = torch.empty(0)

    def score(self, hidden: Hidden, targets: I32, top_k: int) -> HeadScores:
        """What the head says of the targets [M]."""
        found = []
        for first in range(0, max(len(targets), 1), ROWS):
            part = slice(first, first + ROWS)
            rows = self._head.rows(hidden[part])
            found.append(self._block(rows, targets[part], top_k, first))
        return HeadScores(*(np.concatenate(column) for column in zip(*found, strict=True)))

    def _block(self, rows: Rows, targets: I32, top_k: int, first: int) -> Scored:
        """Up to ROWS of them: the arrays of HeadScores."""
        m = len(rows)
        key = rounded_block(m), rounded_top(top_k, self._head.vocab)
        one = self._recorded.find(key, lambda: self._record(*key))
        side = one.side
        given = upload({"targets": targets}, self._head.device.torch)["targets"]
        side.rows.values[:m].copy_(rows.values)
        side.rows.bad[:m].copy_(rows.bad)
        side.targets[:m].copy_(given)
        one.replay()
        (arrays,) = _settled([side], m, first)
        del arrays["kl"]
        for name in ("top_ids", "top_logprobs"):
            arrays[name] = arrays[name][:, :top_k]
        return tuple(arrays[name] for name in HeadScores._fields)

    def _record(self, m: int, top_k: int) -> Recorded:
        """Of rows and targets that are put into its side's memory, a part of the scorer's."""
        if len(self._targets) < m:  # graphs that were recorded before keep what they had
            size, weight, place = buffer_rows(m), self._head.weight, self._head.device.torch
            values = torch.zeros(size, weight.shape[1], dtype=weight.dtype, device=place)
            bad = torch.full((size,), FINITE, dtype=torch.int32, device=place)
            self._rows = Rows(values, bad)
            self._targets = torch.zeros(size, dtype=torch.int32, device=place)
        side = _side(self._head, self._rows[:m], self._targets[:m], top_k)
        return Recorded(side, self._recorder.record(lambda: _attempt([side])))


@dataclass
class Recorded:
    """One graph, and the memory that it reads and writes."""

    side: Side
    replay: Callable[[], None]


def compare(
    heads: tuple[Head, Head], hidden: tuple[Hidden, Hidden], targets: I32, top_k: int
) -> HeadComparison:
    """The base and the aligned head, and their divergences, from one walk over the vocabulary."""
    found = []
    for first in range(0, max(len(targets), 1), ROWS):
        part = slice(first, first + ROWS)
        on_device = upload({"targets": targets[part]}, heads[0].device.torch)["targets"]
        rows = [head.rows(h[part]) for head, h in zip(heads, hidden, strict=True)]
        sides = [_side(h, r, on_device, top_k) for h, r in zip(heads, rows, strict=True)]
        _attempt(sides)
        found.append(_settled(sides, len(on_device), first))
    mine, theirs = (
        {name: np.concatenate([block[i][name] for block in found]) for name in found[0][i]}
        for i in (0, 1)
    )
    base, aligned = (HeadScores(*(s[n] for n in HeadScores._fields)) for s in (mine, theirs))
    return HeadComparison(base, aligned, kl_aligned_base=theirs["kl"], kl_base_aligned=mine["kl"])


def workspace_bytes(head: Head, rows: int, top_k: int) -> int:
    """What scoring so many rows by one head takes on the device, the scorer's own copy of them
    included."""
    m, top_k = rounded_block(min(rows, ROWS)), rounded_top(top_k, head.vocab)
    whole = len(head.weight)
    tile = tile_columns(m, whole)
    side = head.statistics(0).shape[1] + head.entries(0, top_k).shape[1]
    hidden = int(head.weight.shape[1]) * head.weight.element_size()
    own = m * (4 * tile + int(side) + 4 * (9 + 2 * top_k)) + buffer_rows(m) * hidden
    return own + tile * hidden if tile < whole else own


def buffer_rows(rows: int) -> int:
    """Where graphs of so many rows and fewer find them."""
    return rounded(rows, 256)


def rounded_block(rows: int) -> int:
    """How many rows a graph has for so many."""
    return rounded_rows(rows) if rows <= MOST_ROWS else -(-rows // MOST_ROWS) * MOST_ROWS


def tile_columns(rows: int, padded: int) -> int:
    """How much of a vocabulary, padded to whole tiles, is one product: all of it for few rows. For
    some more, launches are what wide tiles save, and the head's rows that targets gather what they
    cost."""
    if rows <= MOST_ROWS:
        return padded
    return 1024 << min(padded // 60000, 2) if rows <= FEW else TILE


@dataclass
class Side:
    """One head and M <= ROWS rows: what its kernels read, and what is left when they are done."""

    head: Head
    rows: Rows
    targets: torch.Tensor  # [M] int32
    top_k: int
    target_logit: torch.Tensor  # [M] fp32
    seen: torch.Tensor  # [M] fp32: the same, as the target's own tile has it
    results: Results

    def launch(self, name: str, **arguments: Any) -> None:
        self.head.launch(name, rows=len(self.rows), **arguments)


class Space(NamedTuple):
    """What an attempt needs meanwhile. Graphs share it: it lives in their common memory."""

    z: torch.Tensor  # [M, columns of a tile] fp32
    stats: torch.Tensor  # of all tiles of the vocabulary
    entries: torch.Tensor


def _side(head: Head, rows: Rows, targets: torch.Tensor, top_k: int) -> Side:
    """All memory for these rows."""
    m, place = len(rows), head.device.torch
    i32, f32 = torch.int32, torch.float32
    kinds = {
        **dict.fromkeys(("rank", "ties", "finite", "bad"), (i32, (m,))),
        **dict.fromkeys(("logprob", "entropy", "kl"), (f32, (m,))),
        "top_ids": (i32, (m, top_k)),
        "top_logprobs": (f32, (m, top_k)),
        "mismatches": (i32, (1,)),
    }
    target_logit, seen = torch.empty(2, m, dtype=f32, device=place)
    return Side(head, rows, targets, top_k, target_logit, seen, Results(kinds, place))


def _space(side: Side) -> Space:
    m, head = len(side.rows), side.head
    columns = tile_columns(m, len(head.weight))
    z = torch.empty(m, columns, dtype=torch.float32, device=head.device.torch)
    return Space(z, head.statistics(m), head.entries(m, side.top_k))


def _attempt(sides: Sequence[Side], *, again: bool = False) -> None:
    """Everything once: the targets' logits, unless they are those of the tiles, all tiles, and what
    they come to. Nothing waits for the device."""
    spaces = [_space(side) for side in sides]
    whole, tile = len(sides[0].head.weight), spaces[0].z.shape[1]
    for side, space in zip(sides, spaces, strict=True):
        side.results.on_device["mismatches"].zero_()
        side.results.on_device["bad"].copy_(side.rows.bad)
        if again:
            side.target_logit.copy_(side.seen)
        elif tile < whole and len(side.rows):
            _gather(side, space)
    for begin in range(0, sides[0].head.vocab, tile):
        _tile(sides, spaces, begin)
    pairs = list(zip(sides, spaces, strict=True))
    for (side, space), (other, beside) in zip(pairs, reversed(pairs), strict=True):
        _finish(side, space, None if other is side else beside)


def _gather(side: Side, space: Space) -> None:
    """The targets' logits, by a product of the shape of those of the tiles."""
    tile = space.z.shape[1]
    wanted = side.targets.repeat(-(-tile // len(side.rows)))[:tile]
    side.head.product(side.rows.values, side.head.weight.index_select(0, wanted), out=space.z)
    side.launch("take_logits", z=space.z, out=side.target_logit, stride=tile)


def _settled(sides: Sequence[Side], m: int, first: int) -> list[dict[str, NDArray[Any]]]:
    """Of an attempt that is on the device: the arrays of its first m rows, of each side. Attempted
    once more where the targets' logits were not those of their tiles."""
    for attempt in (0, 1):
        if attempt:
            _attempt(sides, again=True)
        found = [side.results.fetch() for side in sides]
        mismatches = [arrays.pop("mismatches")[0] for arrays in found]
        found = [{name: array[:m] for name, array in arrays.items()} for arrays in found]
        for arrays in found:
            check_finite(arrays["bad"], arrays["finite"] != 0, first)
        if not any(mismatches):
            return found
    raise DeviceError(
        f"{sides[0].head.device.name}: the same matrix product gave other bits the second time, so "
        "a rank would mean nothing; open the engine with invariant=True"
    )


def _tile(sides: Sequence[Side], spaces: Sequence[Space], begin: int) -> None:
    """One tile of the vocabulary: the products of all heads, then what they say."""
    vocab, tile = sides[0].head.vocab, spaces[0].z.shape[1]
    where = {"columns": min(tile, vocab - begin), "stride": tile, "first": begin, "vocab": vocab}
    for side, space in zip(sides, spaces, strict=True):
        side.head.product(side.rows.values, side.head.weight[begin : begin + tile], out=space.z)
        if tile >= vocab:
            own = {"ids": side.targets, "out": side.target_logit}
            side.launch("take_logits", z=space.z, stride=tile, **own)
    for side, space, other in zip(sides, spaces, reversed(spaces), strict=True):
        side.launch(
            "rank_tile",
            z=space.z,
            other=None if other is space else other.z,
            targets=side.targets,
            target_logit=side.target_logit,
            seen=side.seen,
            stats=space.stats,
            **where,
        )
        if side.top_k:
            lists = {"z": space.z, "stats": space.stats, "entries": space.entries}
            side.launch("top_k_tile", k=side.top_k, **lists, **where)


def _finish(side: Side, space: Space, other: Space | None) -> None:
    out = side.results.on_device
    side.launch(
        "rank_finish",
        stats=space.stats,
        other_stats=None if other is None else other.stats,
        target_logit=side.target_logit,
        seen=side.seen,
        entries=space.entries,
        vocab=side.head.vocab,
        k=side.top_k,
        kl=None if other is None else out["kl"],
        **{name: out[name] for name in (*HeadScores._fields, "finite", "mismatches")},
    )
