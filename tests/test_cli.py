"""The command line: what each command prints and writes, and what becomes of errors and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from tests.fixtures import TinyModel
from urial_engine import Engine, SamplingParams, UrialPrompt
from urial_engine.cli.app import app

Cli = Callable[..., Result]
CODE = "import sys; from urial_engine.cli import main; sys.argv[0] = 'urial-engine'; main()"
PREFIX = "# Query:\n```\nhi\n```\n\n# Answer:\n```\nHello!\n```\n"


@pytest.fixture
def cli() -> Cli:
    """Runs a command; the exit code must be `code`."""

    def call(*arguments: object, code: int = 0, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)
        assert result.exit_code == code, result.output
        return result

    return call


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """A URIAL prefix file that fits in a tiny context."""
    path = tmp_path / "prefix.txt"
    path.write_text(PREFIX)
    return path


def rows_of(path: Path) -> dict[object, dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


def write_rows(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CODE, *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


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


def test_an_error_is_one_line_and_its_traceback_waits_for_debug(cli: Cli) -> None:
    result = cli("inspect", "/does/not/exist", code=1)
    assert result.stdout == ""
    assert (
        result.stderr
        == "error: there is no folder /does/not/exist (a hub id would be owner/name)\n"
    )
    result = CliRunner().invoke(app, ["--debug", "inspect", "/does/not/exist"])
    assert type(result.exception).__name__ == "CheckpointError"


def test_an_error_of_the_system_is_one_line_too(
    cli: Cli, tiny_model: TinyModel, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "in.jsonl", {"prompt": "a"})
    out = tmp_path / "no" / "out.jsonl"
    result = cli("generate", tiny_model(), "--in", rows, "--out", out, code=1)
    assert result.stderr == f"error: [Errno 2] No such file or directory: '{out}'\n"


def test_wrong_usage_exits_with_2(cli: Cli) -> None:
    assert "No such option" in cli("inspect", "--nothing", code=2).stderr


def test_inspect(cli: Cli, tiny_model: TinyModel) -> None:
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


def test_import_gguf(cli: Cli, tmp_path: Path) -> None:
    gguf_files = pytest.importorskip("tests.gguf_files", reason="needs the package gguf")
    file = tmp_path / "tiny.gguf"
    gguf_files.write_gguf(file)
    out = tmp_path / "model"
    assert f"is now the model folder {out}" in cli(
        "import-gguf", file, out, "--dtype", "float32"
    ).stdout.replace("\n", "")
    assert "on disk float32" in " ".join(cli("inspect", out).stdout.split())
    assert "is not an empty folder" in cli("import-gguf", file, out, code=1).stderr


def test_answer(cli: Cli, tiny_model: TinyModel, prefix: Path) -> None:
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


def test_answers_come_from_the_default_prefix_too(cli: Cli, tiny_model: TinyModel) -> None:
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
def test_a_wrong_setting_is_named(
    cli: Cli, tiny_model: TinyModel, setting: str, message: str
) -> None:
    assert message in cli("answer", tiny_model(), "q", "--set", setting, code=1).stderr


def test_generate_writes_what_the_engine_gives(
    cli: Cli, tiny_model: TinyModel, tmp_path: Path
) -> None:
    model, out = tiny_model(), tmp_path / "out.jsonl"
    rows = [{"id": "a", "prompt": "some"}, {"prompt_token_ids": [1, 9]}, {"id": 9, "prompt": "x"}]
    source = write_rows(tmp_path / "in.jsonl", *rows)
    sampling = ("--n", 2, "--temperature", 0.8, "--seed", 7, "--max-tokens", 9)
    machine = ("--device", "cpu", "--dtype", "float32", "--threads", 1, "--isa", "portable")
    memory = ("--max-batch", 2, "--kv-cache-gib", 0.01, "--read", "sequential")
    cli("generate", model, "--in", source, "--out", out, *sampling, *machine, *memory)
    found = rows_of(out)
    params = SamplingParams(n=2, temperature=0.8, seed=7, max_tokens=9)
    with Engine(model, isa="portable") as engine:
        outputs = engine.generate(["some", [1, 9], "x"], params)
    for key, row, output in zip(("a", 2, 9), rows, outputs, strict=True):
        samples = [
            {
                "text": sample.text,
                "token_ids": sample.token_ids,
                "finish_reason": sample.finish_reason,
                "stop_reason": sample.stop_reason,
                "cumulative_logprob": sample.cumulative_logprob,
            }
            for sample in output.outputs
        ]
        assert found[key] == {**row, "id": key, "outputs": samples, "seed": 7}


@pytest.mark.parametrize("form", ["urial", "chat", "Q: {query}\nA:"])
def test_generate_asks_queries(
    cli: Cli, tiny_model: TinyModel, tmp_path: Path, prefix: Path, form: str
) -> None:
    model, out = tiny_model(), tmp_path / "out.jsonl"
    source = write_rows(tmp_path / "in.jsonl", {"query": "why?"})
    spec = prefix if form == "urial" else form
    cli("generate", model, "--in", source, "--out", out, "--prompt", spec, "--max-tokens", 9)
    prompt = UrialPrompt(PREFIX)
    with Engine(model) as engine:
        chat = engine.tokenizer.render_chat([{"role": "user", "content": "why?"}])
        ids = engine.tokenizer.encode(chat, add_special_tokens=False)
        whole = {"urial": PREFIX + prompt.render("why?"), "chat": ids}
        given = whole.get(form, "Q: why?\nA:")
        expected = engine.generate(given, SamplingParams(max_tokens=9, stop=prompt.stop))[0]
    (row,) = rows_of(out).values()
    assert row["outputs"][0]["token_ids"] == expected.outputs[0].token_ids
    shown = {"urial": {"prompt": prompt.render("why?")}, "chat": {"prompt_token_ids": ids}}
    assert shown.get(form, {"prompt": given}).items() <= row.items()
    answer = prompt.clean(expected.outputs[0].text) if form == "urial" else None
    assert row["outputs"][0].get("answer") == answer


@pytest.mark.parametrize(
    ("options", "row", "message"),
    [
        ((), {"query": "a"}, "a query needs --prompt"),
        ((), {"prompt": "a", "prompt_token_ids": [1]}, "it has prompt and prompt_token_ids"),
        ((), {"prompt": 3}, "prompt must be a text, not 3"),
        ((), {"prompt_token_ids": [1, 999]}, "entry 1 is 999"),
        ((), {"prompt": "long " * 300}, "is too long"),
        (("--prompt", "{query}"), {"prompt": "a"}, "with --prompt, every row needs a query"),
    ],
)
def test_generate_refuses_a_row_before_any_work(
    cli: Cli, tiny_model: TinyModel, tmp_path: Path, options: Any, row: Any, message: str
) -> None:
    good = {"query": "a"} if options else {"prompt": "a"}
    source, out = write_rows(tmp_path / "in.jsonl", good, row), tmp_path / "out.jsonl"
    result = cli("generate", tiny_model(), "--in", source, "--out", out, *options, code=1)
    assert f"{source}:2" in result.stderr
    assert message in result.stderr
    assert not out.exists() or not out.read_bytes()


def test_a_finished_run_is_taken_up_only_with_its_own_parameters(
    cli: Cli, tiny_model: TinyModel, tmp_path: Path
) -> None:
    model, out = tiny_model(), tmp_path / "out.jsonl"
    source = write_rows(tmp_path / "in.jsonl", {"prompt": "a"}, {"prompt": "b"})
    run = ("generate", model, "--in", source, "--out", out, "--max-tokens", 5)
    assert "2 rows, 2 of them new" in cli(*run).stderr
    before = out.read_bytes()
    assert "2 rows, 0 of them new" in cli(*run).stderr
    message = "temperature (0.0 then, 0.5 now)"
    assert message in cli(*run, "--temperature", 0.5, code=1).stderr
    assert "isa (" in cli(*run, "--isa", "portable", code=1).stderr
    other = tiny_model(seed=1)
    assert "weights (" in cli("generate", other, *run[2:], code=1).stderr
    assert out.read_bytes() == before
    write_rows(source, {"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"})
    assert "3 rows, 1 of them new" in cli(*run).stderr
    assert out.read_bytes().startswith(before)


def test_a_run_killed_at_any_point_is_taken_up(
    cli: Cli, tiny_model: TinyModel, tmp_path: Path
) -> None:
    model, source = tiny_model(), tmp_path / "in.jsonl"
    write_rows(source, *({"id": f"row {i}", "prompt": f"text {i}"} for i in range(60)))
    options = ("--max-tokens", 40, "--max-batch", 4, "--temperature", 0.9, "--seed", 1)
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    cli("generate", model, "--in", source, "--out", whole, *options)
    for goal in (1, 20, 45):  # rows that must be there before the process is killed
        process = start("generate", model, "--in", source, "--out", out, *options)
        while process.poll() is None and (not out.exists() or count(out) < goal):
            time.sleep(0.002)
        process.kill()
        process.communicate()
        held = out.read_bytes()
        assert count(out) >= goal
        out.write_bytes(held + b'{"id": "row')  # as if it had been killed while writing
        assert "dropped 11 bytes of a half-written last row" in follow(
            "generate", model, "--in", source, "--out", out, *options, stop_after=count(out) + 2
        )
        assert out.read_bytes().startswith(held)
    cli("generate", model, "--in", source, "--out", out, *options)
    assert rows_of(out) == rows_of(whole)


def count(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def follow(*arguments: Any, stop_after: int) -> str:
    """Run it until its output has so many rows, press Ctrl-C, and return what it said."""
    process = start(*arguments)
    out = Path(arguments[arguments.index("--out") + 1])
    while process.poll() is None and count(out) < stop_after:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    finished = count(out) == 60
    assert process.returncode == (0 if finished else 130), said
    assert "Traceback" not in said
    return said.replace("\n", " ")


def test_score_writes_what_the_engine_gives(
    cli: Cli, tiny_model: TinyModel, tmp_path: Path
) -> None:
    model, out = tiny_model(), tmp_path / "out.jsonl"
    rows = [
        {"id": "t", "prompt": "one ", "continuation": "two three"},
        {"prompt_token_ids": [1, 5], "continuation_token_ids": [7, 8, 9], "more": 1},
    ]
    source = write_rows(tmp_path / "in.jsonl", *rows)
    run = ("score", model, "--in", source, "--out", out, "--top-k", 3)
    cli(*run)
    with Engine(model) as engine:
        scores = engine.score(["one ", [1, 5]], ["two three", [7, 8, 9]], top_k=3)
    found = rows_of(out)
    for key, row, score in zip(("t", 2), rows, scores, strict=True):
        names = ("token_ids", "rank", "ties", "logprob", "entropy", "top_ids", "top_logprobs")
        values = {name: getattr(score, name).tolist() for name in names}
        given = {name: value for name, value in row.items() if name != "more"}
        assert found[key] == {**given, "id": key, **values}
    assert "2 rows, 0 of them new" in cli(*run).stderr
    assert "top_k (3 then, 4 now)" in cli(*run[:-1], 4, code=1).stderr


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "exactly one of continuation, continuation_token_ids is needed"),
        ({"continuation": "a"}, "exactly one of prompt, prompt_token_ids is needed"),
        ({"prompt": "a", "continuation": ""}, "the continuation is empty"),
    ],
)
def test_score_refuses_a_row_before_any_work(
    cli: Cli, tiny_model: TinyModel, tmp_path: Path, row: Any, message: str
) -> None:
    source = write_rows(tmp_path / "in.jsonl", {"prompt": "a", "continuation": "b"}, row)
    out = tmp_path / "out.jsonl"
    result = cli("score", tiny_model(), "--in", source, "--out", out, code=1)
    assert f"{source}:2" in result.stderr
    assert message in result.stderr
    assert not out.exists() or not out.read_bytes()


def test_prefixes_are_stored_listed_verified_and_cleared(
    cli: Cli, tiny_model: TinyModel, tmp_path: Path, prefix: Path
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


def test_a_prefix_folder_needs_a_prefix(cli: Cli, tiny_model: TinyModel, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", {"prompt": "a"})
    run = ("generate", tiny_model(), "--in", source, "--out", tmp_path / "out.jsonl")
    assert "without a prefix to keep in it" in cli(*run, "--prefix-dir", tmp_path, code=1).stderr


def test_shift_between_two_models_is_saved(
    cli: Cli, tiny_model: TinyModel, tmp_path: Path, prefix: Path
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
    assert "«" in result.stdout
    assert "▸ how?" in result.stdout
    assert "Token shift" in result.stdout
    table = parquet.read_table(out / "tokens.parquet").to_pydict()
    assert len(table["base_top_ids"][0]) == 2
    with Engine(aligned) as engine:
        answers = engine.generate(["Q: why?\n", "Q: how?\n"], SamplingParams(max_tokens=12))
    tokens = [token for answer in answers for token in answer.outputs[0].token_ids]
    assert table["token_id"] == tokens


def test_shift_of_given_answers_within_one_model(
    cli: Cli, tiny_model: TinyModel, tmp_path: Path
) -> None:
    model = tiny_model()
    given = [{"query": "a", "answer": "because"}, {"query": "b", "answer_token_ids": [5, 6]}]
    queries = write_rows(tmp_path / "queries.jsonl", *given)
    same = ("--base-prompt", "chat", "--aligned-prompt", "chat")
    shown = cli("shift", "--base", model, "--aligned", model, "--queries", queries, *same).stdout
    assert "Shifted most often" in shown
    all_tokens = next(line for line in shown.splitlines() if line.startswith("│ all"))
    assert all_tokens.split()[-2:] == ["0.00", "│"]  # the divergence of a context from itself
    write_rows(queries, given[0], {"query": "b"})
    run = ("shift", "--base", model, "--aligned", model, "--queries", queries)
    assert "1 of 2 rows have an answer" in cli(*run, code=1).stderr
    queries.write_text("\n")
    assert "has no queries" in cli(*run, code=1).stderr


def test_a_closed_pipe_is_no_traceback(tiny_model: TinyModel) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", CODE, "inspect", str(tiny_model())]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_read_bandwidth_is_a_rate() -> None:
    from urial_engine.cli.bandwidth import read_bandwidth

    assert 1e8 < read_bandwidth(1, 1 << 20) < 1e13
    assert np.isfinite(read_bandwidth(2, 8))
