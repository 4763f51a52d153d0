"""Every benchmark of a whole model runs, small: its figures are those of the work that it names."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import (
    bench_generate,
    bench_shift_run,
    bench_start,
    bench_token_shift,
    limits,
    workload,
)
from benchmarks.meter import Meter, layer_weights
from benchmarks.workload import BATCH, SKIPPED, Workload
from tests.fixtures import TinyModel
from urial_engine import Engine, SamplingParams, _native
from urial_engine.backends.base import Batch

FIGURES = {"prefill", "ttft_ms", "decode_1", "urial_32", "score"}


@pytest.fixture
def model(tiny_model: TinyModel) -> str:
    return str(tiny_model(max_position_embeddings=2048, folder="tiny"))


@pytest.fixture(autouse=True)
def nothing_beside_the_project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(workload, "SHARED", tmp_path / "absent")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder as the published texts have it."""
    folder = tmp_path / "data"
    (folder / "urial_prompts").mkdir(parents=True)
    (folder / "urial_prompts" / "inst_1k_v4.txt").write_text("# Instruction\n\nAnswer.\n" * 20)
    rows = [{"turns": ["q" * length, "second"]} for length in range(1, 60)]
    lines = "".join(json.dumps(row) + "\n" for row in reversed(rows))
    (folder / "mt_bench_questions.jsonl").write_text(lines)
    return folder


def last_json(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text.splitlines()[-1])
    return found


def test_the_published_texts_are_cut_as_stated(published: Path) -> None:
    texts = Workload.load(published)
    assert texts.prompt.text.startswith("# Instruction")
    assert [len(question) for question in texts.questions] == [*range(9, 9 + BATCH)]
    assert SKIPPED == 8
    assert texts.suffixes(2)[0] == "\n# Query:\n```\n2. qqqqqqqqq\n```\n\n# Answer:\n```\n"


def test_our_own_texts_are_as_many_and_no_two_runs_share_a_query() -> None:
    texts = Workload.load(None)
    assert len(set(texts.questions)) == BATCH
    assert not set(texts.suffixes(1)) & set(texts.suffixes(2))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_generate(model: str, dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    bench_generate.main([model, "--small", "--json", "--dtype", dtype])
    found = last_json(capsys.readouterr().out)
    texts = Workload.load(None, small=True)
    assert found["engine"]["dtype"] == dtype
    assert found["model"]["name"] == "tiny"
    assert found["machine"]["instruction sets"].endswith("portable")
    assert set(found["figures"]) == FIGURES
    for name, figure in found["figures"].items():
        assert found[name] == figure["value"] > 0
        assert 0 < figure["in_backend"] <= 1
        assert figure["GFLOPs"] >= 0 and figure["operations"] > 0 and figure["bytes"] > 0
    assert len(found["tokens"]) == 1 + texts.new
    memory = found["memory"]
    assert found["peak_MB"] > memory["weights_MB"] + memory["kv_MB"] > 0
    rows = {name: figure["rows"] for name, figure in found["figures"].items()}
    assert rows["prefill"] >= found["workload"]["prefix_tokens"] - 1  # all but BOS
    assert rows["decode_1"] == texts.new
    assert rows["urial_32"] > len(texts.questions) * (texts.new_batch - 1)


def test_what_is_not_the_named_work_is_no_figure(model: str) -> None:
    with Engine(model, dtype="float32", threads=1) as engine:
        outputs = engine.generate("a text", SamplingParams(max_tokens=2, ignore_eos=True))
        bench_generate.check(outputs, 2, cached=range(1))
        with pytest.raises(RuntimeError, match="made 2 tokens of 3"):
            bench_generate.check(outputs, 3, cached=range(1))
        with pytest.raises(RuntimeError, match="with 0 cached"):
            bench_generate.check(outputs, 2, cached=range(5, 9))


def test_the_meter_counts_each_weight_once_and_each_shared_block_once(model: str) -> None:
    with Engine(model, dtype="float32", threads=1) as engine:
        config, backend = engine.config, engine.backend
        meter = Meter(engine)
        size = backend.block_size
        tables = np.array([[0, 1], [0, 2]], np.int32)
        positions = np.array([0, size], np.int32)  # the second row sees two blocks
        batch = Batch(np.array([3, 4], np.int32), positions, np.array([0, 1], np.int32), tables)
        hidden = backend.forward(batch)
        layers = meter.take()
        backend.score(hidden, np.array([5, 6], np.int32), 0)
        head = meter.take()
    weights = config.num_layers * (3 * 32 * 56 + 2 * 32 * 32 + 2 * 16 * 32)
    assert layer_weights(config) == weights
    attention = 4 * config.num_layers * 32 * (1 + size + 1)
    assert (layers.calls, layers.rows) == (1, 2)
    assert layers.operations == 2 * 2 * weights + attention
    assert layers.bytes == 4 * weights + 2 * backend.block_bytes
    assert (head.calls, head.rows) == (1, 0)
    assert head.operations == 2 * 2 * 320 * 32 and head.bytes == 4 * 320 * 32


def test_start(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    bench_start.main([model, "--small", "--json"])
    shown = capsys.readouterr().out
    found = last_json(shown)
    ms = found["ms"]
    assert sum(ms[stage] for stage in bench_start.STAGES) == pytest.approx(ms["total"], abs=1)
    assert all(value > 0 for value in ms.values())
    assert 0 < ms["restore"] < ms["prefix"]
    assert found["file_bytes"] == (Path(model) / "model.safetensors").stat().st_size
    assert found["peak_bytes"] > found["weight_bytes"] > 0 < found["cold_ms"]
    assert [line.split("  ")[0] for line in shown.splitlines()[1:8]] == list(bench_start.STAGES)


def test_a_prefix_that_is_computed_again_is_no_start(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = {"prefix_source": "computed", "weight_bytes": 1 << 20, "total": 1.0}
    monkeypatch.setattr(bench_start, "start", lambda _: fresh)
    monkeypatch.setattr(bench_start, "answer", lambda _: 1.0)
    with pytest.raises(RuntimeError, match="computed again"):
        bench_start.main([model, "--small"])


def test_token_shift(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    bench_token_shift.main([model, "--small", "--json"])
    rows = last_json(capsys.readouterr().out)["rows"]
    assert [(row["what"], row["positions"]) for row in rows] == [
        *(("score", 8), ("token shift", 8)),
        *(("score", 16), ("token shift", 16)),
    ]
    for row in rows:
        assert row["per_second"] == pytest.approx(row["positions"] / row["seconds"], rel=0.5)
        assert row["grown_MB"] is None or row["grown_MB"] >= 0


def test_a_whole_run(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    bench_shift_run.main([model, "--small", "--json", "--threads", "1"])
    found = last_json(capfd.readouterr().out)
    assert found["ratio"] == pytest.approx(found["run_seconds"] / found["score_seconds"])
    assert len(found["ratios"]) == 1 and found["run_report"] > 0
    assert found["run_before_MB"] > 10


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from Linux")
def test_the_peak_is_counted_from_where_it_was_reset() -> None:
    def grow() -> None:
        np.ones(1 << 22, np.float64)

    first = bench_token_shift.row("x", 1, grow, 0)
    second = bench_token_shift.row("x", 1, lambda: None, 0)
    assert 30 < first["grown_MB"] < 50
    assert second["grown_MB"] < 5


def test_limits_of_every_instruction_set() -> None:
    found = limits.all_limits(1, seconds=0.01, size=1 << 22)
    isas = _native.available_isas()
    assert set(found) == {"read", *(f"{i} {d}" for i in isas for d in ("bfloat16", "float32"))}
    assert all(value > 0.1 for value in found.values())
    best = limits.Limits.best([limits.Limits(1.0, 4.0), limits.Limits(2.0, 3.0)])
    assert best == (2.0, 4.0)


@pytest.mark.parametrize(
    ("isa", "dtype", "threads", "message"),
    [
        ("mmx", "float32", 1, "mmx cannot be had"),
        ("portable", "float16", 1, "bfloat16 or float32"),
        ("portable", "float32", 0, "at least one thread"),
    ],
)
def test_a_limit_that_cannot_be_measured(isa: str, dtype: str, threads: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _native.arithmetic_peak(isa, dtype, threads, 0.01)
    with pytest.raises(ValueError, match="4096 bytes"):
        _native.read_bandwidth(1, 0.01, 100)
