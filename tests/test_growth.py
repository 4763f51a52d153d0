"""The growth curves run, small, and their arithmetic finds what it should find."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import workload
from benchmarks.growth import __main__ as growth
from benchmarks.growth import memory, models, point, quiet
from benchmarks.growth.curves import CURVES, EXPERIMENTS, Curve
from benchmarks.growth.fits import Fit, Slopes, fit, slopes
from benchmarks.growth.work import LISTED_BYTES, Cost, Expected, Prices
from benchmarks.meter import Meter, layer_weights
from tests.fixtures import TinyModel
from urial_engine import Engine
from urial_engine.config import ModelConfig

SHAPE, SIZES = models.shape(small=True), point.SMALL
MODEL = ModelConfig.from_dict(SHAPE)
CALLS = {"row": 1e-3, "rows": 1.2e-3, "deep_rows": 2e-3}
CALLS |= {"chunk": 4e-3, "deep_chunk": 6e-3, "score": 3e-3}


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """What main() runs in processes of their own runs here: starting Python is most of it."""

    def process(module: str, *options: object) -> dict[str, Any]:
        {"point": point, "memory": memory}[module].main([*map(str, options)])
        found: dict[str, Any] = json.loads(capfd.readouterr().out.splitlines()[-1])
        return found

    monkeypatch.setattr(growth, "process", process)
    monkeypatch.setattr(workload, "SHARED", Path("absent"))


@pytest.mark.usefixtures("in_this_process")
def test_all_curves(tiny_model: TinyModel, tmp_path: Path) -> None:
    model = tiny_model(max_position_embeddings=2048, folder="tiny")
    out = tmp_path / "out"
    options = [str(model), "--small", "--rounds", "2", "--out", str(out)]
    options += ["--models", str(tmp_path / "models")]
    assert growth.main(options) == 0

    found = json.loads((out / "growth.json").read_text())
    assert set(found["experiments"]) == {experiment.name for experiment in EXPERIMENTS}
    for experiment in EXPERIMENTS:
        points = found["experiments"][experiment.name][experiment.name]
        assert [int(value) for value in points] == list(experiment.small)
        for run in (run for runs in points.values() for run in runs):
            assert run["bytes"]["peak"] >= run["bytes"]["before"] > 0
            for parts in run["seconds"].values():
                assert parts["all"] >= parts["layers"] + parts["head"] > parts["layers"] > 0
    page = (out / "growth.md").read_text()
    for curve in CURVES:
        assert f"| {curve.title} |" in page
    for name in (*memory.WORKLOADS, *("prefill", "step", "batch", "score", "peak")):
        assert f"| {name} | " in page
    assert str(tmp_path) not in page
    assert (out / "growth.png").read_bytes().startswith(b"\x89PNG")

    assert growth.main([*options, "--only", "scored"]) == 0
    again = json.loads((out / "growth.json").read_text())["experiments"]
    assert again["batch"] == found["experiments"]["batch"]
    assert again["scored"] != found["experiments"]["scored"]
    with pytest.raises(SystemExit, match=r"growth.json was made with another threads: leave"):
        growth.main([*options, "--only", "scored", "--threads", "1"])


def test_a_point_is_a_process_of_its_own(tmp_path: Path) -> None:
    folder = models.make(tmp_path, SHAPE)
    assert models.make(tmp_path, SHAPE) == folder
    made = [growth.process("point", folder, "scored", 8, "--small") for _ in range(2)]
    assert {run["engine"]["dtype"] for run in made} == {"bfloat16"}
    first, second = (run["bytes"]["peak"] for run in made)
    assert first == pytest.approx(second, rel=0.1)  # nothing of one is in the other


def test_a_disturbed_run_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = iter([0.9, 0.5, 0.7, 0.1])
    monkeypatch.setattr(quiet, "beside", lambda call: (call(), next(shares)))
    numbers = iter("abcd")
    assert quiet.least_disturbed(lambda: next(numbers), 3) == ("b", 0.5)
    assert quiet.least_disturbed(lambda: next(numbers), 3) == ("d", 0.1)


def test_the_work_of_others_is_seen_and_our_own_is_not() -> None:
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])  # ours when it ends
    _, seen = quiet.beside(lambda: time.sleep(0.5))
    _, ended = quiet.beside(lambda: (other.kill(), other.wait()))
    assert seen > 0.3
    assert ended == 0  # all that it worked in the meantime, and what it had worked before


def test_the_counted_work_is_what_the_backend_is_given(tmp_path: Path) -> None:
    """With an operation as the price of everything, the expected time is the meter's count."""
    attention, head = 4 * MODEL.num_layers * MODEL.hidden_size, 2 * MODEL.hidden_size
    prices = Prices(0, 2 * layer_weights(MODEL), attention, attention, head)
    expected = Expected(MODEL, SIZES, prices)
    with Engine(models.make(tmp_path, SHAPE), threads=1, kv_cache_gib=0.01) as engine:
        lab = point.Lab(engine, SIZES)
        meter = Meter(engine)
        lab.score(70)
        assert meter.take().operations == expected.score(70).all  # no byte has a price here
        ids = lab.ids(128)
        lab.read(ids)
        meter.take()
        lab.read(ids + lab.ids(SIZES.query))
        assert meter.take().operations == expected.first(128).layers + head * MODEL.vocab_size
        grown = expected.prefix_bytes(640) - expected.prefix_bytes(576)
        tables, lists = 64 * 4 * MODEL.head_dim, SIZES.together * LISTED_BYTES * 64
        assert engine.backend.block_bytes == grown - tables - lists


def test_prices_are_those_of_the_timed_calls() -> None:
    expected = Expected(MODEL, SIZES, Prices.of(CALLS, MODEL, SIZES))
    assert expected.text(SIZES.query).layers == pytest.approx(CALLS["chunk"])
    assert expected.text(SIZES.query, SIZES.depth).layers == pytest.approx(CALLS["deep_chunk"])
    assert expected.text(SIZES.query, scored=SIZES.query).head == pytest.approx(CALLS["score"])
    assert expected.step(1, 0).layers == pytest.approx(CALLS["row"])
    deep = (expected.step(SIZES.writers, own).layers for own in (0, SIZES.depth))
    assert -np.subtract(*deep) == pytest.approx(CALLS["deep_rows"] - CALLS["rows"])


def points(values: list[int], cost: Callable[[int], Cost]) -> dict[str, list[dict[str, Any]]]:
    """Runs of one figure that cost so much, one of them disturbed."""
    found = {}
    for value in values:
        layers, head = cost(value)
        took = {"all": layers + head, "layers": layers, "head": head}
        runs = [{"seconds": {"score": took}} for _ in range(2)]
        late = {name: 9 * seconds for name, seconds in took.items()}
        found[str(value)] = [*runs, {"seconds": {"score": late}}]
    return found


def fitted(values: list[int], cost: Callable[[int], Cost]) -> Fit:
    curve = next(curve for curve in CURVES if curve.name == "scored.score")
    prices = [{"seconds": {name: {"all": seconds} for name, seconds in CALLS.items()}}]
    return fit(curve, points(values, cost), prices, MODEL, SIZES)


def test_a_curve_is_held_against_its_expectation() -> None:
    values = [8, 16, 32, 64]
    expected = Expected(MODEL, SIZES, Prices.of(CALLS, MODEL, SIZES))
    same = fitted(values, expected.score)
    assert same.within and same.slopes.ratio == pytest.approx(1)
    assert same.bend == pytest.approx(1) and same.squared_correlation == pytest.approx(1)
    assert same.parts["Python"].measured == pytest.approx(0, abs=1e-12)

    def twice_the_head(tokens: int) -> Cost:
        cost = expected.score(tokens)
        return cost._replace(head=2 * cost.head + 1)

    steep = fitted(values, twice_the_head)
    assert not steep.within and steep.bend is not None and steep.bend < 1.1
    assert steep.parts["layers"].ratio == pytest.approx(1)
    assert steep.parts["head"].ratio == pytest.approx(2)

    def square(tokens: int) -> Cost:
        return Cost(expected.score(tokens).layers, 1e-4 * tokens**2)

    bent = fitted(values, square)
    assert bent.bend is not None and bent.bend > 1.5


@pytest.mark.parametrize(("growth", "within"), [(0.1, True), (0.2, False), (-0.2, False)])
def test_what_should_not_grow(growth: float, within: bool) -> None:
    values, sizes = [1, 2, 3], [1.0, 1 + growth / 2, 1 + growth]
    ranges = [(size, size) for size in sizes]
    flat = Fit(values, sizes, ranges, [1.1] * 3, 0, slopes(values, sizes, [1.1] * 3), {})
    flat = replace(flat, slopes=Slopes(flat.slopes.measured, 0.0))
    assert flat.within is within
    assert flat.slopes.ratio is None and flat.squared_correlation is None


def test_memory_is_held_against_growth_alone() -> None:
    curve: Curve = next(curve for curve in CURVES if curve.name == "vocabulary.memory")
    held = {str(v): [{"bytes": {"peak": 7000 + 128 * v, "before": 0}}] for v in (320, 640, 960)}
    prices = [{"seconds": {name: {"all": seconds} for name, seconds in CALLS.items()}}]
    made = fit(curve, held, prices, MODEL, SIZES)
    assert made.within and made.slopes.measured == pytest.approx(128)
    assert made.expected == pytest.approx(made.measured)


def test_an_engine_takes_150_mb_beside_weights_and_cache(real_model: Path) -> None:
    found = growth.process("memory", real_model, "--small", "--workload", "score")
    assert found["weights"] > 260_000_000
    assert found["working"]["cache"] > found["opening"]["cache"] > 0
    for phase in ("opening", "working"):
        assert 0 < memory.excess(found, phase) <= memory.LIMIT, found
