"""The GPU backend: weights go to the device once; tokens go in, choices and scores come out.

Torch holds the memory and multiplies matrices, Triton does the rest of the layers, csrc/cuda the
rest of the head. This file keeps the contract; the work is in the files beside it.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from .. import kernels
from ..errors import CapacityError, ConfigError, ParameterError, UrialError
from .base import F32, I32, Backend, Batch, HeadComparison, HeadScores, Hidden, SampleBatch, Sampled
from .cuda_choose import Chooser
from .cuda_device import Device
from .cuda_forward import BLOCK_SIZE, Forward, Rows
from .cuda_graph import CAPTURE, MOST_ROWS, DecodeGraphs, Recorder, rounded_rows
from .cuda_head import Head, check_finite, rows_finite
from .cuda_score import Scorer, compare
from .cuda_transfer import upload
from .cuda_weights import DeviceWeights
from .host_memory import available_memory

if TYPE_CHECKING:
    from ..config import ModelConfig
    from ..weights import Weights

MAX_HEAD_SIZE, MAX_GROUP = 256, 64
MAX_VOCAB = 1 << 20  # a token id's bits in the sampler
MOST_TOP = 1024  # a list that one warp keeps sorted, which takes as long as it is long
GIB = 1 << 30
RESERVE = GIB  # of the device, for graphs, the head's workspace, libraries and torch itself
SHARE = 0.5  # of what is left, for the cache where the caller does not say: another model may come


class CudaBackend:
    """Implements `Backend` on one GPU. Within a step a row's attention does not depend on others.
    Its matrix products do, in the last bits, unless `invariant`: a fixed order, and no library.
    """

    name = "cuda"
    threads = 1
    block_size = BLOCK_SIZE

    def __init__(
        self, weights: Weights, device: Device, *, dtype: str = "auto", invariant: bool = False
    ) -> None:
        self.config: ModelConfig = weights.config
        _check_limits(self.config)
        self.dtype = self.hidden_dtype = _choose_dtype(dtype, weights.dtype, device)
        self._device = device
        self.variant = f"sm_{device.architecture}{' invariant' if invariant else ''}"
        self.build = f"{_sources()} torch {version('torch')} triton {version('triton')}"
        c = self.config
        self._type: torch.dtype = getattr(torch, self.dtype)
        self._block = (c.num_layers, 2, c.num_kv_heads, BLOCK_SIZE, c.head_dim)
        self.block_bytes = prod(self._block) * self._type.itemsize
        with device.use():
            self._weights = DeviceWeights(weights, self._type, device.torch)
            self._weights.load()
            self._forward = Forward(c, self._weights, device, invariant=invariant)
            self.head = Head(self._weights.head, c.vocab_size, device, invariant=invariant)
            self._recorder = Recorder(device)
            self._chooser = Chooser(self.head, self._recorder)
            self._scorer = Scorer(self.head, self._recorder)
        self.weight_bytes = self._weights.bytes
        self.max_top_k = min(c.vocab_size, MOST_TOP)

    def cache_room(self, max_batch: int, context: int, chunk: int) -> int:
        """See `Backend`."""
        if self._device.interpreted:
            return available_memory() // 2
        free, _ = torch.cuda.mem_get_info(self._device.torch)
        taken = RESERVE + self._step_bytes(max_batch, context, chunk)
        return int(max(free - taken, 0) * SHARE)

    def _step_bytes(self, max_batch: int, context: int, chunk: int) -> int:
        """Beside weights and cache: partial results of attention (of the graphs, and of a step that
        also reads prompts), logits of the rows that choose, angles, and what layers leave."""
        c, item, rows = self.config, self._type.itemsize, rounded_rows(min(max_batch, MOST_ROWS))
        slots = max(rows, max_batch) * -(-context // (BLOCK_SIZE * self._forward.shape.split))
        parts = 2 * slots * c.num_heads * (c.head_dim + 2) * 4
        logits = rows * len(self.head.weight) * 4
        angles = 2 * c.max_positions * c.head_dim // 2 * 4
        heads = (2 * c.num_heads + 2 * c.num_kv_heads) * c.head_dim
        row = (8 + 2 * item) * c.hidden_size + 2 * item * heads + 3 * item * c.intermediate_size
        return parts + logits + angles + (chunk + max_batch) * row

    def allocate(self, blocks: int) -> None:
        """See `Backend`."""
        with self._device.use():
            self._graphs = DecodeGraphs(self._forward, self._recorder)  # they know the pool
            self._forward.pool = torch.empty(0)
            # One more than is given out, for rows that only fill a graph up.
            shape = (blocks + 1, *self._block)
            try:
                place = self._device.torch
                self._forward.pool = torch.zeros(shape, dtype=self._type, device=place)
            except torch.OutOfMemoryError as error:
                size = blocks * self.block_bytes / GIB
                raise CapacityError(
                    f"{self._device.name} does not give {size:,.1f} GiB for the KV-cache; lower "
                    "kv_cache_gib"
                ) from error

    def forward(self, batch: Batch) -> Rows:
        """See `Backend`. Returns before the device is done: what is not finite shows in an exit."""
        with self._device.use():
            step, slots = self._forward.prepare(batch)
            rows = self._graphs.run(step)
            if rows is None:
                on_device = upload(step, self._device.torch)
                rows = self._forward.run(on_device, self._forward.parts(slots))
            return rows

    def check(self, hidden: Rows) -> None:
        """See `Backend`. Waits for the device."""
        with self._device.use():
            bad = hidden.bad.cpu().numpy()
        check_finite(bad, np.ones(len(bad), np.bool_), 0)

    def to_host(self, hidden: Hidden) -> F32:
        """See `Backend`."""
        with self._device.use():
            rows = self.head.rows(hidden)
            values: F32 = rows.values.to("cpu", torch.float32, copy=True).numpy()
            check_finite(rows.bad.cpu().numpy(), rows_finite(values), 0)
        return values

    def logits(self, hidden: Hidden) -> F32:
        """See `Backend`."""
        with self._device.use():
            return self.head.logits(self.head.rows(hidden))

    def next_tokens(self, hidden: Hidden, how: SampleBatch) -> Sampled:
        """See `Backend`."""
        with self._device.use():
            return self._chooser.next_tokens(self.head.rows(hidden), how)

    def score(self, hidden: Hidden, targets: I32, top_k: int) -> HeadScores:
        """See `Backend`."""
        with self._device.use():
            return self._scorer.score(hidden, targets, top_k)

    def compare(
        self, hidden: Hidden, targets: I32, top_k: int, aligned: Backend, aligned_hidden: Hidden
    ) -> HeadComparison:
        """See `Backend`. Both heads must be on the same GPU."""
        if not isinstance(aligned, CudaBackend) or aligned._device != self._device:
            raise ParameterError(
                f"two heads are compared on one device: this is {self._device.name}, the other "
                f"{aligned.name}; open both engines on the same device"
            )
        with self._device.use():
            return compare((self.head, aligned.head), (hidden, aligned_hidden), targets, top_k)

    def copy_block(self, source: int, target: int) -> None:
        """See `Backend`."""
        with self._device.use():
            self._forward.pool[target].copy_(self._forward.pool[source])

    def read_block(self, block: int) -> NDArray[np.uint8]:
        """See `Backend`."""
        with self._device.use():
            host = self._forward.pool[block].flatten().view(torch.uint8).cpu()
        return np.array(host.numpy())

    def write_block(self, block: int, data: NDArray[np.uint8]) -> None:
        """See `Backend`."""
        with self._device.use():
            source = torch.from_numpy(np.ascontiguousarray(data))
            self._forward.pool[block].flatten().view(torch.uint8).copy_(source)

    def close(self) -> None:
        """See `Backend`. The backend cannot be used afterwards."""
        device = self._device
        for name in ("_graphs", "_chooser", "_scorer", "_recorder", "_forward", "_weights", "head"):
            self.__dict__.pop(name, None)
        if not device.interpreted:
            # A lost device has nothing left to free.
            with suppress(UrialError, RuntimeError), device.use(), CAPTURE:
                torch.cuda.empty_cache()


def _sources() -> str:
    """A hash of everything that decides the bits of a result, but for the libraries."""
    here = Path(__file__).parent
    files = [*here.glob("cuda*.py"), *(Path(kernels.__path__[0])).rglob("*.py")]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files)))
    return digest.hexdigest()[:16]


def _check_limits(c: ModelConfig) -> None:
    """What the kernels were written for. ConfigError by key and value."""
    if c.head_dim > MAX_HEAD_SIZE:
        raise ConfigError(
            f"head_dim = {c.head_dim}: the cuda backend has heads of up to {MAX_HEAD_SIZE}"
        )
    if c.num_heads // c.num_kv_heads > MAX_GROUP:
        raise ConfigError(
            f"num_attention_heads = {c.num_heads} with num_key_value_heads = {c.num_kv_heads}: the "
            f"cuda backend has groups of up to {MAX_GROUP} query heads"
        )
    if c.vocab_size > MAX_VOCAB:
        raise ConfigError(
            f"vocab_size = {c.vocab_size}: the cuda backend has vocabularies of up to {MAX_VOCAB}"
        )


def _choose_dtype(dtype: str, on_disk: str, device: Device) -> str:
    """A checkpoint in 16 bits stays what it is; one in 32 is rounded to bf16, which has its range.

    The interpreter's product of two bf16 matrices is wrong, so it is never asked for one.
    """
    if dtype == "auto":
        if device.interpreted:
            return "float32"
        return on_disk if on_disk in ("bfloat16", "float16") else "bfloat16"
    known = ("float16", "float32") if device.interpreted else ("bfloat16", "float16", "float32")
    if dtype not in known:
        raise ParameterError(f"dtype={dtype!r}: {device.name} has {', '.join(known)} (or 'auto')")
    return dtype
