"""Weights on the device: a checkpoint's parameters go in; fused matrices come out.

What is multiplied with the same rows is one matrix: queries, keys and values; gate and up. The head
is padded with zeros to whole tiles, so that every tile is the same product.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..weights import EMBEDDING, FINAL_NORM, HEAD, LAYER

if TYPE_CHECKING:
    import torch

    from ..weights import Weights

# The head has whole tiles of as many columns as are ever one product of it.
HEAD_TILE = 4096


class Linear(NamedTuple):
    weight: torch.Tensor  # [out, in]
    bias: torch.Tensor | None  # [out]


class Layer(NamedTuple):
    input_norm: torch.Tensor  # [C] fp32, as the other norm
    qkv: Linear  # [(H + 2 K) D, C]
    o: Linear  # [C, H D]
    post_norm: torch.Tensor
    gate_up: Linear  # [2 F, C]
    down: Linear  # [C, F]


class DeviceWeights:
    """`layers`, `final_norm`, `embedding` [V, C] and `head` [V rounded up, C] on one device."""

    def __init__(self, weights: Weights, dtype: torch.dtype, device: torch.device) -> None:
        """Allocates everything; `load` fills it."""
        import torch

        self._weights, self._dtype, self._device = weights, dtype, device
        self._places: dict[str, torch.Tensor] = {}  # by the name of a parameter
        self.layers = [self._layer(i) for i in range(weights.config.num_layers)]
        self.final_norm = self._fused(FINAL_NORM, dtype=torch.float32)
        vocab, hidden = weights.shapes[EMBEDDING]
        self.head = torch.zeros(
            -(-vocab // HEAD_TILE) * HEAD_TILE, hidden, dtype=dtype, device=device
        )
        self._places[EMBEDDING if weights.tied else HEAD] = self.head[:vocab]
        self.embedding = self.head[:vocab] if weights.tied else self._fused(EMBEDDING)
        mine = [self.embedding, self.head, *self._places.values()]
        owners = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in mine}
        self.bytes = sum(owners.values())

    def load(self) -> None:
        """Read the checkpoint to its end. Slices arrive from several threads."""
        self._weights.load(self._take, threads=4)

    def _take(self, name: str, first: int, rows: NDArray[Any]) -> None:
        """A copy that is over when this returns: `rows` is a buffer that is filled again."""
        import torch

        bits = rows.view(np.uint16) if rows.dtype.name == "bfloat16" else rows
        source = torch.from_numpy(bits)
        source = source.view(torch.bfloat16) if bits is not rows else source
        self._places[name][first : first + len(rows)].copy_(source)

    def _layer(self, index: int) -> Layer:
        import torch

        def norm(part: str) -> torch.Tensor:
            name = LAYER.format(layer=index, part=f"{part}.weight")
            return self._fused(name, dtype=torch.float32)

        def linear(block: str, *parts: str) -> Linear:
            names = [LAYER.format(layer=index, part=f"{block}.{part}_proj") for part in parts]
            biased = f"{names[0]}.bias" in self._weights.shapes
            bias = self._fused(*(f"{name}.bias" for name in names)) if biased else None
            return Linear(self._fused(*(f"{name}.weight" for name in names)), bias)

        return Layer(
            norm("input_layernorm"),
            linear("self_attn", "q", "k", "v"),
            linear("self_attn", "o"),
            norm("post_attention_layernorm"),
            linear("mlp", "gate", "up"),
            linear("mlp", "down"),
        )

    def _fused(self, *names: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """These parameters below each other, in one tensor; each knows its rows of it."""
        import torch

        shapes = [self._weights.shapes[name] for name in names]
        whole = torch.empty(
            (sum(shape[0] for shape in shapes), *shapes[0][1:]),
            dtype=dtype or self._dtype,
            device=self._device,
        )
        rows = [shape[0] for shape in shapes]
        self._places |= zip(names, torch.split(whole, rows), strict=True)
        return whole
