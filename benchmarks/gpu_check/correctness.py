"""Runs the tests of the kernels and the backend; leaves what passed, and of every Triton kernel and
dtype how its error compares with that of the naive implementation."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.report import Row

TESTS = (
    "tests/kernels/test_triton_matmul.py",
    "tests/kernels/test_triton_rows.py",
    "tests/kernels/test_triton_attention.py",
    "tests/kernels/test_rank_cuda.py",
    "tests/kernels/test_sample_cuda.py",
    "tests/test_cuda_score.py",
    "tests/test_engine_cuda.py",
)
FLOOR = "1.5 x the naive error and a rounding"


def rows(folder: Path, *, small: bool) -> list[Row]:
    """`small`: a tenth of the shapes of one file, interpreted. What fails is printed by pytest."""
    file = (folder / "measured.json").resolve()
    file.unlink(missing_ok=True)
    tests = TESTS[:1] if small else TESTS
    which = ["-k", "0-19", "-p", "no:cacheprovider"] if small else ["--gpu"]
    start = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-q", *which, "--measured", str(file), *tests]
    status = subprocess.run(command, check=False).returncode
    took = time.perf_counter() - start
    every = Row("tests", "all of them", took, floor="all pass", reached=status == 0)
    measured = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return [every, *of_tests(measured, tests), *of_errors(measured)]


def of_tests(measured: dict[str, Any], tests: tuple[str, ...]) -> list[Row]:
    """A row a file; one that did not run has not passed."""
    found = []
    for name in tests:
        counts: dict[str, int] = measured.get("tests", {}).get(name, {})
        said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
        passed = counts.get("passed", 0) > 0 and not counts.get("failed")
        what = Path(name).stem.removeprefix("test_")
        said = said or "did not run"
        found.append(Row("tests", what, found=said, floor="all pass", reached=passed))
    return found


def of_errors(measured: dict[str, Any]) -> list[Row]:
    """A row for each kernel and dtype."""
    return [
        Row(
            "error",
            f"{one['kernel']}, {one['dtype']}",
            found=f"{one['shapes']} shapes, at most {one['worst']:.2f} x the naive error",
            floor=FLOOR,
            reached=one["worse"] == 0,
        )
        for one in measured.get("errors", [])
    ]
