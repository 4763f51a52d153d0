"""The team of threads: many short runs, two at once, and what happens when none can be had."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from urial_engine.kernels.matmul.native import Linear
from urial_engine.kernels.rank.native import head, score

from .rungs import RUNGS

RUNG = RUNGS[-1]  # portable: the team is the same for all


def layer(threads: int, seed: int = 0) -> Linear:
    w = np.random.default_rng(seed).normal(size=(70, 9)).astype(np.float32)
    return Linear(w, threads=threads, **RUNG.options)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_many_short_runs(threads: int) -> None:
    """Each meets at three barriers; more threads than this machine may have cores."""
    x = np.random.default_rng(1).normal(size=(3, 9)).astype(np.float32)
    truth, team = layer(1)(x), layer(threads)
    for _ in range(500 if threads <= 2 else 100):
        np.testing.assert_array_equal(team(x), truth)


def test_runs_after_the_threads_have_gone_to_sleep() -> None:
    x = np.ones((3, 9), np.float32)
    team = layer(3)
    truth = team(x)
    for _ in range(3):
        time.sleep(0.05)
        np.testing.assert_array_equal(team(x), truth)


def test_teams_come_and_go() -> None:
    x = np.ones((3, 9), np.float32)
    truth = layer(1)(x)
    for _ in range(50):
        np.testing.assert_array_equal(layer(3)(x), truth)
        layer(3)  # and one that never runs


def test_two_models_at_once() -> None:
    """Two Python threads, each with a head and a layer of its own on two threads."""

    def work(seed: int) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        weight = rng.normal(size=(600, 20)).astype(np.float32)
        model, mine = head(weight, threads=2, **RUNG.options), layer(2, seed)
        hidden = rng.normal(size=(40, 20)).astype(np.float32)
        x, targets = hidden[:, :9].copy(), np.arange(40, dtype=np.int32)
        found = []
        for _ in range(20):
            found += [mine(x), *score(model, hidden, targets, 3)]
        return found

    alone = [work(seed) for seed in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(work, (0, 1)))
    for expected, found in zip(alone, together, strict=True):
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(sys.platform != "linux", reason="limits its memory as Linux does")
def test_threads_that_the_system_does_not_grant_are_an_error() -> None:
    """Not the end of the process: the threads that were made end before the error is raised."""
    code = f"""
import resource
import numpy as np
from urial_engine.kernels.matmul.native import Linear
w, rung = np.ones((4, 4), np.float32), {RUNG.options!r}
few = Linear(w, threads=2, **rung)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (1 << 30)  # the stacks of a thousand threads take more
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    Linear(w, threads=1000, **rung)
except RuntimeError:
    assert few(w).tolist() == [[4.0] * 4] * 4
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "refused"), done.stderr


def test_no_threads_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one thread"):
        layer(0)
