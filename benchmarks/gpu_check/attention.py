"""Times attention over the cache: prefill, and decoding behind a shared and an unshared prefix."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.gpu_check.clock import Clock, Limits
from benchmarks.gpu_check.report import Row
from urial_engine.backends.cuda_transfer import upload
from urial_engine.config import ModelConfig
from urial_engine.kernels.attention.plan import I32, Shape, plan
from urial_engine.kernels.attention.tiles import Tile, split, tile
from urial_engine.kernels.attention.triton_kernel import Parts, Work, attention

BLOCK = 64


class Bench:
    """One layer's cache of random keys and values, and calls of attention over it."""

    def __init__(self, clock: Clock, config: ModelConfig, other: Tile | None = None) -> None:
        """`other`: a tile that is not the table's."""
        self.clock, self.config = clock, config
        self.group = config.num_heads // config.num_kv_heads
        size, head_dim = clock.dtype.itemsize, config.head_dim
        architecture = clock.device.architecture
        self.tile = other or tile(architecture, head_dim, size, self.group)
        self.split = split(invariant=False)

    def run(self, positions: I32, sequences: I32, tables: I32) -> tuple[float, float, float]:
        """Seconds, and the bytes and operations that the work asks for: every block that is named
        is read once, whoever shares it."""
        c = self.config
        shape = Shape(self.group, BLOCK, self.split, self.tile.queries, 0)
        p = plan(positions, sequences, tables, shape)
        count = np.array([len(p.items)], np.int32)
        arrays = (p.items, count, positions, p.first_slots, tables)
        named = dict(zip(Work._fields, arrays, strict=True))
        work = Work(**upload(named, self.clock.device.torch))
        cache = self.clock.random(int(tables.max()) + 1, 2, c.num_kv_heads, BLOCK, c.head_dim)
        q = self.clock.random(len(positions), c.num_heads, c.head_dim)
        slots, place = (p.slots, c.num_heads), self.clock.device.torch
        parts = Parts(*(torch.empty(*slots, n, device=place) for n in (c.head_dim, 2)))
        programs = 4 * self.clock.device.processors

        def call() -> torch.Tensor:
            how = {"tile": self.tile, "split": self.split, "window": 0, "programs": programs}
            return attention(q, cache, work, parts, **how)

        row_bytes = 2 * c.num_kv_heads * c.head_dim * q.element_size()
        read = len(np.unique(tables)) * BLOCK * row_bytes + 2 * q.nbytes
        seen = int((positions.astype(np.int64) + 1).sum())
        return self.clock.seconds(call), read, 4.0 * seen * c.num_heads * c.head_dim

    def prefill(self, prefix: int, new: int) -> tuple[float, float, float]:
        positions = np.arange(prefix, prefix + new, dtype=np.int32)
        tables = np.arange((prefix + new) // BLOCK + 1, dtype=np.int32)[None]
        return self.run(positions, np.zeros(new, np.int32), tables)

    def decode(self, batch: int, prefix: int, own: int, *, shared: bool) -> tuple[float, ...]:
        positions = np.full(batch, prefix + own - 1, np.int32)
        blocks = (prefix + own - 1) // BLOCK + 1
        tables = np.arange(batch * blocks, dtype=np.int32).reshape(batch, blocks)
        if shared:
            tables[:, : prefix // BLOCK] = tables[0, : prefix // BLOCK]
        return self.run(positions, np.arange(batch, dtype=np.int32), tables)


def rows(clock: Clock, limits: Limits, config: ModelConfig, name: str) -> list[Row]:
    bench, small = Bench(clock, config), clock.small
    prefix, new, own = (64, 8, 10) if small else (1024, 512, 200)
    seconds, _, operations = bench.prefill(prefix, new)
    share = operations / seconds / limits.products
    found = [Row("attention", f"{name}: prefill of {new} after {prefix}", seconds, products=share)]
    for batch in (1, 2) if small else (1, 8, 32, 128):
        apart = bench.decode(batch, prefix, own, shared=False)
        said = f"{name}: decode at batch {batch} after {prefix}"
        found.append(Row("attention", said, apart[0], memory=apart[1] / apart[0] / limits.copy))
        if batch > 1:
            seconds, read, _ = bench.decode(batch, prefix, own, shared=True)
            ratio = apart[0] / seconds
            share = read / seconds / limits.copy
            found.append(Row("attention", f"{said}, shared", seconds, memory=share, times=ratio))
    return found
