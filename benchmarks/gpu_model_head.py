"""The head of the GPU backend: sizes and a machine go in; what choosing and scoring move, compute
and take comes out, beside two other ways to score.

Letters: M rows, C hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import log
from typing import NamedTuple

from benchmarks.gpu_model_kernels import BF16, F32, I32_BYTES, Kernel, Moved, Product, once
from benchmarks.gpu_model_machines import BY_HAND, HOST, LAUNCH, LIBRARY, LOGIT, MEMORY, Machine
from urial_engine.backends.cuda_weights import HEAD_TILE
from urial_engine.config import ModelConfig

ROWS, CHOSEN = 2048, 128  # scored together, and chosen for together
RANK_TILE = 1024  # columns that leave one statistic
STATS_BYTES, ENTRY_BYTES = 28, 8
RESULTS = 9  # numbers of 4 bytes for each scored row, without its top tokens
FUSED_TILE = 128, 256  # rows and columns: the most whose fp32 sums the registers hold
IN_L2 = 0.5  # of the L2: a buffer of at most that is still there when the next kernel reads it


def padded_vocabulary(vocab: int) -> int:
    return -(-vocab // HEAD_TILE) * HEAD_TILE


def statistics(vocab: int) -> int:
    """Of each row."""
    return -(-vocab // RANK_TILE)


def workspace_bytes(model: ModelConfig, rows: int, *, top_k: int) -> int:
    """What scoring by one head takes beside the rows, as the backend accounts for it itself."""
    gathered, m = HEAD_TILE * model.hidden_size * BF16, min(rows, ROWS)
    stats = statistics(model.vocab_size) * STATS_BYTES
    row = F32 * HEAD_TILE + stats + top_k * ENTRY_BYTES + 4 * (RESULTS + 2 * top_k)
    return gathered + m * row


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

    @property
    def logits(self) -> int:
        """Bytes of the matrix that never exists."""
        return self.rows * self.vocab * F32

    @property
    def operations(self) -> int:
        return 2 * self.rows * self.vocab * self.hidden

    def kernels(self, machine: Machine) -> Iterator[tuple[Kernel, int]]:
        """Each kernel of our own way, and how often it runs."""
        whole, rest = divmod(self.rows, ROWS)
        for m, times in ((ROWS, whole), (rest, 1)):
            if m and times:
                yield from ((kernel, times * n) for kernel, n in self._block(m, machine))

    def _block(self, m: int, machine: Machine) -> Iterator[tuple[Kernel, int]]:
        product = Product(m, HEAD_TILE, self.hidden, BF16, F32).by_library()
        in_l2 = m * HEAD_TILE * F32 <= IN_L2 * machine.l2
        row = once(HEAD_TILE * self.hidden * BF16)
        yield Kernel("gather", {"weight": row}, {"rows": row}, launches=3), 1
        yield product, 1 + padded_vocabulary(self.vocab) // HEAD_TILE
        yield Kernel("take_logits", {"z": once(m * F32)}, {"out": once(m * F32)}), 1
        for columns, times in ((HEAD_TILE, self.vocab // HEAD_TILE), (self.vocab % HEAD_TILE, 1)):
            if columns and times:
                yield rank_tile(m, columns, in_l2=in_l2), times
                yield self._top_k(m, columns, in_l2=in_l2), times
        yield finish(m, self.vocab, self.top_k), 1

    def _top_k(self, m: int, columns: int, *, in_l2: bool) -> Kernel:
        """A tile is read where its largest logit enters the list: of logits in no order, the t-th
        does so with a probability of k / t."""
        tiles, k = statistics(self.vocab), self.top_k
        visited = min(k * (1 + log(max(tiles / k, 1))) / tiles, 1.0) if k else 0.0
        size = int(m * columns * F32 * visited)
        loads = {"z": Moved(size, 0 if in_l2 else size)}
        loads["stats"] = once(m * statistics(columns) * STATS_BYTES)
        return Kernel("top_k_tile", loads, {"entries": once(m * k * ENTRY_BYTES)})

    def seconds(self, machine: Machine) -> float:
        """Scoring is in no graph, so the host may be what it waits for."""
        device = sum(kernel.seconds(machine) * count for kernel, count in self.kernels(machine))
        return max(device, self.launches(machine) * HOST)

    def launches(self, machine: Machine) -> int:
        return sum(kernel.launches * count for kernel, count in self.kernels(machine))

    def at_once_seconds(self, machine: Machine) -> float:
        """As a token is chosen: one product for the whole vocabulary. For few rows."""
        m = self.rows
        product = Product(m, padded_vocabulary(self.vocab), self.hidden, BF16, F32)
        in_l2 = self.logits <= IN_L2 * machine.l2
        kernels = [product.by_library(), rank_tile(m, self.vocab, in_l2=in_l2)]
        kernels += [self._top_k(m, self.vocab, in_l2=in_l2), finish(m, self.vocab, self.top_k)]
        return max(sum(kernel.seconds(machine) for kernel in kernels), len(kernels) * HOST)

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
        """The instructions, and the launches: the merge is a second kernel."""
        return LOGIT * self.rows * self.vocab / (machine.vector / 2) + 2 * LAUNCH

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
        launches = 10 * LAUNCH  # some of them are two kernels
        return product.seconds(machine) + moved / (machine.bandwidth * MEMORY) + launches

    def torch_bytes(self) -> int:
        """At its peak: z, logp, p and their product."""
        return 4 * self.logits


def by_hand(machine: Machine) -> float:
    """The share of cuBLAS's rate that a kernel with mma.sync is assumed to reach."""
    return BY_HAND * min(1.0, machine.mma / LIBRARY)
