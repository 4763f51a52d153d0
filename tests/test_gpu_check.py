"""The check of a GPU, run without one in its smallest form, and how it judges what it finds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.gpu_check import rank
from benchmarks.gpu_check.clock import Clock
from benchmarks.gpu_check.report import Row, markdown
from tests.interpreted import emulated, without_gpu
from urial_engine.backends.cuda_device import INTERPRETED, open_device
from urial_engine.kernels.rank import reference

__all__ = ["emulated"]  # a fixture
pytestmark = [without_gpu, pytest.mark.filterwarnings("ignore::RuntimeWarning")]


def test_all_of_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--interpreted", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "gpu-check.json").read_text())
    parts = [row["part"] for row in found["rows"]]
    assert {"attention", "score", "step", "step, invariant"} == set(parts)
    assert all(row["seconds"] > 0 for row in found["rows"])
    assert (tmp_path / "gpu-check.md").read_text() in capsys.readouterr().out
    assert "decode at batch 2, prefix shared" in (tmp_path / "gpu-check.md").read_text()


def test_its_tests_are_there() -> None:
    assert all(Path(name).is_file() for name in gpu_check.TESTS)


def test_torchs_path_says_what_ours_is_compared_with(emulated: None) -> None:
    clock = Clock(open_device(INTERPRETED), small=True)
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


@pytest.mark.parametrize(("times", "reached"), [(1.9, False), (2.1, True)])
def test_sharing_has_to_pay(times: float, reached: bool) -> None:
    row = Row("attention", "Llama-3-8B: decode at batch 32 after 1024, shared", 1e-3, times=times)
    judged = gpu_check.with_floor(row)
    assert judged.reached == reached
    assert ("MISSED" in markdown({}, [judged])) != reached
    other = Row("attention", "Llama-3-8B: decode at batch 8 after 1024, shared", 1e-3, times=0.5)
    assert gpu_check.with_floor(other) == other
