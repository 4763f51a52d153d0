"""Between the host and the device: several small arrays go over in one copy, and come back in one.

Every copy has a price of its own, a hundred times that of the bytes of a decoding step.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

ALIGN = 16  # bytes: what a kernel may load at once
Array = NDArray[Any]
# Torch has no unsigned types to speak of; their bits are passed on.
_SIGNED = {"uint64": "int64", "uint32": "int32"}


def offsets(sizes: list[int]) -> tuple[list[int], int]:
    """Where each of several arrays begins, aligned, and where the last one ends; in bytes."""
    starts, end = [], 0
    for size in sizes:
        starts.append(end)
        end += -(-size // ALIGN) * ALIGN
    return starts, end


def pack(arrays: Mapping[str, Array], pinned: bool) -> tuple[torch.Tensor, list[int]]:
    """The bytes of all arrays in one tensor on the host, and where each begins."""
    import torch

    starts, end = offsets([array.nbytes for array in arrays.values()])
    # Torch's cache of pinned memory gives it out again only when the copy is over.
    packed = torch.empty(end, dtype=torch.uint8, pin_memory=pinned)
    whole = packed.numpy()
    for start, array in zip(starts, arrays.values(), strict=True):
        whole[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
    return packed, starts


def unpack(
    packed: torch.Tensor, arrays: Mapping[str, Array], starts: list[int]
) -> dict[str, torch.Tensor]:
    """Views into a copy of what `pack` made, each with its array's dtype and shape."""
    import torch

    views = {}
    for start, (name, array) in zip(starts, arrays.items(), strict=True):
        kind = getattr(torch, _SIGNED.get(array.dtype.name, array.dtype.name))
        views[name] = packed[start : start + array.nbytes].view(kind).view(array.shape)
    return views


def upload(arrays: Mapping[str, Array], device: torch.device) -> dict[str, torch.Tensor]:
    """The arrays on the device, by one copy that the host does not wait for."""
    packed, starts = pack(arrays, pinned=device.type == "cuda")
    return unpack(packed.to(device, non_blocking=True), arrays, starts)


class Results:
    """Arrays that kernels write and the host then reads, all in one copy.

    kinds: by name, a torch dtype of 4 bytes and a shape.
    """

    def __init__(
        self, kinds: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], device: torch.device
    ) -> None:
        import torch

        self._starts, end = offsets([4 * prod(shape) for _, shape in kinds.values()])
        self._kinds = dict(kinds)
        self._bytes = torch.zeros(end, dtype=torch.uint8, device=device)
        self.on_device = self._views(self._bytes)

    def _views(self, whole: torch.Tensor) -> dict[str, torch.Tensor]:
        places = zip(self._starts, self._kinds.items(), strict=True)
        return {
            name: whole[start : start + 4 * prod(shape)].view(dtype).view(shape)
            for start, (name, (dtype, shape)) in places
        }

    def fetch(self) -> dict[str, Array]:
        """Wait for all that was put on the stream before, and copy. The arrays own their memory."""
        host = self._bytes.cpu()
        return {name: view.numpy().copy() for name, view in self._views(host).items()}
