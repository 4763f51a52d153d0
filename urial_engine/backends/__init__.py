"""Backends: weights and a device's name go in; the `Backend` that runs on it comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ParameterError
from .base import Backend, Batch, HeadComparison, HeadScores, SampleBatch, Sampled
from .cuda_device import INTERPRETED, open_device, why_not

if TYPE_CHECKING:
    from ..weights import Weights

__all__ = [
    "Backend",
    "Batch",
    "HeadComparison",
    "HeadScores",
    "SampleBatch",
    "Sampled",
    "choose_device",
    "open_backend",
]


def choose_device(device: str) -> tuple[str, str]:
    """What is used where "auto" is asked for, and why; another device is the caller's choice."""
    if device != "auto":
        return device, "asked for"
    why = why_not()
    return ("cpu", f"no GPU is used: {why}") if why else ("cuda", "a GPU is there")


def open_backend(
    device: str,
    weights: Weights,
    *,
    dtype: str = "auto",
    threads: int | None = None,
    isa: str = "auto",
    invariant: bool = False,
) -> Backend:
    """`device` is "cpu", "cuda" (or "cuda:1") or "reference" (numpy, the yardstick).

    `threads` and `isa` are the cpu's: numpy keeps the threads that its BLAS was started with.
    `invariant` is cuda's: the others are so anyway. ParameterError on another device, and on a
    `dtype` or `isa` that the device does not have; DeviceError where a GPU is asked for and cannot
    be used.
    """
    kind = device.partition(":")[0]
    if kind == "cpu":
        from .cpu import CpuBackend  # loads the native library: only for who asks for it

        return CpuBackend(weights, dtype=dtype, threads=threads, isa=isa)
    if isa != "auto":
        raise ParameterError(f'isa="{isa}": only device "cpu" has instruction sets to choose from')
    if kind == "reference":
        from .reference import ReferenceBackend

        return ReferenceBackend(weights, dtype="float64" if dtype == "auto" else dtype)
    if kind in ("cuda", INTERPRETED):
        opened = open_device(device)
        from .cuda import CudaBackend  # loads torch

        return CudaBackend(weights, opened, dtype=dtype, invariant=invariant)
    raise ParameterError(f'device="{device}": unknown; use "cpu", "cuda", "reference" or "auto"')
