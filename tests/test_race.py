"""A race runs, small: a real peer, one that fails, one that cannot be had; and what it needs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks import models, race, workload
from benchmarks.peers import common, install, to_gguf
from benchmarks.peers.install import PEERS, Peer, PeerError
from benchmarks.race import EVERYTHING, NO_AMX, Contender
from benchmarks.race_report import FIGURES, markdown
from tests.fixtures import TinyModel, gguf_of_the_real_model
from urial_engine.gguf_import import import_gguf


@pytest.fixture(autouse=True)
def nothing_beside_the_project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(workload, "SHARED", tmp_path / "absent")
    monkeypatch.setattr(install, "FOLDER", tmp_path / "peers")


def interpreter(peer: Peer, lines: str) -> None:
    """An environment whose python is a shell script."""
    python = peer.environment / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{lines}\n")
    python.chmod(0o755)
    peer.stamp.write_text("")


def test_race(tiny_model: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model(max_position_embeddings=2048, folder="tiny")
    interpreter(PEERS["vllm_cpu"], "echo no such model >&2; exit 1")
    interpreter(PEERS["llamacpp"], f'exec {sys.executable} "$@"')
    out = tmp_path / "out"
    options = ["--small", "--repeats", "2", "--isa", "auto,portable", "--out", str(out)]
    assert race.main([str(model), *options]) == 1  # one failed

    page = (out / "race-tiny.md").read_text()
    assert page in capsys.readouterr().out
    assert "- not run: openvino_genai: it has no environment: make peers" in page
    assert "49152 tokens, the model 320" in page  # llama.cpp's tokenizer is another
    assert "- failed: vllm_cpu: exit code 1: no such model" in page
    assert "cuts the prefix" not in page  # bf16 may let a greedy answer of noise differ
    assert str(tmp_path) not in page.replace(str(gguf_of_the_real_model()), "")
    assert (out / "race-tiny.png").read_bytes().startswith(b"\x89PNG")

    data = json.loads((out / "race-tiny.json").read_text())
    for name in ("urial-engine auto", "urial-engine portable", "transformers"):
        runs = data[name]["runs"]
        assert len(runs) == 2 and data[name]["groups"] == [EVERYTHING]
        assert all(run[figure] > 0 for run in runs for figure in (*FIGURES, "peak_MB"))
        assert runs[0]["tokens"] == runs[1]["tokens"]
    values = [run["prefill"] for run in data["transformers"]["runs"]]
    assert f"**{sum(values) / 2:,.1f}** ({min(values):,.1f}–{max(values):,.1f})" in page


def figures(prefill: float, **more: Any) -> dict[str, Any]:
    found = {"prefill": prefill, "ttft_ms": 100 / prefill, "peak_MB": 300.0, "disturbed": 0.01}
    return {**found, **more}


def test_the_page_says_how_many_times_as_fast_and_who_computes_something_else() -> None:
    names = ("GBps", "of_read", "GFLOPs", "of_arithmetic", "of_roofline", "in_backend")
    share = dict.fromkeys(names, 0.5)
    counts = {"texts": "built-in", "prefix_tokens": 9, "queries": 2, "new_batch": 3}
    ours = figures(
        30.0,
        peer="urial-engine x",
        model={"name": "m", "parameters": 2e6},
        engine={"threads": 2},
        memory={"weights_MB": 90.0, "kv_MB": 10.0},
        limits={"read_GBps": 38.0, "GFLOPs": 400.0},
        figures=dict.fromkeys(FIGURES, share),
        workload=counts,
        machine={"cores": "2"},
        prefix_tokens=9,
        tokens=[4, 5, 6],
    )
    theirs = figures(10.0, peer="other 1.0", prefix_tokens=8, tokens=[4, 5, 7])
    own = Contender("urial-engine auto", [], own=True, runs=[ours])
    again = {**theirs, "prefill": 20.0, "disturbed": 0.3}
    other = Contender("other", [], (EVERYTHING, NO_AMX), runs=[again, theirs])
    page = markdown([own, other], ["absent: no reason"])
    assert "| other 1.0 | 2.00 × | 3.00 × | – | – | – |" in page
    assert (
        "| other 1.0 | **15.0** (10.0–20.0) | **10.0** (10.0–10.0) | – | – | – | 300 (3.0 ×)"
        in page
    )
    assert "## Without AMX" in page and "38.0" in page
    assert "- other: cuts the prefix into 8 tokens" in page
    assert "- other: its greedy answer leaves ours after 2 of 3 tokens" in page
    assert "- other: other processes took up to 30% of the machine meanwhile" in page
    assert "- not run: absent: no reason" in page


def test_what_others_do_meanwhile_is_told_from_what_the_engine_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stat = tmp_path / "stat"
    monkeypatch.setattr(race, "STAT", stat)
    work = "sum(range(10**6)); print('{}')"
    alone = Contender("alone", [sys.executable, "-c", work])
    busy = f"cpu {100 * 3600} 0 0 9 9 0 0 0"  # ticks of an hour
    disturbed = Contender(
        "not", [sys.executable, "-c", f"open({str(stat)!r}, 'w').write({busy!r}); {work}"]
    )
    for contender in (alone, disturbed):
        stat.write_text("cpu 0 0 0 0 0 0 0 0 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
        contender.run(1)
    assert alone.runs[0]["disturbed"] == 0
    assert disturbed.runs[0]["disturbed"] > 1


def test_who_is_entered_where(tmp_path: Path) -> None:
    args = race.options(["m", "--isa", "amx_bf16,avx2"])
    assert [c.groups for c in race.ourselves(args)] == [(EVERYTHING,)] * 2
    args.no_amx = True
    assert [c.groups for c in race.ourselves(args)] == [(EVERYTHING,), (NO_AMX,)]
    plain, kept = race.entries(PEERS["transformers"], args, tmp_path)
    assert (plain.groups, plain.variables) == ((EVERYTHING,), {})
    assert (kept.groups, kept.variables) == ((NO_AMX,), install.ONEDNN_NO_AMX)
    interpreter(PEERS["vllm_cpu"], "")
    indifferent = Peer("vllm_cpu", None)
    assert [c.groups for c in race.entries(indifferent, args, tmp_path)] == [(EVERYTHING, NO_AMX)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--peers", "hf,transformers"], "no peer is named hf"),
        (["--dtype", "float32"], "run in bfloat16"),
        (["--no-amx"], "has none"),
    ],
)
def test_a_race_that_cannot_be_run(
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(race, "_native", SimpleNamespace(available_isas=lambda: ["portable"]))
    with pytest.raises(SystemExit):
        race.options(["m", *options])
    assert message in capsys.readouterr().err


def test_without_amx_we_run_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "_native", SimpleNamespace(available_isas=lambda: ["amx_bf16"]))
    assert race.options(["m", "--no-amx"]).isa == "auto,avx512_bf16"


def test_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be installed is named and the others go on; nothing is done twice."""
    monkeypatch.setattr(install, "HERE", tmp_path)
    monkeypatch.setattr(install, "ROOT", tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setattr(
        install, "PEERS", {n: Peer(n, None) for n in ("absent", "empty", "torchless")}
    )
    (tmp_path / "absent.txt").write_text("no-such-distribution==1\n")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    assert install.main([str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "absent: ERROR: No matching distribution found for no-such-distribution==1" in said
    assert "empty: ready" in said
    assert "torchless: torch and torchless are not installed: make .venv/.test" in said
    assert (tmp_path / "peers" / "empty" / "bin" / "python").exists()

    install.main([str(tmp_path)])
    assert "empty: installing" not in capsys.readouterr().out
    (tmp_path / "empty.txt").write_text("# nothing else\n")
    install.main([str(tmp_path)])
    assert "empty: installing" in capsys.readouterr().out


def test_a_model_is_converted_once_and_again_when_it_changes(tmp_path: Path) -> None:
    source, log = tmp_path / "model", tmp_path / "log"
    source.mkdir()
    (source / "config.json").write_text("{}")
    interpreter(
        PEERS["llamacpp"], f'echo "$1" >> {log}; test -e {source}/bad && exit 3; touch "$1"'
    )
    peer = Peer("llamacpp", None, "m.gguf", lambda _, out: [out])
    first = peer.model(source)
    assert first.exists() and peer.model(source) == first
    assert len(log.read_text().splitlines()) == 1
    (source / "bad").write_text("")
    with pytest.raises(PeerError, match="exit code 3"):
        peer.model(source)
    (source / "bad").unlink()
    (source / "config.json").write_text("{ }")
    assert peer.model(source) != first


def test_a_random_model_goes_to_gguf_and_back(tmp_path: Path, real_model: Path) -> None:
    """Our own importer, which transformers' is the oracle of, reads the same bits."""
    made, file, back = tmp_path / "made", tmp_path / "m.gguf", tmp_path / "back"
    models.main(["tiny", str(made), "--tokenizer-from", str(real_model)])
    to_gguf.convert(made, file, gguf_of_the_real_model())
    import_gguf(file, back)
    before, after = (load_file(folder / "model.safetensors") for folder in (made, back))
    assert set(before) == set(after)
    for name, array in before.items():
        assert array.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(array.view(np.uint16), after[name].view(np.uint16), name)
    matrix = before["model.layers.1.self_attn.k_proj.weight"].astype(np.float32)
    assert matrix.shape == (32, 64)
    assert matrix.std() == pytest.approx(models.DEVIATION, rel=0.1)
    config = json.loads((back / "config.json").read_text())
    assert (config["vocab_size"], config["rope_theta"]) == (49152, 10000.0)


def test_what_is_not_converted_is_named(tmp_path: Path, tiny_model: TinyModel) -> None:
    folder = tiny_model(dtype="float32", vocab_size=49152)
    with pytest.raises(SystemExit, match="is float32, not bfloat16"):
        to_gguf.convert(folder, tmp_path / "m.gguf", gguf_of_the_real_model())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "mistral"}))
    with pytest.raises(SystemExit, match="not converted: mistral"):
        to_gguf.convert(folder, tmp_path / "n.gguf", gguf_of_the_real_model())


def test_peers_take_time_and_memory_alike() -> None:
    steps = common.Steps.take(iter([7, 8, 9]))
    assert steps.tokens == [7, 8, 9]
    assert common.Steps([1, 2, 3], [5.0, 5.5, 6.0]).rate == 2.0
    assert common.peak_memory() > 10_000_000
