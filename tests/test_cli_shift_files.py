"""What `shift` reads and refuses, and what becomes of finished runs: `report`, `compare`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.command_line import cli, write_rows
from tests.fixtures import TinyModel
from tests.test_cli_shift import Run, contents, pair, write_queries
from urial_engine import Engine, TokenShift

__all__ = ["pair"]  # a fixture
pytest.importorskip("pyarrow", reason="needs the package pyarrow")


def test_files_of_other_programs_run_as_they_are(pair: Run, tmp_path: Path) -> None:
    """AlignTDS's data file, whose `input` is what the aligned model read, and just-eval's rows."""
    queries = tmp_path / "data.json"
    row = {"id": 0, "pure_input": "why?", "input": "<s>[INST] why? [/INST] ", "reference": "N/A"}
    queries.write_text(json.dumps([{**row, "output": ["so it is.</s>"]}]))
    as_given = ("--aligned-prompt", "given", "--base-prompt", "zero-shot", "--top-k", 1)
    models = pair[:5]
    cli(*models, *as_given, "--queries", queries, "--out", tmp_path / "tds", "--paper")
    shift = TokenShift.load(tmp_path / "tds")
    (answer,) = shift.answers
    with Engine(pair[4]) as engine:
        read = engine.tokenizer.encode(row["input"])
    assert answer.aligned_context_ids["given"] == read and read.count(1) == 1
    assert answer.aligned_context_ids["given (published)"] == [1, *read]
    assert answer.token_ids[-1] == 2
    assert shift.published is not None and (shift.published.rank >= 0).all()
    own = {"instruction": "how?", "source_id": "x-1", "dataset": "lima", "datasplit": "just_eval"}
    rows = [{"id": i, **own, "output": f"like {i}.", "generator": "M"} for i in range(3)]
    write_rows(tmp_path / "eval.jsonl", *rows, {"id": 9, **own, "output": 7})
    run = (*models, *as_given[2:], "--aligned-prompt", "raw", "--queries", tmp_path / "eval.jsonl")
    out = ("--out", tmp_path / "eval")
    said = cli(*run, *out, code=1).stderr
    assert "eval.jsonl:4" in said and not (tmp_path / "eval").exists()
    said = cli(*run, *out, "--malformed", "skip").stderr
    assert "left out" in said and "eval.jsonl:4" in said
    shift = TokenShift.load(tmp_path / "eval")
    assert [a.dataset for a in shift.answers] == ["lima"] * 3
    assert "has no prompt text" in cli(
        *models, *as_given, "--queries", tmp_path / "eval.jsonl", "--malformed", "skip", code=1
    ).stderr.replace("\n", " ")


def test_a_query_that_is_too_long_is_refused_before_any_work(pair: Run, tmp_path: Path) -> None:
    queries, out = tmp_path / "queries.jsonl", tmp_path / "out"
    write_rows(queries, {"query": "a"}, {"query": "long " * 300})
    said = cli(*pair, "--queries", queries, "--out", out, code=1).stderr
    assert f"{queries}:2 is too long" in said
    assert not out.exists()


def test_options_that_do_not_go_together(pair: Run, tmp_path: Path) -> None:
    run = (*pair, "--queries", write_queries(tmp_path / "queries.jsonl", 1))
    for more, message in [
        (("--samples", 2), "greedy samples are all equal"),
        (("--base-prompt", "qa:=raw"), "two prompts are called qa"),
        (("--map-token", "x"), "write TOKEN=BASE"),
        (("--map-token", "nothing=</s>"), "the aligned model has no such token"),
        (("--format", "csv"), "format = 'csv' is not known"),
        (("--base-prompt", tmp_path / "none.txt"), "cannot be read"),
    ]:
        assert message in cli(*run, *more, code=1).stderr


def test_tables_are_read_by_pandas_and_duckdb(pair: Run, tmp_path: Path) -> None:
    import duckdb
    import pandas

    queries, out = write_queries(tmp_path / "queries.jsonl", 4), tmp_path / "out"
    cli(*pair, "--queries", queries, "--max-tokens", 9, "--out", out)
    shift = TokenShift.load(out)
    frame = pandas.read_parquet(out / "tokens.parquet")
    assert frame.base_rank.tolist() == shift.base_rank.tolist()
    assert np.stack(frame.base_top_ids.tolist()).tolist() == shift.base_top_ids.tolist()
    shares = frame.groupby("context", observed=True).shift_class.value_counts(normalize=True)
    assert shares["qa"].get("shifted", 0) == shift.only("qa").ratios()["shifted"]
    query = f"select context, avg(base_rank), max(len(base_top_ids)) from '{out}/tokens.parquet'"
    found = duckdb.sql(f"{query} group by context order by context").fetchall()
    means = [float(shift.only(name).base_rank.mean()) for name in ("qa", "same")]
    assert found == [("qa", pytest.approx(means[0]), 3), ("same", pytest.approx(means[1]), 3)]


def test_a_report_is_made_again_with_other_settings(pair: Run, tmp_path: Path) -> None:
    queries, out = write_queries(tmp_path / "queries.jsonl", 5), tmp_path / "out"
    cli(*pair, "--queries", queries, "--max-tokens", 9, "--out", out)
    before = contents(out)
    (out / "summary.json").unlink()
    assert "Token shift: qa" in cli("report", out).stdout
    assert contents(out) == before
    words = tmp_path / "words.json"
    letters = {"phrases": {"all": ["a", "b"]}, "patterns": {}}
    words.write_text(json.dumps({"about": "mine", "groups": {"letters": letters}}))
    cli("report", out, "--most", 2, "--resamples", 50, "--lexicon", words)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["bootstrap"]["resamples"] == 50
    (first, _) = summary["contexts"]
    assert len(first["most_shifted"]) == 2
    assert [group["group"] for group in first["groups"]] == ["letters", "content"]
    assert "holds no answers.jsonl" in cli("report", tmp_path, code=1).stderr


def test_runs_and_contexts_are_compared(pair: Run, tiny_model: TinyModel, tmp_path: Path) -> None:
    given = [{"query": f"q{i}", "answer_token_ids": [5 + i, 6, 7, 9]} for i in range(6)]
    queries = write_rows(tmp_path / "queries.jsonl", *given)
    other = ("shift", "--base", tiny_model(folder="other", seed=9), *pair[3:])
    runs = tmp_path / "one", tmp_path / "two"
    for command, out in zip((pair, other), runs, strict=True):
        cli(*command, "--queries", queries, "--out", out)
    told = cli("compare", *runs, "--out", tmp_path / "found.json").stdout
    found = json.loads((tmp_path / "found.json").read_text())
    one, two = map(TokenShift.load, runs)
    for context in found["contexts"]:
        mine, theirs = (
            run.only(context["name"]).kl_aligned_base.mean(dtype=float) for run in (one, two)
        )
        assert context["overall"]["kl_aligned_base"]["value"] == pytest.approx(theirs - mine)
    assert "6 answers paired; left out: none" in told and found["diversity"] is None
    told = cli("compare", runs[0], "--context", "qa", "--context", "same").stdout
    assert "qa and same: 24 tokens" in told
    assert "give two runs" in cli("compare", runs[0], code=1).stderr
    assert "give two runs" in cli("compare", *runs, "--context", "qa", code=1).stderr


def test_samples_are_counted_by_how_varied_they_are(pair: Run, tmp_path: Path) -> None:
    queries, out = write_queries(tmp_path / "queries.jsonl", 3), tmp_path / "out"
    options = ("--samples", 3, "--temperature", 1.0, "--max-tokens", 12)
    cli(*pair, "--queries", queries, *options, "--seed", 4, "--out", out)
    found = json.loads((out / "summary.json").read_text())["diversity"]
    assert (found["queries"], found["samples"]) == (3, 9)
    answers = TokenShift.load(out).answers
    lengths = [len(a.token_ids) for a in answers]
    assert found["overall"]["tokens"]["value"] == pytest.approx(np.mean(lengths))
    again = tmp_path / "again"
    cli(*pair, "--queries", queries, *options, "--seed", 5, "--out", again)
    told = cli("compare", out, again, "--out", tmp_path / "found.json", "--resamples", 1000)
    assert "no answer can be paired" in told.stderr and "self bleu" in told.stdout
    compared = json.loads((tmp_path / "found.json").read_text())["diversity"]
    other = json.loads((again / "summary.json").read_text())["diversity"]
    assert (compared["a"], compared["b"]) == (found, other) and found != other
    cli("report", out, "--resamples", 10)
    few = json.loads((out / "summary.json").read_text())["diversity"]["overall"]
    assert few != found["overall"], "fewer resamples give other intervals"
    for measure, interval in found["overall"].items():
        assert few[measure]["value"] == interval["value"]
