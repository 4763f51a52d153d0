"""Every benchmark of one operation runs once, small: pytest collects them here, with timing off."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from benchmarks.bench_attention import test_attention
from benchmarks.bench_matmul import test_matmul
from benchmarks.bench_rank import test_compare, test_rank
from benchmarks.bench_rmsnorm import test_rmsnorm
from benchmarks.bench_rope import test_rope
from benchmarks.bench_sample import test_sample
from benchmarks.bench_silu_mul import test_silu_mul

__all__ = [
    "test_attention",
    "test_compare",
    "test_matmul",
    "test_rank",
    "test_rmsnorm",
    "test_rope",
    "test_sample",
    "test_silu_mul",
]


def test_a_benchmark_is_a_program_too() -> None:
    """At full size, with a line of figures for each."""
    command = [sys.executable, "-m", "benchmarks.bench_rmsnorm", "-k", "portable-float32 and 576"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("test_rmsnorm"))
    figures = re.findall(r"([\d.,]+) (us|GFLOP/s|GB/s|% of \w+)", line)
    names = ["us", "GFLOP/s", "GB/s", "% of arithmetic", "% of read"]
    assert [name for _, name in figures] == names
    assert all(float(value.replace(",", "")) > 0 for value, _ in figures)
