"""The head of the GPU backend: sizes and a machine go in; what choosing and scoring move, compute
and take comes out, beside two other ways to score.

Letters: M rows, C hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import log
from typing import NamedTuple

from benchmarks.gpu_model.kernels import BF16, F32, I32_BYTES, Kernel, Moved, Product, once
from benchmarks.gpu_model.machines import (
    BY_HAND,
    COPY,
    HOST,
    LAUNCH,
    LIBRARY,
    LOGIT,
    MEMORY,
    Machine,
)
from urial_engine.backends.cuda_weights import HEAD_TILE
from urial_engine.config import ModelConfig

ROWS, CHOSEN = 2048, 128  # scored together, and chosen for together
TILE = 2048  # columns
FEW = 512  # up to so many rows take tiles of about a thirtieth of the vocabulary
RANK_TILE = 1024  # columns that leave one statistic
STATS_BYTES, ENTRY_BYTES = 28, 8
TORCH_LAUNCHES = 10  # some of its operations are two kernels
RESULTS = 9  # numbers of 4 bytes for each scored row, without its top tokens
FUSED_TILE = 128, 256  # rows and columns: the most whose fp32 sums the registers hold
IN_L2 = 0.5  # of the L2: a buffer of at most that is still there when the next kernel reads it


def padded_vocabulary(vocab: int) -> int:
    return -(-vocab // HEAD_TILE) * HEAD_TILE


def statistics(vocab: int) -> int:
    """Of each row."""
    return -(-vocab // RANK_TILE)


def rounded_up(rows: int) -> int:
    """How many a graph has for so many that are scored."""
    if rows <= 8:
        return int(1 << (rows - 1).bit_length())
    step = 8 if rows <= CHOSEN else CHOSEN
    return -(-rows // step) * step


def tile_columns(rows: int, vocab: int) -> int:
    """How much of the vocabulary is one product."""
    if rows <= CHOSEN:
        return padded_vocabulary(vocab)
    return 1024 << min(padded_vocabulary(vocab) // 60000, 2) if rows <= FEW else TILE


def rank_tile(rows: int, columns: int, *, in_l2: bool) -> Kernel:
    """Statistics of logits that the kernel before it has written."""
    size, stats = rows * columns * F32, rows * statistics(columns)
    loads = {"z": Moved(size, 0 if in_l2 else size)}
    loads["target_logit"] = loads["targets"] = Moved(stats * F32, rows * F32)
    stores = {"stats": once(stats * STATS_BYTES)}
    return Kernel("rank_tile", loads, stores, instructions=LOGIT * rows * columns)


def finish(rows: int, vocab: int, top_k: int) -> Kernel:
    """Tiles become rows. The statistics are read twice: for the maximum, then for the sums."""
    stats, top = rows * statistics(vocab) * STATS_BYTES, rows * top_k
    loads = {"stats": Moved(2 * stats, stats), "entries": once(top * ENTRY_BYTES)}
    results = once(rows * 4 * RESULTS + 2 * top * I32_BYTES)
    return Kernel("rank_finish", loads, {"results": results})


def choose(rows: int, model: ModelConfig, item: int, *, invariant: bool) -> list[Kernel]:
    """Greedy tokens, each with its log-probability and rank, for CHOSEN rows at a time."""
    kernels = []
    vocab, padded = model.vocab_size, padded_vocabulary(model.vocab_size)
    for first in range(0, rows, CHOSEN):
        m = min(rows - first, CHOSEN)
        product = Product(m, padded, model.hidden_size, item, F32)
        taken = {"z": once(m * F32), "ids": once(m * I32_BYTES)}
        kernels += [
            product.in_fixed_order() if invariant else product.by_library(),
            Kernel("sample", {"z": once(m * vocab * F32)}, {"token_ids": once(m * I32_BYTES)}),
            Kernel("take_logits", taken, {"out": once(m * F32)}),
            rank_tile(m, vocab, in_l2=False),
            finish(m, vocab, top_k=0),
        ]
    return kernels


class Scoring(NamedTuple):
    """Rank, log-probability, entropy and top-k of a target at each of `rows` positions."""

    rows: int
    vocab: int
    hidden: int
    top_k: int = 10
    width: int | None = None  # of a tile; None: the backend's own

    @property
    def logits(self) -> int:
        """Bytes of the matrix that never exists."""
        return self.rows * self.vocab * F32

    @property
    def operations(self) -> int:
        return 2 * self.rows * self.vocab * self.hidden

    def tile(self, rows: int) -> int:
        return self.width or tile_columns(rows, self.vocab)

    def whole(self, rows: int) -> bool:
        """Whether a target's logit is among those of the only tile."""
        return self.tile(rows) >= padded_vocabulary(self.vocab)

    def workspace_bytes(self) -> int:
        """What it takes, a graph's own rows included, as the backend accounts for it itself."""
        m, top_k = rounded_up(min(self.rows, ROWS)), self.graph_top_k
        gathered = 0 if self.whole(m) else self.tile(m) * self.hidden * BF16
        stats = statistics(self.vocab) * STATS_BYTES
        row = F32 * self.tile(m) + stats + top_k * ENTRY_BYTES
        own = max(1 << (m - 1).bit_length(), 256) * self.hidden * BF16  # where graphs find them
        return own + gathered + m * (row + 4 * (RESULTS + 2 * top_k))

    def blocks(self) -> Iterator[tuple[int, int]]:
        """The rows of a graph, and how often it is replayed."""
        whole, rest = divmod(self.rows, ROWS)
        if whole:
            yield ROWS, whole
        if rest:
            yield rounded_up(rest), 1

    def kernels(self, machine: Machine) -> Iterator[tuple[Kernel, int]]:
        """Each kernel of our own way, and how often it runs."""
        for m, times in self.blocks():
            yield from ((kernel, times * n) for kernel, n in self._block(m, machine))

    def _block(self, m: int, machine: Machine) -> Iterator[tuple[Kernel, int]]:
        width = self.tile(m)
        yield Kernel("reset", {"bad": once(m * I32_BYTES)}, {"results": once(m * I32_BYTES)}), 2
        if not self.whole(m):
            row = once(width * self.hidden * BF16)
            yield Kernel("gather", {"weight": row}, {"rows": row}, launches=2), 1
            yield self._product(m, machine, first=True), 1
        yield Kernel("take_logits", {"z": once(m * F32)}, {"out": once(m * F32)}), 1
        in_l2 = m * width * F32 <= IN_L2 * machine.l2
        yield self._product(m, machine, first=self.whole(m)), -(-self.vocab // width)
        for columns, times in ((width, self.vocab // width), (self.vocab % width, 1)):
            if columns and times:
                yield rank_tile(m, columns, in_l2=in_l2), times
                yield self._top_k(m, columns, in_l2=in_l2), times
        yield finish(m, self.vocab, self.graph_top_k), 1

    @property
    def graph_top_k(self) -> int:
        """A power of two."""
        return int(1 << (self.top_k - 1).bit_length()) if self.top_k else 0

    def _product(self, m: int, machine: Machine, *, first: bool) -> Kernel:
        """Every tile has the same rows, and its logits take the place of those before: where both
        fit half of the L2, they stay there, and only the head's own rows come from memory."""
        kernel = Product(m, self.tile(m), self.hidden, BF16, F32).by_library()
        x, z = kernel.loads["x"].requested, kernel.stores["out"].requested
        if first or x + z > IN_L2 * machine.l2:
            return kernel
        loads = {**kernel.loads, "x": Moved(x, 0)}
        return replace(kernel, loads=loads, stores={"out": Moved(z, 0)})

    def _top_k(self, m: int, columns: int, *, in_l2: bool) -> Kernel:
        """A tile is read where its largest logit enters the list: of logits in no order, the t-th
        does so with a probability of k / t."""
        tiles, k = statistics(self.vocab), self.graph_top_k
        visited = min(k * (1 + log(max(tiles / k, 1))) / tiles, 1.0) if k else 0.0
        size = int(m * columns * F32 * visited)
        loads = {"z": Moved(size, 0 if in_l2 else size)}
        loads["stats"] = once(m * statistics(columns) * STATS_BYTES)
        return Kernel("top_k_tile", loads, {"entries": once(m * k * ENTRY_BYTES)})

    def seconds(self, machine: Machine) -> float:
        """Between two replays the device waits for the host: the results come back before the next
        rows, their marks and their targets are put where the graph reads them."""
        device = sum(kernel.seconds(machine) * count for kernel, count in self.kernels(machine))
        return device + sum(self._between(m, machine) * times for m, times in self.blocks())

    def _between(self, m: int, machine: Machine) -> float:
        rows = once(m * self.hidden * BF16)
        filled = Kernel("fill", {"rows": rows}, {"values": rows}, launches=3)
        return max(filled.seconds(machine), filled.launches * HOST) + HOST + 2 * COPY

    def launches(self, machine: Machine) -> int:
        """Of the graphs."""
        return sum(kernel.launches * count for kernel, count in self.kernels(machine))

    # One kernel in which no logit leaves the chip

    def fused_seconds(self, machine: Machine, of_library: float) -> float:
        """At a share of the library's rate. While a tile's logits are looked at, its sums fill the
        registers, so nothing is multiplied."""
        products = self.operations / (machine.tensor * LIBRARY * of_library)
        return max(self._reading(machine), products) + self._looking(machine)

    def _reading(self, machine: Machine) -> float:
        """Memory gives every matrix once; the L2 gives a tile's rows and columns to each tile."""
        size, (m, n) = self.hidden * BF16, FUSED_TILE
        moved = (self.vocab + self.rows) * size
        again = (self.vocab * -(-self.rows // m) + self.rows * -(-self.vocab // n)) * size
        return max(moved / (machine.bandwidth * MEMORY), again / machine.l2_bandwidth)

    def _looking(self, machine: Machine) -> float:
        """The instructions, and what stands around them: the merge is a second kernel, targets go
        over, results come back."""
        return LOGIT * self.rows * self.vocab / (machine.vector / 2) + 2 * LAUNCH + 2 * COPY

    def break_even(self, machine: Machine) -> float | None:
        """The share of the library's rate from which on it is faster than ours. None: never."""
        left = self.seconds(machine) - self._looking(machine)
        if left <= self._reading(machine):
            return None
        return self.operations / (machine.tensor * LIBRARY) / left

    # The logits as a matrix, in torch

    def torch_passes(self) -> list[tuple[str, float, float]]:
        """Each operation, and how many times the logits' bytes it reads and writes, at least."""
        truth = 1 / F32  # a byte each
        return [
            ("`z = hidden @ head.T`, fp32", 0, 1),
            ("`logp = z.log_softmax(-1)`", 1, 1),
            ("`(z > z_y).sum(-1)`", 1 + truth, truth),
            ("`(z == z_y).sum(-1)`", 1 + truth, truth),
            ("`p = logp.exp()`", 1, 1),
            ("`(p * logp).sum(-1)`", 3, 1),
            ("`logp.topk(k)`: a pass for each 8 bits, one to collect", 5, 0),
        ]

    def torch_seconds(self, machine: Machine) -> float:
        """The product at the library's rate, and everything else at the memory's."""
        product = Product(self.rows, self.vocab, self.hidden, BF16, F32).by_library()
        moved = sum(reads + writes for _, reads, writes in self.torch_passes()[1:]) * self.logits
        launches = TORCH_LAUNCHES * LAUNCH
        return product.seconds(machine) + moved / (machine.bandwidth * MEMORY) + launches

    def torch_bytes(self) -> int:
        """At its peak: z, logp, p and their product."""
        return 4 * self.logits


def by_hand(machine: Machine) -> float:
    """The share of cuBLAS's rate that a kernel with mma.sync is assumed to reach."""
    return BY_HAND * min(1.0, machine.mma / LIBRARY)
