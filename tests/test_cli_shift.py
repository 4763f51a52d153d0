"""`shift --out`: what its folder holds, and runs that are killed, taken up and added to."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import cli, start, write_rows
from tests.fixtures import TinyModel
from urial_engine import Engine, SamplingParams, TokenShift, token_shift
from urial_engine.shift_data import ARRAYS
from urial_engine.token_shift_kept import locked

pytest.importorskip("pyarrow", reason="needs the package pyarrow")

BASE, ALIGNED = "Q: {query}\nA:", "{query}\n"
FORMS = (
    *("--base-prompt", f"qa:={BASE}", "--base-prompt", "same"),
    *("--aligned-prompt", f"plain:={ALIGNED}", "--top-k", 3),
)
Run = tuple[Any, ...]


@pytest.fixture
def pair(tiny_model: TinyModel) -> Run:
    models = tiny_model(folder="base", seed=1), tiny_model(folder="aligned", seed=2)
    return ("shift", "--base", models[0], "--aligned", models[1], *FORMS)


def write_queries(path: Path, count: int, first: int = 0) -> Path:
    return write_rows(
        path, *({"id": f"row {i}", "query": f"text {i}"} for i in range(first, count))
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of the folder, by its name in it."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def progress(out: Path) -> int:
    """Rows of answers and files of measures that a run has kept so far."""
    work = out / "work"
    rows = work / "generated.jsonl"
    generated = rows.read_bytes().count(b"\n") if rows.exists() else 0
    return generated + 1000 * (len(list(work.glob("tokens-*"))) + len(list(work.glob("states-*"))))


def kill_at_random(command: Run, out: Path, dice: random.Random) -> int:
    """Starts the command, kills it somewhere on its way; returns how far the folder came.

    The command runs in slices and is looked at while it stands still: a busy machine, which keeps
    us waiting, cannot carry it to its end between two looks.
    """
    before, goal = progress(out), dice.randrange(0, 14)
    process = start(*command)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        process.send_signal(signal.SIGSTOP)
        # A few rows of answers, or any new file of measures.
        if progress(out) - before >= goal and out.exists():
            break
        process.send_signal(signal.SIGCONT)
        time.sleep(0.001 + dice.random() * 0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return progress(out)


@pytest.mark.parametrize(
    ("options", "seed"),
    [((), 0), (("--sequential",), 1), (("--temperature", 0.9, "--samples", 2, "--paper"), 2)],
    ids=["greedy", "sequential", "sampled, published"],
)
def test_a_run_killed_at_ten_random_moments_is_as_an_unbroken_one(
    pair: Run, tmp_path: Path, options: Run, seed: int
) -> None:
    queries, out = write_queries(tmp_path / "queries.jsonl", 70), tmp_path / "killed"
    command = (*pair, "--queries", queries, "--max-tokens", 12, *options, "--out", out)
    dice = random.Random(seed)
    reached = [kill_at_random((*command, "--max-batch", 3), out, dice) for _ in range(10)]
    assert len(set(reached)) > 3, f"killed always at the same place: {reached}"
    cli(*command)
    header = json.loads((out / "run.json").read_bytes())
    again = ("--seed", header["sampling_seed"]) if "--temperature" in options else ()
    whole = tmp_path / "whole"
    cli(*command[:-1], whole, *again)
    assert not (out / "work").exists()
    found, wanted = contents(out), contents(whole)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []
    assert {"page.html", "run.json", "plots/classes.svg"} <= wanted.keys()


def test_the_folder_is_what_the_library_says(pair: Run, tmp_path: Path) -> None:
    texts = ["why?", "how?", "who?"]
    queries, out = tmp_path / "queries.txt", tmp_path / "out"
    queries.write_text("\n".join(texts))
    cli(*pair, "--queries", queries, "--max-tokens", 9, "--out", out)
    with Engine(pair[2]) as base, Engine(pair[4]) as aligned:
        shift = token_shift(
            base,
            aligned,
            texts,
            base_prompt={"qa": BASE, "same": "same"},
            aligned_prompt={"plain": ALIGNED},
            params=SamplingParams(max_tokens=9),
            top_k=3,
        )
    loaded = TokenShift.load(out)
    assert loaded.answers == shift.answers and loaded.contexts == shift.contexts
    for name in ARRAYS:
        assert getattr(loaded, name).tobytes() == getattr(shift, name).tobytes(), name
    assert loaded.vocabulary == shift.vocabulary
    shift.save(tmp_path / "saved")
    names = sorted(path.name for path in (tmp_path / "saved").iterdir())
    assert names == ["answers.jsonl", "summary.json", "tokens.parquet", "vocabulary.json"]
    for name in set(names) - {"summary.json"}:
        assert (out / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()


def test_models_one_after_the_other_give_the_same(pair: Run, tmp_path: Path) -> None:
    queries = write_queries(tmp_path / "queries.jsonl", 40)
    command = (*pair, "--queries", queries, "--max-tokens", 12, "--paper")
    together, apart = tmp_path / "together", tmp_path / "apart"
    cli(*command, "--out", together)
    cli(*command, "--sequential", "--out", apart)
    for name in ("answers.jsonl", "tokens.parquet", "summary.json", "page.html"):
        assert (together / name).read_bytes() == (apart / name).read_bytes(), name
    assert "needs --out" in cli(*command, "--sequential", code=1).stderr
    one = ("--base", pair[4], "--sequential", "--out", tmp_path / "one")
    assert "sequential is for two models" in cli(*command, *one, code=1).stderr


def test_a_finished_run_is_taken_up_only_with_its_own_parameters(
    pair: Run, tiny_model: TinyModel, tmp_path: Path
) -> None:
    queries, out = write_queries(tmp_path / "queries.jsonl", 2), tmp_path / "out"
    run = (*pair, "--queries", queries, "--out", out, "--max-tokens", 5)
    cli(*run)
    before = contents(out)
    (out / "page.html").unlink()
    cli(*run)
    assert contents(out) == before
    other = tiny_model(folder="other", seed=3)
    for more, message in [
        (("--top-k", 4), "top_k (3 then, 4 now)"),
        (("--temperature", 0.5), "sampling_temperature (0.0 then, 0.5 now)"),
        (("--base-prompt", "chat"), "base_prompts ("),
        (("--base", other), "base_weights ("),
        (("--aligned", other), "aligned_weights ("),
        (("--isa", "portable"), "aligned_isa ("),
        (("--paper",), "published (false then, true now)"),
    ]:
        assert message in cli(*run, *more, code=1).stderr
    write_rows(queries, {"id": "row 0", "query": "another"})
    said = cli(*run, code=1).stderr
    assert "holds the row 'row 0' with query = 'text 0', and the input now has 'another'" in said
    assert contents(out) == before


def test_queries_are_added_to_a_finished_run(pair: Run, tmp_path: Path) -> None:
    """With the earlier ones in the file or without them: as if all had been asked at once."""
    queries, more = tmp_path / "queries.jsonl", tmp_path / "more.jsonl"
    options = ("--max-tokens", 8)
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    cli(*pair, "--queries", write_queries(queries, 35), *options, "--out", grown)
    cli(*pair, "--queries", write_queries(more, 37, first=35), *options, "--out", grown)
    cli(*pair, "--queries", write_queries(queries, 40), *options, "--out", grown)
    cli(*pair, "--queries", queries, *options, "--out", whole)
    assert contents(grown) == contents(whole)


def test_two_processes_do_not_write_one_run(pair: Run, tmp_path: Path) -> None:
    queries, out = write_queries(tmp_path / "queries.jsonl", 2), tmp_path / "out"
    command = (*pair, "--queries", queries, "--max-tokens", 6, "--out", out)
    with locked(out):
        assert "is being written by another process" in cli(*command, code=1).stderr
    cli(*command)


def test_given_answers_are_part_of_the_input(pair: Run, tmp_path: Path) -> None:
    queries, out = tmp_path / "queries.jsonl", tmp_path / "out"
    given = [
        {"query": "a", "answer": "because", "dataset": "d", "generator": "an API"},
        {"query": "b", "answer_token_ids": [5, 6]},
    ]
    run = (*pair, "--queries", write_rows(queries, *given), "--out", out)
    cli(*run)
    first, second = TokenShift.load(out).answers
    assert (first.source, first.text, first.dataset) == ("text", "because", "d")
    assert (first.finish_reason, first.generator) == (None, "an API")
    assert (second.source, second.token_ids) == ("token_ids", [5, 6])
    write_rows(queries, given[0], {"query": "b", "answer_token_ids": [5, 7]})
    assert "with token_ids = [5, 6], and the input now has [5, 7]" in cli(*run, code=1).stderr
    write_rows(queries, {"query": "a"}, {"query": "b"})
    assert "generated (false then, true now)" in cli(*run, code=1).stderr
