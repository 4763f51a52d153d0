"""The yardstick: weights go in; a `Backend` in plain numpy comes out.

Clarity first: each operation is its kernel's reference, each sequence is attended by itself. Hidden
states keep the backend's own precision; logits are fp32, as the definition of rank asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import NumericsError, ParameterError
from ..kernels import attention, matmul, rank, rmsnorm, rope, sample, silu_mul
from ..weights import EMBEDDING, FINAL_NORM, HEAD, LAYER, parameter_shapes
from .base import F32, I32, Backend, Batch, HeadComparison, HeadScores, SampleBatch, Sampled
from .host_memory import available_memory

if TYPE_CHECKING:
    from ..weights import Weights

Array = NDArray[Any]  # of the backend's own dtype
PER_ROW = "temperature top_k top_p min_p repetition_penalty presence_penalty frequency_penalty"
CARRIED = "penalty_ids penalty_repeats penalty_counts"


class ReferenceBackend:
    """`Backend` in numpy: weights, cache and every step between are held in `dtype`."""

    name = "reference"
    build = f"numpy {np.__version__}"
    variant = "numpy"
    threads = 1
    block_size = 64

    def __init__(self, weights: Weights, *, dtype: str = "float64") -> None:
        """`dtype` is "float64" or "float32", else ParameterError. Reads `weights` to the end."""
        if dtype not in ("float64", "float32"):
            raise ParameterError(f'dtype="{dtype}": "reference" has "float64" and "float32"')
        self.dtype = self.hidden_dtype = dtype
        self.config = config = weights.config
        self.max_top_k = config.vocab_size
        names = parameter_shapes(config, weights.tied)
        self._weights = {name: weights.read(name).astype(dtype) for name in names}
        weights.finish()
        self._head = EMBEDDING if weights.tied else HEAD  # [V, C]
        self.weight_bytes = sum(w.nbytes for w in self._weights.values())
        self._block = (config.num_layers, 2, self.block_size, config.num_kv_heads, config.head_dim)
        self.block_bytes = int(np.prod(self._block)) * np.dtype(dtype).itemsize
        self.allocate(0)

    def cache_room(self, max_batch: int, context: int, chunk: int) -> int:
        return available_memory() // 2

    def allocate(self, blocks: int) -> None:
        # [blocks, L, 2, block_size, K, D]
        self._pool = np.zeros((blocks, *self._block), self.dtype)

    @np.errstate(over="ignore", invalid="ignore")  # checked by hand, to name layer and row
    def forward(self, batch: Batch) -> Array:
        """-> [T, C] in the backend's dtype."""
        config = self.config
        tables = config.rope.tables(config.head_dim, int(batch.positions.max()) + 1)
        angles = tables[0][batch.positions], tables[1][batch.positions]  # [T, D/2] cos and sin
        x = self._weights[EMBEDDING][batch.token_ids]  # [T, C]
        for layer in range(config.num_layers):
            at = LAYER.format(layer=layer, part="")
            x = x + self._attend(self._norm(x, f"{at}input_layernorm.weight"), layer, batch, angles)
            x = x + self._feed(self._norm(x, f"{at}post_attention_layernorm.weight"), layer)
            x = _require_finite(x, layer, f"layer {layer}")
        return _require_finite(self._norm(x, FINAL_NORM), None, "the final norm")

    def _norm(self, x: Array, name: str) -> Array:
        return rmsnorm.reference(x, self._weights[name], self.config.rms_norm_eps)

    def _linear(self, x: Array, name: str) -> Array:
        weight, bias = self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias")
        return matmul.reference(x, weight, bias)

    def _attend(self, x: Array, layer: int, batch: Batch, angles: tuple[F32, F32]) -> Array:
        """[T, C] -> [T, C]; the rows' keys and values are written before any row reads."""
        name = LAYER.format(layer=layer, part="self_attn")
        q, k, v = (  # [T, H, D], [T, K, D] twice
            self._linear(x, f"{name}.{which}_proj").reshape(len(x), -1, self.config.head_dim)
            for which in "qkv"
        )
        q, k = rope.reference(q, *angles), rope.reference(k, *angles)
        _require_finite(np.hstack([k, v]).reshape(len(x), -1), layer, f"layer {layer}")
        index, slots = np.divmod(batch.positions, self.block_size)  # [T] each
        blocks = batch.block_tables[batch.sequences, index]  # [T]
        self._pool[blocks, layer, 0, slots] = k
        self._pool[blocks, layer, 1, slots] = v
        out, window = np.empty_like(q), self.config.sliding_window  # [T, H, D]
        for sequence in np.unique(batch.sequences):
            rows = batch.sequences == sequence
            positions = batch.positions[rows]
            table = batch.block_tables[sequence, : positions.max() // self.block_size + 1]
            cache = self._pool[table, layer].swapaxes(0, 1)  # [2, blocks, block_size, K, D]
            keys, values = cache.reshape(2, -1, *k.shape[1:])[:, : positions.max() + 1]  # [S, K, D]
            out[rows] = attention.reference(q[rows], keys, values, positions, window)
        return self._linear(out.reshape(len(x), -1), f"{name}.o_proj")

    def _feed(self, x: Array, layer: int) -> Array:
        """[T, C] -> [T, C]."""
        name = LAYER.format(layer=layer, part="mlp")
        gate, up = self._linear(x, f"{name}.gate_proj"), self._linear(x, f"{name}.up_proj")
        return self._linear(silu_mul.reference(gate, up), f"{name}.down_proj")

    def check(self, hidden: Array) -> None:
        """`forward` has raised it."""

    def to_host(self, hidden: Array) -> Array:
        return hidden.copy()

    def raw_logits(self, hidden: Array) -> Array:
        """[M, C] -> [M, V] in the backend's dtype: for tests that look beyond fp32."""
        return matmul.reference(hidden.astype(self.dtype), self._weights[self._head])

    @np.errstate(over="ignore", invalid="ignore")
    def logits(self, hidden: Array) -> F32:
        return _require_finite(self.raw_logits(hidden).astype(np.float32), None, "the head")

    def next_tokens(self, hidden: Array, how: SampleBatch) -> Sampled:
        z = self.logits(hidden)  # [M, V]
        ids = np.array([_choose(z[row], how, row) for row in range(len(z))], np.int32)  # [M]
        s = _score(z, ids, how.top_logprobs)
        return Sampled(ids, s.logprob, s.rank, s.top_ids, s.top_logprobs)

    def score(self, hidden: Array, targets: I32, top_k: int) -> HeadScores:
        return _score(self.logits(hidden), targets, top_k)

    def compare(
        self, hidden: Array, targets: I32, top_k: int, aligned: Backend, aligned_hidden: Array
    ) -> HeadComparison:
        z, z_aligned = self.logits(hidden), aligned.logits(aligned_hidden)  # [M, V] each
        kl = rank.compare(z.astype(np.float64), z_aligned.astype(np.float64))  # [M] twice
        scores = _score(z, targets, top_k), _score(z_aligned, targets, top_k)
        return HeadComparison(*scores, kl[0].astype(np.float32), kl[1].astype(np.float32))

    def copy_block(self, source: int, target: int) -> None:
        self._pool[target] = self._pool[source]

    def read_block(self, block: int) -> NDArray[np.uint8]:
        return np.array(self._pool[block].reshape(-1).view(np.uint8))

    def write_block(self, block: int, data: NDArray[np.uint8]) -> None:
        self._pool[block].reshape(-1).view(np.uint8)[:] = data

    def close(self) -> None:
        self._weights = {}
        self.allocate(0)


def _require_finite(x: Array, layer: int | None, where: str) -> Array:
    """x [rows, n] itself. NumericsError names the first row that holds a NaN or an infinity."""
    finite = np.isfinite(x).all(axis=-1)  # [rows]
    if finite.all():
        return x
    row = int(np.argmin(finite))
    hint = "check the checkpoint's weights for NaN and inf"
    raise NumericsError(f"{where}: not finite in row {row}; {hint}", layer=layer, row=row)


def _choose(z: F32, how: SampleBatch, row: int) -> int:
    """One token from one row of logits [V]."""
    of_row: dict[str, Any] = {name: getattr(how, name)[row] for name in PER_ROW.split()}
    carried = slice(how.penalty_offsets[row], how.penalty_offsets[row + 1])
    of_row |= {name: getattr(how, name)[carried] for name in CARRIED.split()}
    of_row["banned_ids"] = how.banned_ids[how.banned_offsets[row] : how.banned_offsets[row + 1]]
    u = sample.uniform(int(how.seed[row]), int(how.sample[row]), int(how.position[row]))
    return sample.reference(z, u, **of_row)


def _score(z: F32, targets: I32, top_k: int) -> HeadScores:
    """Ranks are exact on the fp32 logits [M, V]; sums are taken in fp64 and given as fp32."""
    scores: dict[str, Any] = rank.reference(z.astype(np.float64), targets, top_k)._asdict()
    for name in ("logprob", "entropy", "top_logprobs"):
        scores[name] = scores[name].astype(np.float32)
    return HeadScores(**scores)
