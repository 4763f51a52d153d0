"""What the benchmarks of single operations share. Each bench_<op>.py is for pytest-benchmark, at
the sizes of a real model, and a program: `python -m benchmarks.bench_<op>`. Where timing is off, as
in the tests, each runs once at the sizes of a toy.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.limits import Limits
from urial_engine.backends.cpu import available_isas

F32 = NDArray[np.float32]
ITEM_BYTES = {"bfloat16": 2, "float32": 4}
SECONDS = 0.1  # for each limit of the machine


class Options(TypedDict):
    isa: str
    dtype: str
    threads: int


class Rung(NamedTuple):
    """An instruction set with a dtype; "numpy" is the reference in fp32, to compare with."""

    isa: str
    dtype: str

    @property
    def options(self) -> Options:
        return {"isa": self.isa, "dtype": self.dtype, "threads": threads()}

    @property
    def item(self) -> int:
        """Bytes of a weight, a key or a value."""
        return ITEM_BYTES[self.dtype]


NATIVE = [Rung(isa, dtype) for isa in available_isas() for dtype in ("bfloat16", "float32")]
native_rungs = pytest.mark.parametrize("rung", NATIVE, ids="-".join)
all_rungs = pytest.mark.parametrize("rung", [*NATIVE, Rung("numpy", "float32")], ids="-".join)


def threads() -> int:
    """All the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def normal(*shape: int) -> F32:
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def bits(weight: F32) -> NDArray[np.uint16]:
    """bfloat16 as native operations take it."""
    return weight.astype(ml_dtypes.bfloat16).view(np.uint16)


def timed(
    benchmark: Any,
    rung: Rung,
    call: Callable[[], Any],
    *,
    operations: float,
    read: float,
    cores: int | None = None,
) -> Any:
    """Time `call`, which does so many operations (a multiply-add being two) and reads so many
    bytes, and note both a second and as shares of the limits of `cores` (None: of all that the
    rung's options name). Leaves its result."""
    result = benchmark(call)
    if benchmark.stats is None:
        return result
    seconds = benchmark.stats.stats.median
    note = {"GFLOP/s": operations / seconds / 1e9, "GB/s": read / seconds / 1e9}
    if rung.isa != "numpy":
        limits = Limits.measure(
            rung.isa, rung.dtype, cores or threads(), int(read), seconds=SECONDS
        )
        note["% of arithmetic"] = 100 * operations / seconds / limits.arithmetic
        note["% of read"] = 100 * read / seconds / limits.read
    benchmark.extra_info.update({name: round(value, 1) for name, value in note.items()})
    return result


class Table:
    """Prints what `timed` has noted, a line a benchmark."""

    def pytest_terminal_summary(self, terminalreporter: Any, config: pytest.Config) -> None:
        for bench in config._benchmarksession.benchmarks:  # type: ignore[attr-defined]
            notes = "  ".join(f"{v:>8,.1f} {name}" for name, v in bench.extra_info.items())
            terminalreporter.write_line(
                f"{bench.name:<64}{bench.stats.median * 1e6:>12,.1f} us  {notes}"
            )


def main(file: str) -> int:
    """Run the benchmarks of a file at full size; the command line may choose among them (-k)."""
    options = ["--benchmark-enable", "--benchmark-quiet", "--benchmark-max-time=0.3"]
    options += ["--benchmark-min-rounds=3", "--benchmark-warmup=on", "-q", "--no-header"]
    return int(pytest.main([file, *options, *sys.argv[1:]], plugins=[Table()]))
