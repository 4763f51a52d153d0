"""The native CPU backend: weights go in once, packed for the instruction set; tokens go in, hidden
states and choices come out.

Everything heavy happens in `csrc/cpu`; this file hands over arrays and turns faults into errors
that carry a layer and a row.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..errors import CapacityError, ConfigError, NumericsError, ParameterError
from .base import F32, I32, Backend, Batch, HeadComparison, HeadScores, SampleBatch, Sampled
from .host_memory import available_memory

if TYPE_CHECKING:
    from ..config import ModelConfig
    from ..weights import Weights


def available_isas() -> tuple[str, ...]:
    """Instruction sets of this build that this machine runs, best first; "portable" is always the
    last."""
    return tuple(_native.available_isas())


def read_bandwidth(threads: int, size: int) -> float:
    """Bytes a second at which `threads` threads read `size` bytes over and over; takes 0.4 s.

    The size should be that of the work this is compared with: a cache may hold a part of it, for
    the one as for the other.
    """
    return float(_native.read_bandwidth(threads, 0.4, size))


class CpuBackend:
    """Implements `Backend`. Bit for bit the same at any batch, chunk and thread count; instruction
    sets differ from each other.

    Raises `ParameterError` for an instruction set, dtype or thread count that cannot be had.
    """

    name = "cpu"
    build: str = _native.BUILD
    block_size: int = _native.BLOCK_SIZE

    def __init__(
        self,
        weights: Weights,
        *,
        dtype: str = "auto",
        threads: int | None = None,
        isa: str = "auto",
    ) -> None:
        self.config: ModelConfig = weights.config
        self.variant = _choose_isa(isa)
        self.dtype = _choose_dtype(dtype, weights.dtype)
        self.threads = _choose_threads(threads)
        narrow = self.dtype == "bfloat16" and self.variant.endswith("_bf16")
        self.hidden_dtype = "bfloat16" if narrow else "float32"
        c = self.config
        _check_limits(c)
        shape = {
            "vocab": c.vocab_size, "hidden": c.hidden_size, "feed_forward": c.intermediate_size,
            "layers": c.num_layers, "heads": c.num_heads, "kv_heads": c.num_kv_heads,
            "head_dim": c.head_dim, "window": c.sliding_window or 0, "positions": c.max_positions,
            "norm_eps": c.rms_norm_eps, "tied": weights.tied,
        }  # fmt: skip
        frequencies = c.rope.inverse_frequencies(c.head_dim)
        try:
            self._model = _native.Model(shape, self.dtype, self.variant, self.threads, frequencies)
        except MemoryError as error:
            raise CapacityError("the system does not give the memory for the weights") from error
        weights.load(self._take, self.threads)
        self.block_bytes: int = self._model.block_bytes
        self.weight_bytes: int = self._model.weight_bytes
        self.max_top_k = c.vocab_size

    def _take(self, name: str, first: int, rows: NDArray[Any]) -> None:
        """Rows of a parameter, in Hugging Face's words: model.layers.0.mlp.up_proj.weight."""
        words = name.split(".")
        layer = int(words[2]) if words[1] == "layers" else self.config.num_layers
        part, kind = words[-2:]
        if "norm" in part:
            self._model.load_norm(layer, part != "input_layernorm", _f32(rows))
        elif kind == "bias":
            self._model.load_bias(part, layer, _f32(rows))
        else:
            self._model.load_matrix(part, layer, first, _raw(rows))

    def cache_room(self, max_batch: int, context: int, chunk: int) -> int:
        """See `Backend`."""
        return available_memory() // 2

    def allocate(self, blocks: int) -> None:
        """See `Backend`. The pool is reserved, not touched: pages come with the first token."""
        try:
            self._model.allocate(blocks)
        except MemoryError as error:
            raise CapacityError(
                f"the system does not give {blocks * self.block_bytes / 2**30:,.1f} GiB for the "
                "KV-cache; lower kv_cache_gib"
            ) from error

    def forward(self, batch: Batch) -> F32:
        """See `Backend`."""
        hidden, layer, row = self._model.forward(
            batch.token_ids, batch.positions, batch.sequences, batch.block_tables
        )
        if row >= 0:
            where = f"after layer {layer}" if layer >= 0 else "in the embedding"
            raise NumericsError(
                f"a value that is not finite appeared {where}, row {row} of the call",
                layer=layer,
                row=row,
            )
        return hidden  # type: ignore[no-any-return]

    def check(self, hidden: F32) -> None:
        """See `Backend`: `forward` has raised it."""

    def to_host(self, hidden: F32) -> F32:
        """See `Backend`."""
        return hidden.copy()

    def logits(self, hidden: F32) -> F32:
        """See `Backend`."""
        out, bad = self._model.logits(hidden)
        _check_head(bad)
        return out  # type: ignore[no-any-return]

    def next_tokens(self, hidden: F32, how: SampleBatch) -> Sampled:
        """See `Backend`."""
        *out, bad = self._model.next_tokens(hidden, how._asdict(), how.top_logprobs)
        _check_head(bad)
        return Sampled(*out)

    def score(self, hidden: F32, targets: I32, top_k: int) -> HeadScores:
        """See `Backend`."""
        scores, bad = self._model.score(hidden, targets, top_k)
        _check_head(bad)
        return HeadScores(*scores)

    def compare(
        self, hidden: F32, targets: I32, top_k: int, aligned: Backend, aligned_hidden: F32
    ) -> HeadComparison:
        """See `Backend`. Both heads must be on the CPU backend."""
        if not isinstance(aligned, CpuBackend):
            raise ParameterError(
                f"two heads are compared on one backend: this is cpu, the other {aligned.name}; "
                "open both engines on the same device"
            )
        mine, theirs, kl_aligned_base, kl_base_aligned, bad = self._model.compare(
            hidden, targets, top_k, aligned._model, aligned_hidden
        )
        _check_head(bad)
        return HeadComparison(
            HeadScores(*mine), HeadScores(*theirs), kl_aligned_base, kl_base_aligned
        )

    def copy_block(self, source: int, target: int) -> None:
        """See `Backend`."""
        self._model.copy_block(source, target)

    def read_block(self, block: int) -> NDArray[np.uint8]:
        """See `Backend`."""
        return self._model.read_block(block)  # type: ignore[no-any-return]

    def write_block(self, block: int, data: NDArray[np.uint8]) -> None:
        """See `Backend`."""
        self._model.write_block(block, data)

    def close(self) -> None:
        """See `Backend`. The backend cannot be used afterwards."""
        del self._model


def _check_limits(c: ModelConfig) -> None:
    """What the native code was written for. ConfigError by key and value."""
    if c.head_dim > _native.MAX_HEAD_SIZE:
        raise ConfigError(
            f"head_dim = {c.head_dim}: the cpu backend has heads of up to {_native.MAX_HEAD_SIZE}"
        )
    if c.num_heads // c.num_kv_heads > _native.MAX_GROUP:
        raise ConfigError(
            f"num_attention_heads = {c.num_heads} with num_key_value_heads = {c.num_kv_heads}: the "
            f"cpu backend has groups of up to {_native.MAX_GROUP} query heads"
        )


def _choose_isa(isa: str) -> str:
    have = available_isas()
    if isa == "auto":
        return have[0]
    if isa not in have:
        raise ParameterError(
            f"isa={isa!r} is not in this build or not on this machine; it has {', '.join(have)}"
        )
    return isa


def _choose_dtype(dtype: str, on_disk: str) -> str:
    if dtype == "auto":
        # fp16 has no fast arithmetic here; its values are rounded to bf16 unless the caller asks
        # for float32.
        return "float32" if on_disk == "float32" else "bfloat16"
    if dtype not in ("bfloat16", "float32"):
        raise ParameterError(
            f"dtype={dtype!r}: the cpu backend computes in 'bfloat16' or 'float32' (or 'auto')"
        )
    return dtype


def _choose_threads(threads: int | None) -> int:
    if threads is None:
        return (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
    if not 1 <= threads <= 1024:
        raise ParameterError(
            f"threads={threads}: give a number from 1 to 1024, or None for all cores"
        )
    return threads


def _raw(tensor: NDArray[Any]) -> NDArray[Any]:
    """The native side takes bfloat16 as its bits: numpy has no such type of its own."""
    return np.ascontiguousarray(
        tensor.view(np.uint16) if tensor.dtype.name == "bfloat16" else tensor
    )


def _f32(tensor: NDArray[Any]) -> F32:
    return np.ascontiguousarray(tensor, dtype=np.float32)


def _check_head(bad: int) -> None:
    if bad >= 0:
        raise NumericsError(
            f"the head's logits are not finite in row {bad} of the call", layer=None, row=bad
        )
