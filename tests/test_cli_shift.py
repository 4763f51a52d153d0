"""`shift --out`: what its folder holds, and runs that are killed and taken up."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.command_line import cli, rows_of, start, write_rows
from tests.fixtures import TinyModel
from urial_engine import Engine, SamplingParams, TokenShift, token_shift
from urial_engine.errors import ParameterError
from urial_engine.token_shift_result import Answer

parquet = pytest.importorskip("pyarrow.parquet", reason="needs the package pyarrow")

FILES = ("answers.jsonl", "tokens.parquet", "summary.json")
BASE, ALIGNED = "Q: {query}\nA:", "{query}\n"
FORMS = ("--base-prompt", BASE, "--aligned-prompt", ALIGNED, "--top-k", 3)


@pytest.fixture
def pair(tiny_model: TinyModel) -> tuple[Any, ...]:
    models = tiny_model(folder="base", seed=1), tiny_model(folder="aligned", seed=2)
    return ("shift", "--base", models[0], "--aligned", models[1], *FORMS)


def write_queries(path: Path, count: int) -> Path:
    return write_rows(path, *({"id": f"row {i}", "query": f"text {i}"} for i in range(count)))


def lines(folder: Path) -> int:
    path = folder / "answers.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def made(shift: TokenShift) -> list[Any]:
    """All of it, bit by bit."""
    return [
        (value.dtype, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value
        for value in (getattr(shift, name) for name in TokenShift.__slots__)
    ]


@pytest.mark.parametrize("sampling", [(), ("--temperature", 0.9)])
def test_a_run_killed_at_any_point_is_taken_up(
    pair: tuple[Any, ...], tmp_path: Path, sampling: tuple[Any, ...]
) -> None:
    queries, out = write_queries(tmp_path / "queries.jsonl", 40), tmp_path / "killed"
    options = ("--queries", queries, "--max-tokens", 30, "--max-batch", 3, *sampling)
    for goal in (0, 1, 15, 30):  # rows that must be there before the process is killed
        process = start(*pair, *options, "--out", out)
        while process.poll() is None and (not out.exists() or lines(out) < goal):
            time.sleep(0.002)
        process.kill()
        process.communicate()
        assert lines(out) >= goal
        if goal == 0:
            continue
        held = (out / "answers.jsonl").read_bytes()
        (out / "answers.jsonl").write_bytes(held + b'{"id": "row')
    assert "dropped 11 bytes" in cli(*pair, *options, "--out", out).stderr
    assert (out / "answers.jsonl").read_bytes().startswith(held)
    seed = json.loads((out / "answers.jsonl.run.json").read_bytes())["seed"]
    assert (seed is None) == (not sampling)
    whole = tmp_path / "whole"
    again = () if seed is None else ("--seed", seed)
    cli(*pair, *options[:-2], "--max-batch", 32, *sampling, *again, "--out", whole)
    for name in FILES:
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert list(rows_of(out / "answers.jsonl")) == [f"row {i}" for i in range(40)]


def test_the_folder_is_that_of_the_library(pair: tuple[Any, ...], tmp_path: Path) -> None:
    texts = ["why?", "how?", "who?"]
    queries, out = tmp_path / "queries.txt", tmp_path / "out"
    queries.write_text("\n".join(texts))
    cli(*pair, "--queries", queries, "--max-tokens", 9, "--out", out)
    with Engine(pair[2]) as base, Engine(pair[4]) as aligned:
        shift = token_shift(
            base,
            aligned,
            texts,
            base_prompt=BASE,
            aligned_prompt=ALIGNED,
            params=SamplingParams(max_tokens=9),
            top_k=3,
        )
    shift.save(tmp_path / "saved")
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == sorted(FILES)
    for name in FILES:
        assert (out / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()
    table = parquet.read_table(out / "tokens.parquet").to_pydict()
    assert table["base_logprob"] == shift.base_logprob.tolist()
    loaded = TokenShift.load(out)
    assert [a.id for a in loaded.answers] == [1, 2, 3]
    assert made(loaded)[1:] == made(shift)[1:]


def test_a_finished_run_is_taken_up_only_with_its_own_parameters(
    pair: tuple[Any, ...], tiny_model: TinyModel, tmp_path: Path
) -> None:
    queries, out = write_queries(tmp_path / "queries.jsonl", 2), tmp_path / "out"
    run = (*pair, "--queries", queries, "--out", out, "--max-tokens", 5)
    cli(*run)
    before = (out / "answers.jsonl").read_bytes()
    (out / "tokens.parquet").unlink()
    assert "▸ text 1" in cli(*run).stdout
    assert (out / "tokens.parquet").exists()
    other = tiny_model(folder="other", seed=3)
    for more, message in [
        (("--top-k", 4), "kept_top_k (3 then, 4 now)"),
        (("--temperature", 0.5), "temperature (0.0 then, 0.5 now)"),
        (("--base-prompt", "chat"), "base_prompt ("),
        (("--base", other), "base_weights ("),
        (("--aligned", other), "aligned_weights ("),
        (("--isa", "portable"), "aligned_isa ("),
    ]:
        assert message in cli(*run, *more, code=1).stderr
    write_rows(queries, {"id": "row 0", "query": "another"})
    assert 'now has "another"' in cli(*run, code=1).stderr
    assert (out / "answers.jsonl").read_bytes() == before
    write_queries(queries, 3)
    cli(*run)
    assert lines(out) == 3 and (out / "answers.jsonl").read_bytes().startswith(before)


def test_given_answers_are_part_of_the_input(pair: tuple[Any, ...], tmp_path: Path) -> None:
    queries, out = tmp_path / "queries.jsonl", tmp_path / "out"
    given = [{"query": "a", "answer": "because"}, {"query": "b", "answer_token_ids": [5, 6]}]
    run = (*pair, "--queries", write_rows(queries, *given), "--out", out)
    cli(*run)
    assert [row["finish_reason"] for row in rows_of(out / "answers.jsonl").values()] == [None, None]
    write_rows(queries, given[0], {"query": "b", "answer_token_ids": [5, 7]})
    assert "made from token_ids = [5, 6]" in cli(*run, code=1).stderr
    write_rows(queries, {"query": "a"}, {"query": "b"})
    assert "generated (false then, true now)" in cli(*run, code=1).stderr


def test_a_query_that_is_too_long_is_refused_before_any_work(
    pair: tuple[Any, ...], tmp_path: Path
) -> None:
    queries, out = tmp_path / "queries.jsonl", tmp_path / "out"
    write_rows(queries, {"query": "a"}, {"query": "long " * 300})
    said = cli(*pair, "--queries", queries, "--out", out, code=1).stderr
    assert f"{queries}:2 is too long" in said
    assert not out.exists()


def random_shift(sizes: list[int], k: int) -> TokenShift:
    """Floats of every size, subnormal ones and both zeros included."""
    random, n = np.random.default_rng(0), sum(sizes)

    def floats(*shape: int) -> np.ndarray:
        bits = random.integers(0, 1 << 32, shape, dtype=np.uint32)
        bits.flat[:3] = [0x80000000, 1, 0x7F7FFFFF]
        values = bits.view(np.float32)
        return np.where(np.isfinite(values), values, np.float32(-0.1))

    ids = random.integers(0, 99, n).astype(np.int32)
    starts = np.cumsum([0, *sizes])
    answers = [
        Answer("q\u2028", "é", ids[a : a + size].tolist(), [1, 2], [3], "length", f"row {i}")
        for i, (a, size) in enumerate(zip(starts.tolist(), sizes, strict=False))
    ]
    return TokenShift(
        answers,
        np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
        np.concatenate([np.arange(size, dtype=np.int32) for size in sizes]),
        ids,
        [f" {i}" for i in ids.tolist()],
        random.integers(1, 99, n).astype(np.int32),
        random.integers(0, 9, n).astype(np.int32),
        *(floats(n) for _ in range(6)),
        random.integers(0, 99, (n, k)).astype(np.int32),
        floats(n, k),
    )


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("k", [0, 1, 4])
def test_every_bit_survives_the_file(tmp_path: Path, k: int) -> None:
    shift = random_shift([300, 0, 7], max(k, 1))
    if k == 0:
        none = shift.base_top_ids[:, :0]
        shift = replace(shift, base_top_ids=none, base_top_logprobs=none.astype(np.float32))
    shift.save(tmp_path)  # the mean of such floats may well overflow
    assert made(TokenShift.load(tmp_path)) == made(shift)


def test_a_saved_folder_is_whole_or_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_shift([2, 1], 2).save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(_file: int) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk is full"):
        random_shift([4], 2).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("base_rank", [1], r":2: base_rank must be a list with 2 entries"),
        ("base_rank", ["x", 1], r"base_rank of an answer has values of another kind"),
        ("base_top_ids", [[1], [1, 2]], r"base_top_ids of an answer has values of another kind"),
        ("token_ids", None, r":2: token_ids must be a list of token ids"),
    ],
)
def test_a_row_of_another_form_is_named(
    tmp_path: Path, field: str, value: object, message: str
) -> None:
    random_shift([3, 2], 2).save(tmp_path)
    rows = list(rows_of(tmp_path / "answers.jsonl").values())
    rows[1][field] = value
    write_rows(tmp_path / "answers.jsonl", *rows)
    with pytest.raises(ParameterError, match=message):
        TokenShift.load(tmp_path)
