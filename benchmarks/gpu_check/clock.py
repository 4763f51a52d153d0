"""Times work on a device, and what the device can do at most. Enters a call; leave seconds."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from urial_engine.backends.cuda_device import INTERPRETED, Device, open_device

FLUSH = 1 << 28  # bytes: more than any second cache holds


class Limits(NamedTuple):
    """Of the device, measured; every speed is reported as a share of one of them."""

    copy: float  # bytes a second, read and written
    products: float  # operations a second of a large product in 16 bits


def the_gpu(*, interpreted: bool) -> Device:
    """This machine's, or none: its kernels on the CPU."""
    if not interpreted:
        return open_device("cuda")
    from tools import emulate

    sys.modules["urial_engine._cuda_emulated"] = emulate.load()
    return open_device(INTERPRETED)


class Clock:
    """`small`: everything once and tiny, for a machine without a GPU; its seconds mean nothing."""

    def __init__(self, device: Device, *, small: bool) -> None:
        self.device, self.small = device, small
        self.dtype = torch.float32 if device.interpreted else torch.bfloat16
        size = 1 << 12 if small else FLUSH
        self._flushed = torch.empty(size, dtype=torch.uint8, device=device.torch)

    def seconds(self, call: Callable[[], object], repeats: int = 10) -> float:
        """The median of `repeats`, each after other data has gone through the caches."""
        if self.device.interpreted:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        for _ in range(2):  # compiles, and lets libraries choose
            call()
        return statistics.median(self._once(call) for _ in range(repeats))

    def _once(self, call: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flushed.zero_()  # keeps the device busy while the host puts the call behind it
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3

    def wait(self) -> None:
        """Until the device is done."""
        if not self.device.interpreted:
            torch.cuda.synchronize()

    def wall(self, call: Callable[[], object], repeats: int = 5) -> float:
        """The median of whole calls, to where the device is done."""
        if self.device.interpreted:
            repeats = 1
        else:
            call()  # compiles, and records what is replayed
            self.wait()
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            self.wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def random(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        random = torch.Generator(self.device.torch).manual_seed(0)
        x = torch.randn(shape, generator=random, device=self.device.torch, dtype=torch.float32)
        return (x * scale).to(self.dtype)

    def limits(self) -> Limits:
        source = torch.empty_like(self._flushed).repeat(1 if self.small else 4)
        target = torch.empty_like(source)
        copied = self.seconds(lambda: target.copy_(source))
        side = 64 if self.small else 8192
        a, b = self.random(side, side), self.random(side, side)
        out = torch.empty_like(a)
        multiplied = self.seconds(lambda: torch.mm(a, b, out=out))
        return Limits(2 * source.nbytes / copied, 2 * side**3 / multiplied)

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        """The most that the call held beside what was there before; None without a GPU."""
        if self.device.interpreted:
            call()
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated()) - before
