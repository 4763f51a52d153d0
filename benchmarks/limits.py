"""What this machine is and what it can do at most: every speed is printed as a share of that.

Read bandwidth is measured on as many bytes as the work reads (a cache may hold a part of them for
the one as for the other); arithmetic on registers alone, with the instruction that each instruction
set multiplies with.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from urial_engine import _native

LARGEST = 1 << 30  # bytes: no processor's cache holds that
SECONDS = 0.5


class Limits(NamedTuple):
    """Of all threads together."""

    read: float  # bytes a second
    arithmetic: float  # operations a second, a multiply-add being two

    @classmethod
    def measure(
        cls, isa: str, dtype: str, threads: int, size: int, *, seconds: float = SECONDS
    ) -> Limits:
        size = min(max(size, threads << 20), LARGEST)
        return cls(
            _native.read_bandwidth(threads, seconds, size),
            _native.arithmetic_peak(isa, dtype, threads, seconds),
        )

    @classmethod
    def best(cls, several: Iterable[Limits]) -> Limits:
        """A limit is what was reached once: what disturbs a measurement only makes it smaller."""
        return cls(*map(max, zip(*several, strict=True)))


def all_limits(threads: int, *, seconds: float = SECONDS, size: int = LARGEST) -> dict[str, float]:
    """By name, in 10^9 a second: reading, and each instruction set's arithmetic in both dtypes."""
    found = {"read": _native.read_bandwidth(threads, seconds, size)}
    for isa in _native.available_isas():
        for dtype in ("bfloat16", "float32"):
            found[f"{isa} {dtype}"] = _native.arithmetic_peak(isa, dtype, threads, seconds)
    return {name: round(value / 1e9, 1) for name, value in found.items()}


def machine() -> dict[str, str]:
    """What a figure must be read with: the processor, memory, system and versions."""
    cpu = _fields(Path("/proc/cpuinfo"))
    memory = _fields(Path("/proc/meminfo")).get("MemTotal", "").removesuffix(" kB")
    gib = f"{int(memory) / 2**20:.0f} GiB" if memory else "unknown"
    return {
        "processor": cpu.get("model name") or platform.processor() or platform.machine(),
        "family, model, stepping": " ".join(
            cpu.get(key, "?") for key in ("cpu family", "model", "stepping")
        ),
        "cores": str(os.cpu_count()),
        "caches": ", ".join(_caches()) or "unknown",
        "memory": gib,
        "system": f"{platform.system()} {platform.release()}",
        "instruction sets": ", ".join(_native.available_isas()),
        "python": platform.python_version(),
        "urial-engine": version("urial-engine"),
    }


def _fields(path: Path) -> Mapping[str, str]:
    """The first `name : value` of each name. Empty where there is no such file."""
    if not path.exists():
        return {}
    pairs = (line.partition(":") for line in path.read_text().splitlines())
    return {name.strip(): value.strip() for name, _, value in reversed([*pairs])}


def _caches() -> Iterable[str]:
    """Such as "L2 2048K", of the first core."""
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((folder / n).read_text().strip() for n in ("level", "type", "size"))
        yield f"L{level}{kind[0].lower() if kind != 'Unified' else ''} {size}"


def main() -> None:
    for name, fact in machine().items():
        print(f"{name:<26}{fact}")
    for name, value in all_limits(os.cpu_count() or 1).items():
        print(f"{name:<26}{value:,.1f} {'GB/s' if name == 'read' else 'GFLOP/s'}")


if __name__ == "__main__":
    main()
