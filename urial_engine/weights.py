"""An open checkpoint goes in; every parameter of the model comes out once, in the dtype on disk.

Loading is strict: a parameter that is missing, left over, or of the wrong shape or type is an
error, and one error lists them all. Letters: C hidden, F feed-forward, H query heads, K key/value
heads, D head size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from .checkpoint import DTYPES, Checkpoint, some
from .config import ModelConfig
from .errors import CheckpointError

Shapes = dict[str, tuple[int, ...]]

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"
LAYER = "model.layers.{layer}.{part}"

# What is read, hashed and packed at a time: it stays in a core's cache from the one to the next.
SLICE = 1 << 20  # bytes
ROWS = 32  # and whole panels of the packed matrix

# Old checkpoints carry RoPE's frequencies, which follow from the configuration.
_HARMLESS = ".rotary_emb.inv_freq"


def parameter_shapes(config: ModelConfig, tied: bool) -> Shapes:
    """Hugging Face's name and shape of every parameter, in the order of the computation."""
    shapes: Shapes = {EMBEDDING: (config.vocab_size, config.hidden_size)}
    for layer in range(config.num_layers):
        for part, shape in _layer_shapes(config).items():
            shapes[LAYER.format(layer=layer, part=part)] = shape
    shapes[FINAL_NORM] = (config.hidden_size,)
    return shapes if tied else {**shapes, HEAD: (config.vocab_size, config.hidden_size)}


def _layer_shapes(config: ModelConfig) -> Shapes:
    c, f, d = config.hidden_size, config.intermediate_size, config.head_dim
    q, kv = config.num_heads * d, config.num_kv_heads * d
    attention = {"q_proj": (q, c), "k_proj": (kv, c), "v_proj": (kv, c), "o_proj": (c, q)}
    mlp = {"gate_proj": (f, c), "up_proj": (f, c), "down_proj": (c, f)}
    return {
        "input_layernorm.weight": (c,),
        **_linear("self_attn", attention, config.attention_bias),
        "post_attention_layernorm.weight": (c,),
        **_linear("mlp", mlp, config.mlp_bias),
    }


def _linear(block: str, weights: dict[str, tuple[int, int]], bias: bool) -> Shapes:
    shapes: Shapes = {}
    for name, shape in weights.items():
        shapes[f"{block}.{name}.weight"] = shape
        if bias:
            shapes[f"{block}.{name}.bias"] = shape[:1]
    return shapes


class Weights:
    """The parameters of one model, each read exactly once. The fingerprint is of all that was."""

    def __init__(self, checkpoint: Checkpoint, tied: bool, tied_reason: str) -> None:
        """For `open`."""
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.tied = tied  # the head is the embedding: there is no lm_head.weight to read
        self.tied_reason = tied_reason
        self.shapes = parameter_shapes(self.config, tied)
        self.dtype = _main_dtype(checkpoint, self.shapes)
        self._digests: dict[tuple[str, int], bytes] = {}  # of each slice, by its first row

    @classmethod
    def open(cls, checkpoint: Checkpoint) -> Weights:
        """Raises `CheckpointError` with every name that does not fit `config.json`."""
        tied, reason = _resolve_head(checkpoint)
        expected = parameter_shapes(checkpoint.config, tied)
        ignored = {HEAD} if tied else set()
        found = {name: checkpoint.info(name) for name in checkpoint.names() if name not in ignored}
        problems = mismatches(expected, {n: (i.dtype, i.shape) for n, i in found.items()})
        if HEAD in expected and HEAD not in found:
            problems.append(reason)
        if problems:
            raise CheckpointError(
                f"{checkpoint.folder}: the weights do not fit config.json: {'; '.join(problems)}"
            )
        return cls(checkpoint, tied, reason)

    def read(self, name: str) -> NDArray[Any]:
        """The parameter of this Hugging Face name, [out, in] or [out], in the dtype on disk."""
        if name not in self.shapes or (name, 0) in self._digests:
            why = "was read already" if name in self.shapes else "is no parameter of this model"
            raise CheckpointError(f"{self.checkpoint.folder}: {name} {why}")
        return np.concatenate([self._read(name, *rows) for rows in self._slices(name)])

    def load(self, take: Callable[[str, int, NDArray[Any]], None], threads: int) -> None:
        """Read every parameter by `threads` threads, which pass it on in slices of whole rows.

        take(name, first row, rows): `rows` is the thread's buffer, valid during the call. The order
        is that of the files, which disks serve fastest; while one thread packs another reads.
        """
        names = [name for name in self.checkpoint.names() if name in self.shapes]
        slices = iter([(name, *rows) for name in names for rows in self._slices(name)])

        def work() -> None:
            buffer = np.empty(SLICE, np.uint8)
            for name, first, end in slices:  # the threads share it: each slice comes out once
                take(name, first, self._read(name, first, end, buffer))

        with ThreadPoolExecutor(threads) as pool:
            try:
                for worker in [pool.submit(work) for _ in range(threads)]:
                    worker.result()
            finally:
                list(slices)  # after an error, or Ctrl-C, nobody begins with another
        self.finish()

    def _slices(self, name: str) -> list[tuple[int, int]]:
        """First and end of its rows, about SLICE bytes each."""
        count, *row = self.shapes[name]
        row_bytes = math.prod(row) * DTYPES[self.checkpoint.info(name).dtype].itemsize
        step = SLICE // row_bytes // ROWS * ROWS or ROWS
        return [(first, min(first + step, count)) for first in range(0, count, step)]

    def _read(
        self, name: str, first: int, end: int, buffer: NDArray[np.uint8] | None = None
    ) -> NDArray[Any]:
        rows = self.checkpoint.rows(name, first, end, buffer)
        about = f"{name}\0{first}\0{rows.dtype.name}\0{self.shapes[name]}\0"
        digest = xxhash.xxh3_128(about.encode())
        digest.update(rows.reshape(-1).view(np.uint8).data)
        self._digests[name, first] = digest.digest()
        return rows

    def finish(self) -> None:
        """Raises `CheckpointError` where a parameter was never read, so never loaded."""
        if unread := [name for name in self.shapes if (name, 0) not in self._digests]:
            raise CheckpointError(f"{self.checkpoint.folder}: never loaded: {some(unread)}")

    @property
    def fingerprint(self) -> str:
        """xxh3-128 over name, dtype, shape and bytes of every parameter, in the order of names."""
        self.finish()
        return xxhash.xxh3_128(
            b"".join(self._digests[key] for key in sorted(self._digests))
        ).hexdigest()


def mismatches(expected: Shapes, found: dict[str, tuple[str, tuple[int, ...]]]) -> list[str]:
    """What sets found (dtype, shape) apart from expected shapes, in words; empty if nothing."""
    missing = [name for name in expected if name not in found]
    left_over = [n for n in found if n not in expected and not n.endswith(_HARMLESS)]
    wrong = [
        f"{name} is {dtype} {list(shape)} where {' or '.join(DTYPES)} {list(expected[name])} is due"
        for name, (dtype, shape) in found.items()
        if name in expected and (dtype not in DTYPES or shape != expected[name])
    ]
    kinds = {"missing": missing, "left over": left_over, "wrong": wrong}
    return [f"{len(names)} {kind}: {some(names)}" for kind, names in kinds.items() if names]


def _resolve_head(checkpoint: Checkpoint) -> tuple[bool, str]:
    """(tied, why), decided as transformers decides it."""
    says, present = checkpoint.config.tie_word_embeddings, HEAD in checkpoint.names()
    told = "does not say" if says is None else f"says tie_word_embeddings = {str(says).lower()}"
    if not present:
        return says is not False, f"config.json {told}, and there is no {HEAD}"
    if not says:
        return False, f"config.json {told}, and there is a {HEAD}"
    if _same(checkpoint):
        return True, f"config.json {told}, and {HEAD} repeats the embedding"
    return False, f"config.json {told}, but {HEAD} differs from the embedding"


def _same(checkpoint: Checkpoint) -> bool:
    """Whether head and embedding hold the same numbers. What does not compare is not the same."""
    if EMBEDDING not in checkpoint.names():
        return False
    pair = [checkpoint.info(name) for name in (EMBEDDING, HEAD)]
    if pair[0].shape != pair[1].shape or not all(info.dtype in DTYPES for info in pair):
        return False
    for first in range(0, pair[0].shape[0], 4096):  # whole ones could be gigabytes
        embedding, head = (checkpoint.rows(n, first, first + 4096) for n in (EMBEDDING, HEAD))
        if not np.array_equal(embedding.astype(np.float32), head.astype(np.float32)):
            return False
    return True


def _main_dtype(checkpoint: Checkpoint, shapes: Shapes) -> str:
    """The dtype that most elements of the matrices have on disk."""
    elements = dict.fromkeys(DTYPES, 0)
    for name, shape in shapes.items():
        if len(shape) == 2:
            elements[checkpoint.info(name).dtype] += shape[0] * shape[1]
    return max(elements, key=lambda dtype: elements[dtype])
