"""What tests find out beside passing: how many of each file ran, and how the errors of every Triton
kernel in every dtype compare with those of the naive implementation. `pytest --measured FILE` keeps
it, for `make gpu-check`."""

from __future__ import annotations

import functools
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from . import rungs
from .triton_cases import Case

# What each test of a shared file is about. A file of one kernel has its name.
KERNELS = {
    "test_norm_after_addition": "rmsnorm",
    "test_gated_activation": "silu_mul",
    "test_rotation_and_what_it_writes": "rope",
}


@dataclass
class Errors:
    """Of one kernel in one dtype."""

    shapes: int = 0  # that were judged
    worst: float = 0.0  # greatest ratio to the naive error, or to a rounding where that is larger
    worse: int = 0  # that were not accepted


def kernel_of(test: str) -> str | None:
    """By the test's id; None where it is not one of a Triton kernel."""
    found = re.match(r"tests/kernels/test_triton_(\w+)\.py::(\w+)", test)
    return found and KERNELS.get(found[2], found[1])


class Measured:
    """A plugin of pytest. It is there before tests import the judge that it watches."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.errors: defaultdict[tuple[str, str], Errors] = defaultdict(Errors)
        self.tests: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def watched(self, judge: Callable[..., None]) -> Callable[..., None]:
        """`assert_no_worse`, and what it judged is kept."""

        @functools.wraps(judge)
        def watching(out: Any, naive: Any, truth: Any, scale: Any, **bound: Any) -> None:
            kernel = kernel_of(os.environ.get("PYTEST_CURRENT_TEST", ""))
            if kernel is None or Case.latest is None:
                judge(out, naive, truth, scale, **bound)
                return
            mine = self.errors[kernel, str(Case.latest.dtype).removeprefix("torch.")]
            mine.shapes += 1
            mine.worse += 1  # taken back where it is accepted
            ours, theirs = (rungs.error(each, truth, scale) for each in (out, naive))
            mine.worst = max(mine.worst, ours / max(theirs, bound["epsilon"]))
            judge(out, naive, truth, scale, **bound)
            mine.worse -= 1

        return watching

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.tests[report.nodeid.partition("::")[0]][report.outcome] += 1

    def pytest_sessionfinish(self) -> None:
        errors = [
            {"kernel": kernel, "dtype": dtype, **vars(each)}
            for (kernel, dtype), each in sorted(self.errors.items())
        ]
        self.file.write_text(json.dumps({"tests": self.tests, "errors": errors}), encoding="utf-8")


def watch(config: pytest.Config, file: Path) -> None:
    """From here on, until pytest ends."""
    measured = Measured(file)
    rungs.assert_no_worse = measured.watched(rungs.assert_no_worse)
    config.pluginmanager.register(measured)
