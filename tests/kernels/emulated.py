"""What the tests of the CUDA kernels share: the kernels, on this CPU or with `--gpu` on a GPU,
called with arrays."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tools import emulate
from urial_engine.kernels.rank import Scores

from .rungs import F32

I32 = NDArray[np.int32]
TILE = 1024
GPU = os.environ.get("TRITON_INTERPRET") == "0"


def module() -> ModuleType:
    """`_cuda`, emulated or real."""
    return import_module("urial_engine._cuda") if GPU else emulate.load()


def call(name: str, **given: Any) -> None:
    """A function of `_cuda`: addresses of arrays in place of addresses in a GPU's memory, or there
    and back."""
    arrays = {k: v for k, v in given.items() if isinstance(v, np.ndarray)}
    if not GPU:
        addresses = {k: v.ctypes.data for k, v in arrays.items()}
        getattr(module(), name)(**{**given, **addresses})
        return
    import torch

    copies = {k: torch.from_numpy(v.reshape(-1).view(np.uint8)).cuda() for k, v in arrays.items()}
    getattr(module(), name)(**{**given, **{k: c.data_ptr() for k, c in copies.items()}})
    for key, copy in copies.items():
        arrays[key].reshape(-1).view(np.uint8)[:] = copy.cpu().numpy()


@contextmanager
def thread_order(seed: int) -> Iterator[None]:
    """A GPU has its own."""
    if GPU:
        yield
        return
    emulate.order(emulate.load(), seed)
    try:
        yield
    finally:
        emulate.order(emulate.load(), 0)


def filled(shape: Any, dtype: type = np.float32) -> NDArray[Any]:
    """Memory that nobody has written yet."""
    return np.full(shape, 0x7B7B7B7B, np.int32).view(dtype)


@dataclass
class Head:
    """One head's logits [M, V], and everything that its kernels write. Each block is a copy with a
    stride of its own, so that nothing beside it can be read unnoticed."""

    z: F32
    targets: I32
    k: int = 0
    target_logit: F32 | None = None
    out: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows, vocab = self.z.shape
        self.stats = filled((rows, -(-vocab // TILE) * module().STATS_BYTES // 4))
        self.entries = filled((rows, self.k * module().ENTRY_BYTES // 4))
        self.seen = filled(rows)
        if self.target_logit is None:
            self.target_logit = filled(rows)
            z, ids = np.ascontiguousarray(self.z), self.targets
            call("take_logits", z=z, ids=ids, out=self.target_logit, rows=rows, stride=vocab)
        self.out = {name: filled(rows, np.int32) for name in ("rank", "ties", "finite")}
        self.out |= {name: filled(rows) for name in ("logprob", "entropy")}
        self.out["top_ids"] = filled((rows, self.k), np.int32)
        self.out["top_logprobs"] = filled((rows, self.k))

    def block(self, first: int, columns: int) -> F32:
        stride = -(-columns // 4) * 4
        part = np.full((len(self.z), stride), np.nan, np.float32)
        part[:, :columns] = self.z[:, first : first + columns]
        return part

    def tile(self, first: int, columns: int, other: Head | None) -> None:
        z = self.block(first, columns)
        assert z.ctypes.data % 16 == 0
        where = {"z": z, "stats": self.stats, "rows": len(z), "stride": z.shape[1]}
        where |= {"columns": columns, "first": first, "vocab": self.z.shape[1]}
        beside = {} if other is None else {"other": other.block(first, columns)}
        read = {"targets": self.targets, "target_logit": self.target_logit, "seen": self.seen}
        call("rank_tile", **where, **beside, **read)
        call("top_k_tile", **where, entries=self.entries, k=self.k)

    def finish(self, other: Head | None) -> int:
        mismatches = np.zeros(1, np.int32)
        beside = {}
        if other is not None:
            self.out["kl"] = filled(len(self.z))
            beside["other_stats"] = other.stats
        read = {"stats": self.stats, "target_logit": self.target_logit, "entries": self.entries}
        size = {"rows": len(self.z), "vocab": self.z.shape[1], "k": self.k}
        call(
            "rank_finish", **read, **beside, **size, **self.out,
            seen=self.seen, mismatches=mismatches,
        )  # fmt: skip
        return int(mismatches[0])

    @property
    def scores(self) -> Scores:
        return Scores(*(self.out[name] for name in Scores._fields))


def walk(heads: Sequence[Head], tiles: int) -> list[int]:
    """All blocks of so many tiles, then the end: of each head the rows that must run again."""
    others = [heads[1 - i] if len(heads) == 2 else None for i in range(len(heads))]
    vocab = heads[0].z.shape[1]
    for first in range(0, vocab, tiles * TILE):
        for head, other in zip(heads, others, strict=True):
            head.tile(first, min(tiles * TILE, vocab - first), other)
    return [head.finish(other) for head, other in zip(heads, others, strict=True)]
