"""The tuner of attention's tiles: it runs without a GPU, and ranks as it says."""

from __future__ import annotations

import pytest
from triton.runtime.errors import OutOfResources

from benchmarks.gpu_check import tune
from benchmarks.gpu_check.clock import Clock, the_gpu
from benchmarks.gpu_check.steps import TINY
from tests.interpreted import without_gpu
from urial_engine.config import ModelConfig
from urial_engine.kernels.attention.tiles import Tile

pytestmark = [without_gpu, pytest.mark.filterwarnings("ignore::RuntimeWarning")]


def test_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.main(["--interpreted"]) == 0
    said = capsys.readouterr().out
    assert "## Head size 8" in said
    assert "| (16, 4, 1) (the table has this) |" in said and "| (16, 4, 2) |" in said


def test_the_best_mean_is_first() -> None:
    a, b, c = (tune.Timed(Tile(q, 4, 1), s) for q, s in ((16, (1, 4)), (32, (2, 1)), (64, (8, 4))))
    found = tune.ranked([a, b, c])
    assert [one.tile.queries for one in found] == [32, 16, 64]
    assert [one.mean for one in found] == pytest.approx([2**0.5, 2, 32**0.5])


def test_a_tile_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def workloads(bench: tune.Bench, *, small: bool) -> tuple[float, ...]:
        if bench.tile.queries > 64:
            raise OutOfResources(200000, 101376, "shared memory")
        return (float(bench.tile.queries),)

    monkeypatch.setattr(tune, "workloads", workloads)
    clock, config = Clock(the_gpu(interpreted=True), small=True), ModelConfig.from_dict(TINY)
    timed, too_large = tune.measure(clock, config, tune.TILES)
    assert {each.queries for each in too_large} == {128}
    assert timed[0].tile.queries == 16 and len(timed) + len(too_large) == len(tune.TILES)
    text = "\n".join(tune.lines(clock, 8, timed, too_large))
    assert text.count("\n|") == 2 + tune.BEST and "Too large for the device: (128, 4, 1)" in text
