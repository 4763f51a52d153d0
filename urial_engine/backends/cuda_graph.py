"""Decoding steps as graphs: a step of one row a sequence goes in; hidden states come out.

A small model's step has hundreds of launches, and each takes the host longer than the device. So
the launches are recorded once for a number of rows and a width of block tables, both rounded up,
and then replayed: the arrays of a step are copied into the place where the recorded kernels read
them, and how much of them counts stands among them. Rows that fill a step up write to a block of
their own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from ..kernels.attention.plan import FIELDS, I32
from ..kernels.attention.triton_kernel import Parts
from .cuda_device import Device
from .cuda_forward import BLOCK_SIZE, Forward, Rows
from .cuda_transfer import pack, unpack

MOST_ROWS = 128  # of a recorded step; and whose logits stand beside each other, [rows, V]
LEAST_BLOCKS = 16  # in a row of a block table
MOST_GRAPHS = 64
CAPTURE = threading.Lock()  # only one capture at a time, in all of the process
T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")


def rounded_rows(rows: int) -> int:
    """1, 2, 4, 8, 16, 24 ... 128."""
    return 1 << (rows - 1).bit_length() if rows <= 8 else -(-rows // 8) * 8


def rounded(count: int, least: int) -> int:
    """To a power of two."""
    return max(1 << (count - 1).bit_length(), least)


def rounded_top(top_k: int, vocab: int) -> int:
    """How many of the likeliest tokens a graph looks for."""
    return min(rounded(top_k, 1), vocab) if top_k else 0


class Recorder:
    """Records what is put on the device, in memory that all its graphs share: one runs at a time,
    and nothing that one leaves there is read after another has run."""

    def __init__(self, device: Device) -> None:
        self.device = device
        # A stream of its own: torch's belongs to whichever device recorded first. And a graph that
        # stays, because the memory goes with the last one.
        self._stream: Any = None
        self._anchor: Any = None

    def record(self, run: Callable[[], T]) -> Callable[[], T]:
        """A call that does again what `run` did, with what then stands where `run` read, and gives
        what `run` gave. Interpreted, it is `run` itself.

        It keeps `run`, and with it the memory that was there before: a graph does not. So `run`
        must not lead to who keeps the recording.
        """
        if self.device.interpreted:
            return run
        current = torch.cuda.current_stream(self.device.torch)
        with CAPTURE:
            if self._anchor is None:
                self._stream = torch.cuda.Stream(self.device.torch)  # type: ignore[no-untyped-call]
                anchor = torch.cuda.CUDAGraph()
                self._capture(anchor, None, partial(torch.zeros, 1, device=self.device.torch))
                self._anchor = anchor
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                run()  # kernels are compiled, libraries make their plans and take their memory
            graph = torch.cuda.CUDAGraph()
            out = self._capture(graph, self._anchor.pool(), run)

        def replay(_read_and_written: object = run) -> T:
            graph.replay()
            return out

        return replay

    def _capture(self, graph: Any, memory: Any, run: Callable[[], T]) -> T:
        current = torch.cuda.current_stream(self.device.torch)
        self._stream.synchronize()
        capture = torch.cuda.graph(
            graph, memory, stream=self._stream, capture_error_mode="thread_local"
        )
        try:
            with capture:
                return run()
        finally:
            torch.cuda.set_stream(current)  # a capture that fails leaves its own in place


class Kept(dict[K, V]):
    """At most MOST_GRAPHS recordings; the one that was used least lately gives way."""

    def find(self, key: K, make: Callable[[], V]) -> V:
        if key in self:
            self[key] = self.pop(key)
            return self[key]
        if len(self) == MOST_GRAPHS:
            del self[next(iter(self))]
        self[key] = make()
        return self[key]


@dataclass
class Recorded:
    """One graph and the memory that it reads."""

    shapes: dict[str, I32]  # arrays of zeros, as large as those of any such step
    inputs: torch.Tensor  # all of them on the device
    replay: Callable[[], Rows]


class DecodeGraphs:
    """Graphs over one pool of blocks, which has one block more than its owner gives out."""

    def __init__(self, forward: Forward, recorder: Recorder) -> None:
        self._forward, self._recorder = forward, recorder
        self._recorded: Kept[tuple[int, int], Recorded] = Kept()
        self._parts: Parts | None = None

    def run(self, step: Mapping[str, I32]) -> Rows | None:
        """Hidden states of a step that `Forward.prepare` made; None where it is not for a graph."""
        rows, blocks = step["tables"].shape
        if len(step["token_ids"]) != rows or rows > MOST_ROWS:
            return None
        key = rounded_rows(rows), rounded(blocks, LEAST_BLOCKS)
        one = self._recorded.find(key, lambda: self._record(*key))
        packed, _ = pack(self._fill(one.shapes, step), pinned=one.inputs.is_cuda)
        one.inputs.copy_(packed, non_blocking=True)
        out = one.replay()
        # Copies: who holds them may go on to use them when the graph has run again.
        return Rows(out.values[:rows].clone(), out.bad[:rows].clone())

    def _record(self, rows: int, blocks: int) -> Recorded:
        shapes = self._shapes(rows, blocks)
        packed, starts = pack(self._fill(shapes, {}), pinned=False)
        inputs = packed.to(self._recorder.device.torch)
        step = unpack(inputs, shapes, starts)
        parts, forward = self._parts_for(rows * self._splits(blocks)), self._forward
        replay = self._recorder.record(lambda: forward.run(step, parts))
        return Recorded(shapes, inputs, replay)

    def _splits(self, blocks: int) -> int:
        return -(-blocks // self._forward.shape.split)

    def _parts_for(self, slots: int) -> Parts:
        """Grown, never shrunk: graphs that were recorded with a smaller one keep that."""
        if self._parts is None or len(self._parts.values) < slots:
            self._parts = self._forward.parts(slots)
        return self._parts

    def _shapes(self, rows: int, blocks: int) -> dict[str, I32]:
        items = (rows * self._splits(blocks), FIELDS)
        sizes: dict[str, tuple[int, ...]] = {
            **dict.fromkeys(("token_ids", "positions", "slots", "first_slots"), (rows,)),
            "items": items,
            "how_many": (1,),
            "tables": (rows, blocks),
        }
        return {name: np.zeros(size, np.int32) for name, size in sizes.items()}

    def _fill(self, shapes: Mapping[str, I32], step: Mapping[str, I32]) -> dict[str, I32]:
        """The step's arrays in the corners of larger ones; rows beyond it do no harm."""
        filled = {name: array.copy() for name, array in shapes.items()}
        filled["slots"][:] = (len(self._forward.pool) - 1) * BLOCK_SIZE
        filled["first_slots"][:] = -1
        for name, array in step.items():
            filled[name][tuple(map(slice, array.shape))] = array
        return filled
