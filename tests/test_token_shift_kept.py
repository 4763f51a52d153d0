"""The folder of a run, wherever it was left: what is taken up, what is refused, what is removed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import cli, write_rows
from tests.fixtures import TinyModel
from tests.test_cli_shift import Run, contents, pair, write_queries
from urial_engine import TokenShift, token_shift_kept

__all__ = ["pair"]  # a fixture
pytest.importorskip("pyarrow", reason="needs the package pyarrow")


class Ended(BaseException):
    """Where a test ends a run: nothing catches it on its way out."""


@pytest.fixture
def command(pair: Run, tmp_path: Path) -> Run:
    """A run of 70 short answers in three groups."""
    queries = write_queries(tmp_path / "queries.jsonl", 70)
    return (*pair, "--queries", queries, "--max-tokens", 4, "--out")


def end_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """The run is ended at this call of a function, and each later one: nothing is tidied up."""
    real, calls = getattr(owner, name), iter(range(10**6))

    def ends(*arguments: Any, **options: Any) -> Any:
        if next(calls) >= call:
            raise Ended
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, ends)


def ended(command: Run) -> None:
    with pytest.raises(Ended):
        cli(*command)


def test_a_run_ended_at_any_removal_or_renaming_is_taken_up(
    command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    cli(*command, whole)
    wanted = contents(whole)
    reached = 0
    for owner, name in ((os, "unlink"), (os, "rmdir"), (Path, "rename"), (Path, "replace")):
        for call in range(40):
            shutil.rmtree(out, ignore_errors=True)
            with monkeypatch.context() as patch:
                end_at(patch, owner, name, call)
                try:
                    cli(*command, out)
                    break  # there are no more of these calls
                except Ended:
                    reached += 1
            if call % 4 == 0 or call > 16:  # taking it up is the slow part
                cli(*command, out)
                assert contents(out) == wanted, f"ended at call {call} of {name}"
    assert reached > 12


def test_what_is_half_written_goes(command: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cli(*command, out)
    wanted = contents(out)
    (out / "tokens.parquet.4711").write_bytes(b"half")
    (out / "plots" / "classes.svg.4711").write_bytes(b"half")
    theirs = {"notes.4711": b"", "backup.json.1": b"", "more/tokens.parquet.1": b"", "a.png.2": b""}
    (out / "more").mkdir()
    for name, data in theirs.items():
        (out / name).write_bytes(data)
    (out / ".work-done").mkdir()
    cli(*command, out)
    assert contents(out) == {**wanted, **theirs}


@pytest.mark.parametrize("name", ["thesis.txt", "run.json", "work/thesis.txt", "answers.jsonl"])
@pytest.mark.parametrize("data", [b"mine", b'{"command": "train"}'])
def test_a_folder_of_something_else_is_left_alone(
    name: str, data: bytes, command: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_bytes(data)
    assert "give another --out" in cli(*command, out, code=1).stderr.replace("\n", " ")
    assert contents(out) == {name: data}


@pytest.mark.parametrize("name", ["tokens-00001.parquet", "answers-00001.jsonl"])
def test_a_part_that_is_missing_is_measured_again(
    name: str, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged file is named, and removed as the message says; nothing else is lost by it."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    cli(*command, whole)
    with monkeypatch.context() as patch:
        end_at(patch, token_shift_kept, "join_files", 0)
        ended((*command, out))
    part = out / "work" / name
    data = part.read_bytes()
    part.write_bytes(data[: len(data) // 2])
    said = cli(*command, out, code=1).stderr
    assert name in said
    for kind in ("tokens-00001.parquet", "answers-00001.jsonl"):
        if kind == name or name.startswith("answers"):
            (out / "work" / kind).unlink()
    kept = (out / "work" / "tokens-00002.parquet").read_bytes()
    with monkeypatch.context() as patch:
        end_at(patch, token_shift_kept, "join_files", 0)
        ended((*command, out))
    assert (out / "work" / "tokens-00002.parquet").read_bytes() == kept
    cli(*command, out)
    found = TokenShift.load(out)
    assert {a.id for a in found.answers} == {f"row {i}" for i in range(70)}
    assert sorted(found.token_id) == sorted(TokenShift.load(whole).token_id)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda row: {**row, "answers": []}, "has no answers"),
        (lambda row: {k: v for k, v in row.items() if k != "answers"}, "has no answers"),
        (lambda row: {**row, "answers": [{"id": row["id"]}]}, "generated.jsonl:2"),
        (lambda row: {**row, "query": "another"}, "made from query"),
    ],
)
def test_a_damaged_row_of_answers_is_named_never_dropped(
    damage: Callable[[dict[str, Any]], dict[str, Any]],
    message: str,
    command: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        end_at(patch, token_shift_kept, "write_data", 0)
        ended((*command, out))
    file = out / "work" / "generated.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    write_rows(file, rows[0], damage(rows[1]), *rows[2:])
    assert message in cli(*command, out, code=1).stderr


def test_parameters_bind_from_the_first_result_on(
    command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert "unknown" in cli(*command, out, "--device", "abacus", code=1).stderr
    assert not (out / "work").exists()
    with monkeypatch.context() as patch:
        end_at(patch, token_shift_kept.Kept, "add_generated", 0)
        ended((*command, out, "--top-k", 7))
    with monkeypatch.context() as patch:
        end_at(patch, token_shift_kept.Kept, "add_generated", 1)
        ended((*command, out, "--top-k", 2))
    assert "top_k (2 then, 3 now)" in cli(*command, out, code=1).stderr


def test_rows_that_cannot_be_asked_are_left_out_and_listed(pair: Run, tmp_path: Path) -> None:
    queries, out = tmp_path / "queries.jsonl", tmp_path / "out"
    write_rows(
        queries,
        {"query": "a", "answer_token_ids": [5, 6]},
        {"query": "b", "answer_token_ids": [5, 99999]},
        {"query": "long " * 300, "answer_token_ids": [5]},
        {"query": 7, "answer_token_ids": [5]},
        {"query": "c", "answer_token_ids": [7]},
    )
    command = (*pair, "--queries", queries, "--out", out)
    assert f"{queries}:4" in cli(*command, code=1).stderr
    said = cli(*command, "--malformed", "skip").stderr
    assert [a.query for a in TokenShift.load(out).answers] == ["a", "c"]
    listed = [json.loads(line) for line in (out / "left_out.jsonl").read_text().splitlines()]
    assert [row["where"] for row in listed] == [f"{queries}:{i}" for i in (4, 2, 3)]
    for row, why in zip(listed, ("query", "outside the vocabulary", "too long"), strict=True):
        assert why in row["why"] and row["where"] in said
    before = contents(out)
    cli(*command, "--malformed", "skip")
    assert contents(out) == before
    write_rows(queries, {"query": "b", "answer_token_ids": [99999]})
    assert (
        "none of the 1 queries can be asked" in cli(*command, "--malformed", "skip", code=1).stderr
    )


def test_another_chat_template_is_another_run(
    pair: Run, tiny_model: TinyModel, tmp_path: Path
) -> None:
    queries, out = write_queries(tmp_path / "queries.jsonl", 2), tmp_path / "out"
    command = (*pair[:5], "--queries", queries, "--max-tokens", 4, "--base-prompt", "same")
    cli(*command, "--out", out)
    template = json.loads((out / "run.json").read_text())["aligned_prompts"]["chat"]["chat"]
    assert "add_generation_prompt" in template
    path = Path(pair[4]) / "tokenizer_config.json"
    path.write_text(path.read_text().replace("<assistant>", "<helper>"))
    said = cli(*command, "--out", out, code=1).stderr
    assert "aligned_prompts (" in said


def test_what_was_read_is_what_is_recorded(
    pair: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chat template may write the date, and a run may go on another day."""
    from urial_engine import tokenizer_chat

    path = Path(pair[4]) / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings["chat_template"] = "{{ strftime_now('%d') }} " + settings["chat_template"]
    path.write_text(json.dumps(settings))
    queries = write_queries(tmp_path / "queries.jsonl", 3)
    command = (*pair[:5], "--queries", queries, "--max-tokens", 4, "--base-prompt", "same")
    command = (*command, "--sequential", "--out")
    first, out = tmp_path / "first", tmp_path / "out"
    monkeypatch.setattr(tokenizer_chat, "_now", lambda _: "01")
    cli(*command, first)
    with monkeypatch.context() as patch:
        end_at(patch, token_shift_kept, "write_data", 0)
        ended((*command, out))
    monkeypatch.setattr(tokenizer_chat, "_now", lambda _: "02")
    cli(*command, out)
    for name in ("answers.jsonl", "tokens.parquet"):
        assert (out / name).read_bytes() == (first / name).read_bytes()


def test_ids_that_are_written_alike_are_refused(pair: Run, tmp_path: Path) -> None:
    rows = [{"id": i, "query": "a", "answer_token_ids": [5]} for i in (1, "1")]
    queries = write_rows(tmp_path / "queries.jsonl", *rows)
    said = cli(*pair, "--queries", queries, "--out", tmp_path / "out", code=1).stderr
    assert "the id '1' is written as 1 is" in said
