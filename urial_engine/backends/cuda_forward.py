"""The layers on the device: the arrays of a step go in; hidden states come out, and new keys and
values stand in the cache. Nothing here waits for the device.

Letters: T rows, B sequences, C hidden, H query heads, K key/value heads, D head size, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from ..kernels.attention.plan import I32, Shape, plan
from ..kernels.attention.tiles import split, tile
from ..kernels.attention.triton_kernel import Parts, Work, attention
from ..kernels.matmul.triton_kernel import matmul
from ..kernels.rmsnorm.triton_kernel import add_rmsnorm
from ..kernels.rope.triton_kernel import rope
from ..kernels.silu_mul.triton_kernel import silu_mul
from .base import Batch
from .cuda_device import Device
from .cuda_weights import DeviceWeights, Linear

if TYPE_CHECKING:
    from ..config import ModelConfig

BLOCK_SIZE = 64  # tokens
FINITE = np.iinfo(np.int32).max  # in place of the first layer after which a row is not finite


@dataclass(frozen=True)
class Rows:
    """`Hidden` on the device."""

    values: torch.Tensor  # [T, C]
    bad: torch.Tensor  # [T] int32: the first layer after which the row is not finite, or FINITE

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice | list[int]) -> Rows:
        if isinstance(rows, slice):
            return Rows(self.values[rows], self.bad[rows])
        index = torch.tensor(rows, dtype=torch.int64, pin_memory=self.values.is_cuda)
        index = index.to(self.values.device, non_blocking=True)
        return Rows(self.values.index_select(0, index), self.bad.index_select(0, index))


class Forward:
    """The layers of one model over one pool of blocks, [blocks, L, 2, K, 64, D]."""

    def __init__(
        self, config: ModelConfig, weights: DeviceWeights, device: Device, *, invariant: bool
    ) -> None:
        self._config, self._weights, self._device = config, weights, device
        self._invariant = invariant
        size, group = weights.embedding.element_size(), config.num_heads // config.num_kv_heads
        self._tile = tile(device.architecture, config.head_dim, size, group)
        self.shape = Shape(
            group=group,
            block_size=BLOCK_SIZE,
            split=split(invariant=invariant),
            queries=self._tile.queries,
            window=config.sliding_window or 0,
        )
        self._tables: tuple[torch.Tensor, torch.Tensor] | None = None
        self.pool = torch.empty(0)

    def prepare(self, batch: Batch) -> tuple[dict[str, I32], int]:
        """Everything that the device must be told about a step, all int32, and how many slots its
        attention needs."""
        work = plan(batch.positions, batch.sequences, batch.block_tables, self.shape)
        index, place = np.divmod(batch.positions, BLOCK_SIZE)  # [T] each
        blocks = batch.block_tables[batch.sequences, index]  # [T]
        step = {
            "token_ids": batch.token_ids,
            "positions": batch.positions,
            "slots": blocks * BLOCK_SIZE + place,
            "first_slots": work.first_slots,
            "items": work.items,
            "how_many": np.array([len(work.items)], np.int32),
            "tables": batch.block_tables,
        }
        return step, work.slots

    def parts(self, slots: int) -> Parts:
        """Memory for as many partial results of attention."""
        heads, device = self._config.num_heads, self._device.torch
        sizes = self._config.head_dim, 2
        return Parts(
            *(torch.empty(slots, heads, n, dtype=torch.float32, device=device) for n in sizes)
        )

    def run(self, step: Mapping[str, torch.Tensor], parts: Parts) -> Rows:
        """All layers and the final norm. `step`: what `prepare` made, on the device."""
        config, weights = self._config, self._weights
        x = weights.embedding.index_select(0, step["token_ids"]).float()  # [T, C]
        bad = torch.full_like(step["token_ids"], FINITE)  # [T]
        delta: torch.Tensor | None = None

        def norm(weight: torch.Tensor, layer: int) -> torch.Tensor:
            epsilon, dtype = config.rms_norm_eps, weights.embedding.dtype
            return add_rmsnorm(x, delta, weight, epsilon, bad, layer, dtype)

        for index, layer in enumerate(weights.layers):
            normed = norm(layer.input_norm, index - 1)  # what the layer before left
            delta = self._attend(self._linear(normed, layer.qkv), step, parts, bad, index)
            delta = self._linear(delta, layer.o)
            hidden = silu_mul(self._linear(norm(layer.post_norm, index), layer.gate_up))
            delta = self._linear(hidden, layer.down)
        return Rows(norm(weights.final_norm, config.num_layers - 1), bad)

    def _attend(
        self,
        qkv: torch.Tensor,
        step: Mapping[str, torch.Tensor],
        parts: Parts,
        bad: torch.Tensor,
        layer: int,
    ) -> torch.Tensor:
        """qkv [T, (H + 2 K) D] -> [T, H D]."""
        cache = self.pool[:, layer]  # [blocks, 2, K, 64, D]
        positions = step["positions"]
        q = rope(qkv, self._rotary(), positions, step["slots"], cache, bad, layer)
        work = Work(*(step[name] for name in Work._fields))
        out = attention(
            q,
            cache,
            work,
            parts,
            tile=self._tile,
            split=self.shape.split,
            window=self.shape.window,
            programs=4 * self._device.processors,
        )
        return out.flatten(1)

    def _linear(self, x: torch.Tensor, linear: Linear) -> torch.Tensor:
        """[T, in] -> [T, out]."""
        if self._invariant:
            return matmul(x, linear.weight, linear.bias)
        return F.linear(x, linear.weight, linear.bias)

    def _rotary(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine of every position of the context, [positions, D/2]."""
        if self._tables is None:
            config = self._config
            cos, sin = config.rope.tables(config.head_dim, config.max_positions)
            device = self._device.torch
            self._tables = torch.from_numpy(cos).to(device), torch.from_numpy(sin).to(device)
        return self._tables
