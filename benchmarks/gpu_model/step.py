"""A whole step of the GPU backend: a model, a batch and a machine go in; its kernels, its seconds
and the memory that it needs come out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.gpu_model import kernels as k
from benchmarks.gpu_model.head import Scoring, choose, padded_vocabulary
from benchmarks.gpu_model.machines import COPIES, COPY, Machine
from urial_engine.backends.base import Batch
from urial_engine.config import ModelConfig
from urial_engine.kernels.attention.plan import I32, Plan, Shape, plan
from urial_engine.kernels.attention.tiles import Tile, split, tile

SCORED = 2048  # rows of a text
RESERVE = 1 << 30  # that the backend leaves to torch, activations and the head


def decoding(sequences: int, prefix: int, own: int, *, shared: bool) -> Batch:
    """The next token of sequences that have `own` tokens behind a prefix, the new one included.

    Whole blocks of the prefix are the same ones, or each sequence has a copy.
    """
    position = prefix + own - 1
    blocks = position // k.BLOCK + 1
    tables = np.arange(sequences * blocks, dtype=np.int32).reshape(sequences, blocks)
    if shared:
        tables[:, : prefix // k.BLOCK] = tables[0, : prefix // k.BLOCK]
    rows = np.arange(sequences, dtype=np.int32)
    return Batch(np.zeros_like(rows), np.full_like(rows, position), rows, tables)


def reading(tokens: int) -> Batch:
    """One text, from its beginning."""
    positions = np.arange(tokens, dtype=np.int32)
    tables = np.arange(-(-tokens // k.BLOCK), dtype=np.int32)[None]
    nothing = np.zeros(tokens, np.int32)
    return Batch(nothing, positions, nothing, tables)


@dataclass(frozen=True)
class Step:
    """The forward pass of one batch, and the choice of a token for each sequence.

    split_by: the block tables that the plan sees. With others than the batch's own, sequences do
    not read together what they share: the cache is shared, but not the work.
    """

    model: ModelConfig
    batch: Batch
    architecture: int
    processors: int
    item: int = k.BF16
    invariant: bool = False
    split_by: I32 | None = None

    def plan(self) -> Plan:
        m, window = self.model, self.model.sliding_window or 0
        group = m.num_heads // m.num_kv_heads
        shape = Shape(group, k.BLOCK, self.split, self.tile.queries, window)
        tables = self.batch.block_tables if self.split_by is None else self.split_by
        return plan(self.batch.positions, self.batch.sequences, tables, shape)

    @property
    def tile(self) -> Tile:
        m = self.model
        group = m.num_heads // m.num_kv_heads
        return tile(self.architecture, m.head_dim, self.item, group)

    @property
    def split(self) -> int:
        return split(invariant=self.invariant)

    @property
    def heads(self) -> k.Heads:
        m = self.model
        return k.Heads(m.num_heads, m.num_kv_heads, m.head_dim, self.item)

    def attention(self) -> list[k.Kernel]:
        tables, programs = self.batch.block_tables, 4 * self.processors
        return k.attention(self.plan(), tables, self.heads, self.tile.queries, programs)

    def idle(self) -> list[k.Kernel]:
        """A graph of decoding steps holds both of attention's kernels, and one may have nothing to
        do."""
        decodes = len(self.batch.positions) == len(self.batch.block_tables)
        missing = 3 - len(self.attention()) if decodes else 0
        return [k.Kernel("attention_kernel, idle", {}, {})] * missing

    def _product(self, columns: int, depth: int, *, bias: bool) -> k.Kernel:
        rows = len(self.batch.positions)
        product = k.Product(rows, columns, depth, self.item, self.item, bias)
        return product.in_fixed_order() if self.invariant else product.by_library()

    def _norm(self, *, delta: bool) -> k.Kernel:
        rows, size = len(self.batch.positions), self.model.hidden_size
        return k.add_rmsnorm(rows, size, self.item, delta=delta)

    def layer(self, *, first: bool = False) -> list[k.Kernel]:
        """The kernels of one layer, in their order. The first has nothing to add to the stream."""
        m = self.model
        size, queries, feed = m.hidden_size, m.num_heads * m.head_dim, m.intermediate_size
        keys, bias = 2 * m.num_kv_heads * m.head_dim, m.attention_bias
        positions = self.batch.positions
        return [
            self._norm(delta=not first),
            self._product(queries + keys, size, bias=bias),
            k.rope(positions, m.num_heads, m.num_kv_heads, m.head_dim, self.item),
            *self.attention(),
            self._product(size, queries, bias=bias),
            self._norm(delta=True),
            self._product(2 * feed, size, bias=m.mlp_bias),
            k.silu_mul(len(positions), feed, self.item),
            self._product(size, feed, bias=m.mlp_bias),
        ]

    def embedding(self) -> k.Kernel:
        """Rows of the embedding, the same in fp32, and a mark for each row."""
        values, rows = len(self.batch.positions) * self.model.hidden_size, len(self.batch.positions)
        loads = {"embedding": k.once(values * self.item), "rounded": k.once(values * self.item)}
        stores = {"rounded": k.once(values * self.item), "x": k.once(values * k.F32)}
        loads["token_ids"] = stores["bad"] = k.once(rows * k.I32_BYTES)
        return k.Kernel("embedding", loads, stores, launches=3)

    def outside(self) -> list[k.Kernel]:
        """Before the layers and behind them: a token is chosen for each sequence."""
        rows = len(self.batch.block_tables)
        chosen = choose(rows, self.model, self.item, invariant=self.invariant)
        return [self.embedding(), self._norm(delta=True), *chosen]

    def kernels(self) -> Iterator[tuple[k.Kernel, int]]:
        """Each kernel, and how often it runs; the first layer counts as any other."""
        layer = [*self.layer(), *self.idle()]
        yield from ((kernel, self.model.num_layers) for kernel in layer)
        yield from ((kernel, 1) for kernel in self.outside())

    def launches(self) -> int:
        return sum(kernel.launches * count for kernel, count in self.kernels())

    def seconds(self, machine: Machine) -> float:
        """The device's part: what the host does between two steps is not in it."""
        kernels = sum(kernel.seconds(machine) * count for kernel, count in self.kernels())
        return kernels + COPIES * COPY

    # Memory

    def cache_bytes(self) -> int:
        """Of the blocks that the batch names, each once."""
        return len(np.unique(self.batch.block_tables)) * k.BLOCK * token_bytes(self.model)

    def workspace_bytes(self) -> int:
        """Partial results of attention, the logits of a step, and what scoring takes."""
        m = self.model
        parts = self.plan().slots * m.num_heads * (m.head_dim + 2) * k.F32
        logits = len(self.batch.block_tables) * padded_vocabulary(m.vocab_size) * k.F32
        scored = Scoring(SCORED, m.vocab_size, m.hidden_size)
        return parts + max(logits, scored.workspace_bytes())

    def bytes(self) -> int:
        """All that must fit on the machine."""
        workspace = max(self.workspace_bytes(), RESERVE)
        return weight_bytes(self.model, tied=False) + self.cache_bytes() + workspace


def on(machine: Machine, model: ModelConfig, batch: Batch, *, invariant: bool = False) -> Step:
    return Step(model, batch, machine.architecture, machine.processors, invariant=invariant)


def token_bytes(model: ModelConfig, item: int = k.BF16) -> int:
    """Keys and values of one token."""
    return 2 * model.num_layers * model.num_kv_heads * model.head_dim * item


def weight_bytes(model: ModelConfig, *, tied: bool, item: int = k.BF16) -> int:
    """As the backend holds them: norms in fp32, the head padded to whole tiles."""
    m = model
    queries, keys = m.num_heads * m.head_dim, m.num_kv_heads * m.head_dim
    size, feed = m.hidden_size, m.intermediate_size
    attention = (size + m.attention_bias) * (queries + 2 * keys) + (
        queries + m.attention_bias
    ) * size
    mlp = 2 * (size + m.mlp_bias) * feed + (feed + m.mlp_bias) * size
    head = (padded_vocabulary(m.vocab_size) + (0 if tied else m.vocab_size)) * size
    norms = (2 * m.num_layers + 1) * size * k.F32
    return (m.num_layers * (attention + mlp) + head) * item + norms
