"""Backends: weights and a device's name go in; the `Backend` that runs on it comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ParameterError
from .base import Backend, Batch, HeadComparison, HeadScores, SampleBatch, Sampled

if TYPE_CHECKING:
    from ..weights import Weights

__all__ = [
    "Backend",
    "Batch",
    "HeadComparison",
    "HeadScores",
    "SampleBatch",
    "Sampled",
    "open_backend",
]


def open_backend(
    device: str,
    weights: Weights,
    *,
    dtype: str = "auto",
    threads: int | None = None,
    isa: str = "auto",
) -> Backend:
    """`device` is "cpu", "reference" (numpy, the yardstick) or "auto" (= cpu).

    `threads` and `isa` are the cpu's: numpy keeps the threads that its BLAS was started with.
    ParameterError on another device, and on a `dtype` or `isa` that the device does not have.
    """
    if device in ("auto", "cpu"):
        from .cpu import CpuBackend  # loads the native library: only for who asks for it

        return CpuBackend(weights, dtype=dtype, threads=threads, isa=isa)
    if device == "reference":
        from .reference import ReferenceBackend

        if isa != "auto":
            raise ParameterError(f'isa="{isa}": device "reference" is numpy and has only "auto"')
        return ReferenceBackend(weights, dtype="float64" if dtype == "auto" else dtype)
    if device == "cuda":
        raise ParameterError('device="cuda": there is no CUDA backend yet; use device="cpu"')
    raise ParameterError(f'device="{device}": unknown; use "cpu", "reference" or "auto"')
