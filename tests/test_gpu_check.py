"""The check of a GPU, run without one in its smallest form, and how it judges what it finds."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.gpu_check import correctness, end_to_end, floors, invariants, rank, steps
from benchmarks.gpu_check.clock import Clock
from benchmarks.gpu_check.report import Row, markdown
from tests.fixtures import TinyModel
from tests.interpreted import emulated, without_gpu
from tests.kernels import measured, rungs
from tests.kernels.triton_cases import Case
from urial_engine.backends.base import HeadScores
from urial_engine.backends.cuda import CudaBackend
from urial_engine.backends.cuda_device import INTERPRETED, open_device
from urial_engine.config import ModelConfig
from urial_engine.kernels.rank import reference

__all__ = ["emulated"]  # a fixture
pytestmark = [without_gpu, pytest.mark.filterwarnings("ignore::RuntimeWarning")]
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def clock(emulated: None) -> Clock:
    return Clock(open_device(INTERPRETED), small=True)


def test_all_of_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--interpreted", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "gpu-check.json").read_text())["rows"]
    parts = ["tests", "error", "invariant, fixed order", "attention", "score", "step"]
    parts += ["step, invariant", "end to end", "total"]
    assert list(dict.fromkeys(row["part"] for row in found)) == parts
    assert all(row["seconds"] or row["wall"] or row["found"] for row in found)
    by_part = {part: [row for row in found if row["part"] == part] for part in parts}
    assert all(row["found"].startswith("exact") for row in by_part["invariant, fixed order"])
    assert [row["what"] for row in by_part["error"]] == ["matmul, float16", "matmul, float32"]
    assert all(row["found"].startswith("20 shapes") for row in by_part["error"])
    assert all(row["seconds"] and row["wall"] for row in by_part["score"])
    page = (tmp_path / "gpu-check.md").read_text()
    assert page in capsys.readouterr().out and "MISSED" not in page
    assert "decode at batch 2, prefix shared" in page
    assert "skipped: needs --model DIR" in page


def test_answers_through_the_engine(clock: Clock, tiny_model: TinyModel) -> None:
    found = end_to_end.rows(clock, tiny_model(num_hidden_layers=1), INTERPRETED)
    assert [row.what.split(": ")[1] for row in found] == [
        f"2 tokens at batch {batch}, prefix shared" for batch in (1, 2)
    ]
    assert all(row.tokens and row.wall for row in found)


def test_torchs_path_says_what_ours_is_compared_with(clock: Clock) -> None:
    x, weight = clock.random(6, 8), clock.random(50, 8)
    targets = np.arange(6)
    ids = clock.random(6).long() * 0 + 1
    rank_, ties, logprob, entropy, _, top_ids = rank.materialised(x, weight, ids)
    truth = reference((x @ weight.T).double().numpy(), np.ones_like(targets), rank.TOP_K)
    np.testing.assert_array_equal(rank_, truth.rank)
    np.testing.assert_array_equal(ties, truth.ties)
    np.testing.assert_array_equal(top_ids, truth.top_ids)
    np.testing.assert_allclose(logprob[:, 0], truth.logprob, atol=1e-5)
    np.testing.assert_allclose(entropy, truth.entropy, atol=1e-5)


def test_a_device_without_room_for_torchs_logits(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(rank, "materialised", full)
    ours, theirs = rank.rows(clock, clock.limits())
    assert ours.seconds and theirs.found == "has no room on this device"
    assert floors.with_floor(ours) == ours


# What is promised


SHARED = Row("attention", "Llama-3-8B: decode at batch 32 after 1024, shared", 1e-3)
STEP = Row("step", "Llama-3-8B: decode at batch 1", 1e-3)
SCORE = Row("score", "256 positions, 32000 tokens", 1e-3)


@pytest.mark.parametrize(
    ("row", "missed", "reached"),
    [
        (SHARED, {"times": 1.9}, {"times": 2.0}),
        (STEP, {"memory": 0.79}, {"memory": 0.8}),
        (SCORE, {"times": 0.9, "leaner": 30.0}, {"times": 1.0, "leaner": 10.0}),
        (SCORE, {"times": 1.5, "leaner": 9.9}, {"times": 3.0, "leaner": 11.0}),
    ],
)
def test_speeds_have_floors(row: Row, missed: dict[str, Any], reached: dict[str, Any]) -> None:
    for fields, holds in ((missed, False), (reached, True)):
        judged = floors.with_floor(Row(**{**vars(row), **fields}))
        assert judged.floor and judged.reached == holds
        assert ("MISSED" in markdown({}, [judged])) != holds


@pytest.mark.parametrize(
    "row",
    [
        Row("attention", "Llama-3-8B: decode at batch 8 after 1024, shared", 1e-3, times=0.5),
        Row("step", "Llama-3-8B: decode at batch 8", 1e-3, memory=0.1),
        Row("step, invariant", "Llama-3-8B: decode at batch 1", 1e-3, memory=0.1),
        Row("score", "256 positions, 32000 tokens, torch's logits", 1e-3),
    ],
)
def test_of_other_speeds_nothing_is_promised(row: Row) -> None:
    assert floors.with_floor(row) == row


def test_it_has_eight_minutes() -> None:
    assert floors.total(480).reached and not floors.total(480.1).reached
    assert floors.total(1).floor == "8 minutes"


@pytest.mark.parametrize("invariant", [False, True])
def test_a_bit_that_differs(invariant: bool) -> None:
    a = np.array([[1.0, -4.0]], np.float32)
    b = a.copy()
    assert invariants.compared("x", a, b, invariant=invariant).found == "exact"
    b[0, 0] = 1.25
    row = invariants.compared("x", a, b, invariant=invariant)
    assert row.found == "2.5e-01 of up to 4.0" and row.difference == 0.25
    assert row.reached != invariant and bool(row.floor) == invariant
    assert not invariants.compared("x", a * np.nan, a * np.nan, invariant=True).reached
    negative = np.array([[-0.0, 1.0]], np.float32)
    assert invariants.compared("x", negative, abs(negative), invariant=True).reached is False


@pytest.mark.parametrize("name", ["rank", "ties", "top_ids"])
def test_a_rank_that_differs(name: str) -> None:
    z = np.random.default_rng(0).normal(size=(3, 20))
    truth = reference(z, np.arange(3), 4)
    assert invariants.same_scores(HeadScores(*truth), truth, invariant=True).reached
    other = HeadScores(*(array.copy() for array in truth))
    getattr(other, name)[1] += 1
    row = invariants.same_scores(other, truth, invariant=True)
    assert row.found.startswith("1 of 3 positions are others") and not row.reached
    assert invariants.same_scores(other, truth, invariant=False).reached


def test_a_kernel_that_looks_at_its_neighbours_is_found(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logits of a call grow with its rows."""
    logits = CudaBackend.logits
    monkeypatch.setattr(CudaBackend, "logits", lambda self, h: logits(self, h) + 1e-4 * len(h))
    config = ModelConfig.from_dict(steps.TINY)
    weights: Any = invariants.TiedWeights(config)
    roads = invariants.Roads(CudaBackend(weights, clock.device), invariants.Texts(2, 16, 20))
    row = invariants.compared("x", *roads.batches(), invariant=True)
    assert not row.reached and row.difference == pytest.approx(3e-4, rel=0.1)


def test_weights_have_ties_and_no_other_rows_twice() -> None:
    config = ModelConfig.from_dict({**steps.TINY, **invariants.SMALL, "num_hidden_layers": 1})
    taken: dict[str, list[Any]] = {}
    for kind in (steps.RandomWeights, invariants.TiedWeights):
        weights = kind(config)
        taken.clear()
        weights.load(lambda name, first, rows: taken.setdefault(name, []).append(rows), 1)
        whole = {name: np.concatenate(parts) for name, parts in taken.items()}
        assert {name: array.shape for name, array in whole.items()} == weights.shapes
        distinct = len(np.unique(whole["lm_head.weight"].view(np.uint16), axis=0))
        assert distinct == 4096 // (1 if kind is steps.RandomWeights else 2)


# The tests on the device, and what they measured


def test_its_tests_are_there() -> None:
    assert all((ROOT / name).is_file() for name in correctness.TESTS)
    text = (ROOT / "tests/kernels/test_triton_rows.py").read_text()
    assert all(f"def {name}(" in text for name in measured.KERNELS)


def test_tests_that_fail_or_did_not_run() -> None:
    counts = {"a/test_one.py": {"passed": 3, "skipped": 1}, "test_two.py": {"passed": 3}}
    counts["test_two.py"]["failed"] = 1
    names = ("a/test_one.py", "test_two.py", "test_three.py")
    found = correctness.of_tests({"tests": counts}, names)
    assert [row.reached for row in found] == [True, False, False]
    assert [row.found for row in found] == [
        "3 passed, 1 skipped",
        "1 failed, 3 passed",
        "did not run",
    ]


def test_an_error_beyond_the_bound_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = "tests/kernels/test_triton_rows.py::test_gated_activation[0-19] (call)"
    monkeypatch.setenv("PYTEST_CURRENT_TEST", at)
    kept = measured.Measured(tmp_path / "measured.json")
    judge = kept.watched(rungs.assert_no_worse)
    Case(1)
    truth = np.ones(4)
    judge(truth + 0.02, truth + 0.04, truth, truth, epsilon=0.01)
    with pytest.raises(AssertionError):
        judge(truth + 0.5, truth, truth, truth, epsilon=0.01)
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "tests/kernels/test_matmul.py::test_x (call)")
    judge(truth, truth, truth, truth, epsilon=0.01)
    report: Any = SimpleNamespace(when="call", outcome="failed", nodeid="tests/test_x.py::test_y")
    kept.pytest_runtest_logreport(report)
    kept.pytest_sessionfinish()
    found = json.loads((tmp_path / "measured.json").read_text())
    assert found["tests"] == {"tests/test_x.py": {"failed": 1}}
    (row,) = correctness.of_errors(found)
    assert row.what == "silu_mul, float16" and not row.reached
    assert row.found == "2 shapes, at most 50.00 x the naive error"


# The command as a whole


def test_what_is_missed_is_the_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [Row("step", "x", 1.0)]
    monkeypatch.setattr(gpu_check, "measure", lambda *_: list(found))
    arguments = ["--interpreted", "--out", str(tmp_path)]
    assert gpu_check.main(arguments) == 0
    found.append(Row("step", "y", 1.0, floor="more", reached=False))
    assert gpu_check.main(arguments) == 1
    assert "| more MISSED |" in capsys.readouterr().out


def test_a_part_that_fails_leaves_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    def rows() -> Any:
        yield Row("step", "x", 1.0)
        raise RuntimeError("CUDA error: no\nmore")

    first, second = gpu_check.finished("step", rows)
    assert first.reached and not second.reached
    assert second.found == "RuntimeError: CUDA error: no"
    assert "Traceback" in capsys.readouterr().err
