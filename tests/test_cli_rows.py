"""`generate` and `score`: rows in, rows out, and runs that are killed and taken up."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import PREFIX, cli, rows_of, start, write_prefix, write_rows
from tests.fixtures import TinyModel
from urial_engine import Engine, SamplingParams, UrialPrompt


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    return write_prefix(tmp_path)


def test_generate_writes_what_the_engine_gives(tiny_model: TinyModel, tmp_path: Path) -> None:
    model, out = tiny_model(), tmp_path / "out.jsonl"
    rows = [{"id": "a", "prompt": "some"}, {"prompt_token_ids": [1, 9]}, {"id": 9, "prompt": "x"}]
    source = write_rows(tmp_path / "in.jsonl", *rows)
    sampling = ("--n", 2, "--temperature", 0.8, "--seed", 7, "--max-tokens", 9)
    machine = (
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--threads",
        1,
        "--isa",
        "portable",
        "--invariant",
    )
    memory = ("--max-batch", 2, "--kv-cache-gib", 0.01, "--invariant")
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
    tiny_model: TinyModel, tmp_path: Path, prefix: Path, form: str
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
    tiny_model: TinyModel, tmp_path: Path, options: Any, row: Any, message: str
) -> None:
    good = {"query": "a"} if options else {"prompt": "a"}
    source, out = write_rows(tmp_path / "in.jsonl", good, row), tmp_path / "out.jsonl"
    result = cli("generate", tiny_model(), "--in", source, "--out", out, *options, code=1)
    assert f"{source}:2" in result.stderr
    assert message in result.stderr
    assert not out.exists() or not out.read_bytes()


def test_a_finished_run_is_taken_up_only_with_its_own_parameters(
    tiny_model: TinyModel, tmp_path: Path
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


def test_a_run_killed_at_any_point_is_taken_up(tiny_model: TinyModel, tmp_path: Path) -> None:
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


def test_score_writes_what_the_engine_gives(tiny_model: TinyModel, tmp_path: Path) -> None:
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
    tiny_model: TinyModel, tmp_path: Path, row: Any, message: str
) -> None:
    source = write_rows(tmp_path / "in.jsonl", {"prompt": "a", "continuation": "b"}, row)
    out = tmp_path / "out.jsonl"
    result = cli("score", tiny_model(), "--in", source, "--out", out, code=1)
    assert f"{source}:2" in result.stderr
    assert message in result.stderr
    assert not out.exists() or not out.read_bytes()
