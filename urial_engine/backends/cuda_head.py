"""The head on the device: a matrix, its products with hidden states, and launches of the kernels of
csrc/cuda, which say what the logits mean (`cuda_choose`, `cuda_score`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import NumericsError
from ..kernels.matmul.triton_kernel import matmul
from .base import F32, I32, Hidden
from .cuda_device import Device
from .cuda_forward import FINITE, Rows
from .cuda_graph import MOST_ROWS


class Head:
    """The last matrix of a model: `weight` [V rounded up to whole tiles, C]."""

    def __init__(
        self, weight: torch.Tensor, vocab: int, device: Device, *, invariant: bool
    ) -> None:
        self.weight, self.vocab, self.device = weight, vocab, device
        self._invariant = invariant

    def rows(self, hidden: Hidden) -> Rows:
        """Hidden states on the device, where they are or from the host."""
        if isinstance(hidden, Rows):
            return hidden
        place = self.device.torch
        values = torch.from_numpy(np.ascontiguousarray(hidden, np.float32)).to(place)
        bad = torch.full((len(values),), FINITE, dtype=torch.int32, device=place)
        return Rows(values.to(self.weight.dtype), bad)

    def product(
        self, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x [M, C], weight [N, C] -> [M, N] in fp32: a rank must not see a rounding to bf16."""
        if out is None:
            out = torch.empty(len(x), len(weight), dtype=torch.float32, device=x.device)
        if self._invariant:
            return matmul(x, weight, out=out)
        if x.dtype == torch.float32:
            return torch.mm(x, weight.T, out=out)
        if self.device.interpreted:  # torch has no such product on a CPU
            return torch.mm(x.float(), weight.float().T, out=out)
        return torch.mm(x, weight.T, out_dtype=torch.float32, out=out)

    def launch(self, name: str, **arguments: Any) -> None:
        """A kernel on the device's stream. Tensors become pointers, None a null one."""
        pointers = {
            key: value.data_ptr() if isinstance(value, torch.Tensor) else value or 0
            for key, value in arguments.items()
        }
        getattr(self.device.native, name)(**pointers, stream=self.device.stream)

    def statistics(self, rows: int) -> torch.Tensor:
        """Memory for what the kernels say of each tile of the vocabulary."""
        tiles = -(-self.vocab // self.device.native.TILE)
        return self._bytes(rows, tiles * self.device.native.STATS_BYTES)

    def entries(self, rows: int, top_k: int) -> torch.Tensor:
        """Memory for the likeliest tokens."""
        return self._bytes(rows, top_k * self.device.native.ENTRY_BYTES)

    def _bytes(self, rows: int, each: int) -> torch.Tensor:
        return torch.empty(rows, each, dtype=torch.uint8, device=self.device.torch)

    def logits(self, rows: Rows) -> F32:
        """[M, C] -> [M, V] on the host."""
        out = np.empty((len(rows), self.vocab), np.float32)
        for first in range(0, len(rows), MOST_ROWS):
            part = rows[first : first + MOST_ROWS]
            mine = out[first : first + len(part)]
            mine[:] = self.product(part.values, self.weight)[:, : self.vocab].cpu().numpy()
            check_finite(part.bad.cpu().numpy(), rows_finite(mine), first)
        return out


def rows_finite(values: F32) -> NDArray[np.bool_]:
    """[M, n] -> [M]."""
    return np.asarray(np.isfinite(values).all(axis=1))


def check_finite(bad: I32, finite: NDArray[np.bool_], first: int) -> None:
    """NumericsError for the first row that is not finite: bad [M] names the layer, finite [M] is
    the head's. `first`: the number of the first of them in the call."""
    wrong = (bad != FINITE) | ~finite
    if not wrong.any():
        return
    row = int(np.argmax(wrong))
    layer = int(bad[row]) if bad[row] != FINITE else None
    where = "in the head" if layer is None else f"after layer {layer}"
    raise NumericsError(
        f"a value that is not finite appeared {where}, row {first + row} of the call",
        layer=layer,
        row=first + row,
    )
