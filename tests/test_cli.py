"""The command line: what each command prints, and what becomes of errors."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.command_line import cli, rows_of, start, write_prefix, write_rows
from tests.fixtures import TinyModel
from urial_engine import Engine, SamplingParams, UrialPrompt
from urial_engine.cli.app import app
from urial_engine.tokenizer import Tokenizer


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    return write_prefix(tmp_path)


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "tokenizers", "jinja2", "safetensors", "huggingface_hub"}
    code = f"""
import sys
from urial_engine.cli import main
sys.argv = ["urial-engine", "--help"]
try:
    main()
finally:
    assert not {heavy!r} & sys.modules.keys(), {heavy!r} & sys.modules.keys()
"""
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    for name in (
        "demo",
        "answer",
        "generate",
        "score",
        "shift",
        "prefix",
        "import-gguf",
        "inspect",
    ):
        assert f" {name} " in shown.stdout


def test_an_error_is_one_line_and_its_traceback_waits_for_debug() -> None:
    result = cli("inspect", "/does/not/exist", code=1)
    assert result.stdout == ""
    assert (
        result.stderr
        == "error: there is no folder /does/not/exist (a hub id would be owner/name)\n"
    )
    result = CliRunner().invoke(app, ["--debug", "inspect", "/does/not/exist"])
    assert type(result.exception).__name__ == "CheckpointError"


def test_an_error_of_the_system_is_one_line_too(tiny_model: TinyModel, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "in.jsonl", {"prompt": "a"})
    out = tmp_path / "no" / "out.jsonl"
    result = cli("generate", tiny_model(), "--in", rows, "--out", out, code=1)
    assert result.stderr == f"error: [Errno 2] No such file or directory: '{out}'\n"


def test_version() -> None:
    assert cli("--version").stdout == f"urial-engine {version('urial-engine')}\n"


def test_a_context_shorter_than_the_models(tiny_model: TinyModel, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "in.jsonl", {"prompt": "abc"})
    out, options = tmp_path / "out.jsonl", ("--max-model-len", 20, "--set", "ignore_eos=true")
    cli("generate", tiny_model(), "--in", rows, "--out", out, *options)
    (row,) = rows_of(out).values()
    prompt = len(Tokenizer.load(tiny_model()).encode("abc"))
    assert prompt + len(row["outputs"][0]["token_ids"]) == 20


def test_wrong_usage_exits_with_2() -> None:
    assert "No such option" in cli("inspect", "--nothing", code=2).stderr


def test_inspect(tiny_model: TinyModel) -> None:
    model = tiny_model(dtype="float16", rope_scaling={"type": "linear", "factor": 2.0}, unknown=1)
    shown = " ".join(cli("inspect", model).stdout.split())
    for fact in (
        "kind llama",
        "heads 4 of size 8, 2 for keys and values",
        "RoPE linear, theta 10000, factor 2",
        "ignored keys unknown",
        "on disk float16",
        "tied head no: config.json says tie_word_embeddings = false, and there is a lm_head.weight",
        "KV-cache 0.1 MiB per 1,000 tokens",
        "BOS 1, put before a text: yes",
        "portable",
    ):
        assert fact in shown, fact
    count = 2 * 320 * 32 + 32 + 2 * (2 * 32 + 32 * 32 * 2 + 2 * 16 * 32 + 3 * 32 * 56)
    assert f"parameters {count:,}" in shown


def test_import_gguf(tmp_path: Path) -> None:
    gguf_files = pytest.importorskip("tests.gguf_files", reason="needs the package gguf")
    file = tmp_path / "tiny.gguf"
    gguf_files.write_gguf(file)
    out = tmp_path / "model"
    assert f"is now the model folder {out}" in cli(
        "import-gguf", file, out, "--dtype", "float32"
    ).stdout.replace("\n", "")
    assert "on disk float32" in " ".join(cli("inspect", out).stdout.split())
    assert "is not an empty folder" in cli("import-gguf", file, out, code=1).stderr


def test_answer(tiny_model: TinyModel, prefix: Path) -> None:
    model, prompt = tiny_model(), UrialPrompt.load(prefix)
    with Engine(model, prefix=prompt) as engine:
        params = SamplingParams(
            max_tokens=20, temperature=0.5, seed=3, top_p=0.9, repetition_penalty_scope="output"
        )
        expected = engine.answer(["what?", "why?"], params)
    options = (model, "--prompt", prefix, "--max-tokens", 20, "--temperature", 0.5, "--seed", 3)
    options = (*options, "--repetition-penalty", 1, "--set", "top_p=0.9")
    text = "".join(f"▸ {q}\n{a}\n\n" for q, a in zip(("what?", "why?"), expected, strict=True))
    assert cli("answer", *options, "what?", "why?").stdout == text
    assert cli("answer", *options, "--stream", "what?", "why?").stdout == text
    assert cli("answer", *options, stdin="what?\n\nwhy?\n").stdout == text
    assert cli("answer", *options, "--stream", stdin="what?\nwhy?").stdout == text


def test_answers_come_from_the_default_prefix_too(tiny_model: TinyModel) -> None:
    model = tiny_model(max_position_embeddings=8192)
    with Engine(model, prefix=UrialPrompt.default()) as engine:
        params = SamplingParams(max_tokens=9, repetition_penalty=1.1)
        expected = engine.answer("why?", params)
    options = ("--max-tokens", 9, "--set", "repetition_penalty_scope=all")
    assert cli("answer", model, "why?", *options).stdout == f"▸ why?\n{expected[0]}\n\n"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("top_p", "--set top_p: write NAME=VALUE"),
        ("heat=1", "unknown sampling parameter: 'heat'"),
        ("top_p=2", "top_p=2: must be between 0.0 and 1.0"),
        ("top_p=high", "top_p='high': must be a finite number"),
    ],
)
def test_a_wrong_setting_is_named(tiny_model: TinyModel, setting: str, message: str) -> None:
    assert message in cli("answer", tiny_model(), "q", "--set", setting, code=1).stderr


def test_prefixes_are_stored_listed_verified_and_cleared(
    tiny_model: TinyModel, tmp_path: Path, prefix: Path
) -> None:
    model, folder = tiny_model(), tmp_path / "prefixes"
    store = ("prefix", "store", model, "--prompt", prefix)
    assert "give --prefix-dir" in cli(*store, code=1).stderr
    store = (*store, "--prefix-dir", folder)
    assert "tokens computed in" in cli(*store).stdout
    assert "tokens restored in" in cli(*store).stdout
    (file,) = folder.iterdir()
    chosen = ("--prefix-dir", folder)
    assert "cpu" in cli("prefix", "list", *chosen).stdout
    assert cli("prefix", "verify", *chosen).stdout == f"{file.name}: whole\n"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert "its checksum does not fit" in cli("prefix", "verify", *chosen, code=1).stdout
    file.write_bytes(data[:-1])
    assert "damaged" in cli("prefix", "list", *chosen).stdout
    assert cli("prefix", "clear", *chosen).stdout == "1 removed\n"
    assert not list(folder.iterdir())


def test_a_prefix_folder_needs_a_prefix(tiny_model: TinyModel, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", {"prompt": "a"})
    run = ("generate", tiny_model(), "--in", source, "--out", tmp_path / "out.jsonl")
    assert "without a prefix to keep in it" in cli(*run, "--prefix-dir", tmp_path, code=1).stderr


def test_shift_between_two_models_is_saved(
    tiny_model: TinyModel, tmp_path: Path, prefix: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the package pyarrow")
    base, aligned, out = tiny_model(seed=1), tiny_model(seed=2), tmp_path / "shift"
    queries = tmp_path / "queries.txt"
    queries.write_text("why?\n\nhow?\n")
    models = ("--base", base, "--aligned", aligned, "--queries", queries, "--out", out)
    forms = ("--base-prompt", prefix, "--aligned-prompt", "Q: {query}\n", "--max-tokens", 12)
    kept = tmp_path / "prefixes"
    result = cli("shift", *models, *forms, "--top-k", 2, "--prefix-dir", kept)
    assert len(list(kept.iterdir())) == 1
    assert "shifted" in result.stdout and f"{out / 'page.html'}" in result.stderr
    assert "Token shift" in result.stdout
    table = parquet.read_table(out / "tokens.parquet").to_pydict()
    assert len(table["base_top_ids"][0]) == 2
    with Engine(aligned) as engine:
        answers = engine.generate(["Q: why?\n", "Q: how?\n"], SamplingParams(max_tokens=12))
    tokens = [token for answer in answers for token in answer.outputs[0].token_ids]
    assert table["token_id"] == tokens


def test_shift_of_given_answers_within_one_model(tiny_model: TinyModel, tmp_path: Path) -> None:
    model = tiny_model()
    given = [{"query": "a", "answer": "because"}, {"query": "b", "answer_token_ids": [5, 6]}]
    queries = write_rows(tmp_path / "queries.jsonl", *given)
    same = ("--base-prompt", "chat", "--aligned-prompt", "chat")
    shown = cli("shift", "--base", model, "--aligned", model, "--queries", queries, *same).stdout
    assert "Shifted beyond their frequency" in shown and "«shifted» (further down)" in shown
    all_tokens = next(line for line in shown.splitlines() if line.startswith("│ all"))
    assert all_tokens.split()[-2:] == ["0.00", "│"]  # the divergence of a context from itself
    write_rows(queries, given[0], {"query": "b"})
    run = ("shift", "--base", model, "--aligned", model, "--queries", queries)
    assert "1 of 2 have none" in cli(*run, code=1).stderr
    queries.write_text("\n")
    assert "has no queries" in cli(*run, code=1).stderr


def test_a_closed_pipe_is_no_traceback(tiny_model: TinyModel) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = start("inspect", tiny_model(), stdout=writing)
    os.close(writing)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in said


def test_read_bandwidth_is_a_rate() -> None:
    from urial_engine.backends.cpu import read_bandwidth

    assert 1e8 < read_bandwidth(1, 1 << 20) < 1e13
