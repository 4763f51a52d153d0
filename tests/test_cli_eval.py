"""`eval answers` and `eval merge`: exactly the rows of the judges, whatever happens on the way."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import PREFIX, cli, rows_of, start, write_prefix
from tests.fixtures import TinyModel
from urial_engine import Engine, SamplingParams, UrialPrompt
from urial_engine.evaluation.questions import seed_of

JUST = [
    {"id": 5, "instruction": "Why?", "source_id": "a-0", "dataset": "lima", "category": "regular"},
    {"id": 800, "instruction": "How?", "source_id": "m-1", "dataset": "MaliciousInstruct"},
    {"instruction": "What", "dataset": "lima", "output": "N/A", "generator": None},
]
ALPACA = [
    {"dataset": "koala", "instruction": "Hi", "output": "x", "generator": "gpt", "datasplit": "e"},
    {"instruction": "Hi"},
]
MT = [
    {"question_id": 81, "category": "writing", "turns": ["Say a", "Say b"], "reference": ["x"]},
    {"question_id": 82, "category": "math", "turns": ["1+1?", "And 2+2?"]},
    {"question_id": 83, "category": "stem", "turns": ["Only once"]},
]


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    return write_prefix(tmp_path)


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def answered(
    engine: Engine, form: str, turns: list[str], params: SamplingParams
) -> tuple[str, list[int]]:
    """The clean answer of the engine itself to query, answer, …, query."""
    urial = UrialPrompt(PREFIX)
    if form == "chat":
        roles = ("user", "assistant", "user")
        messages = [{"role": r, "content": t} for r, t in zip(roles, turns, strict=False)]
        text = engine.tokenizer.render_chat(messages)
        prompt: Any = engine.tokenizer.encode(text, add_special_tokens=False)
    else:
        prompt = PREFIX + urial.render_chat(turns)
    sample = engine.generate(prompt, params)[0].outputs[0]
    clean = sample.text.strip() if form == "chat" else urial.clean(sample.text)
    return clean, sample.token_ids


def greedy(form: str) -> SamplingParams:
    return SamplingParams(max_tokens=9, stop=() if form == "chat" else UrialPrompt("").stop)


@pytest.mark.parametrize("form", ["urial", "chat"])
def test_just_eval_rows(tiny_model: TinyModel, tmp_path: Path, prefix: Path, form: str) -> None:
    model, out = tiny_model(folder="base-7b"), tmp_path / "out.json"
    source = write(tmp_path / "in.json", JUST)
    how = ("--suite", "just-eval", "--prompt", prefix if form == "urial" else form)
    cli("eval", "answers", model, "--in", source, "--out", out, *how, "--max-tokens", 9)
    with Engine(model) as engine:
        texts = [answered(engine, form, [str(r["instruction"])], greedy(form))[0] for r in JUST]
    last = {"generator": "base-7b", "datasplit": "just_eval"}
    names = ("instruction", "source_id", "dataset")
    expected = [
        {"id": i, **{n: row[n] for n in names if n in row}, "output": text, **last}
        for i, row, text in zip((5, 800, 2), JUST, texts, strict=True)
    ]
    assert out.read_text() == json.dumps(expected, ensure_ascii=False, indent=2) + "\n"


def test_alpaca_eval_rows(tiny_model: TinyModel, tmp_path: Path) -> None:
    model, out = tiny_model(), tmp_path / "out.json"
    source = write(tmp_path / "in.json", ALPACA)
    how = ("--suite", "alpaca-eval", "--prompt", "raw", "--generator", "me", "--max-tokens", 9)
    cli("eval", "answers", model, "--in", source, "--out", out, *how)
    with Engine(model) as engine:
        text = engine.generate("Hi", greedy("chat"))[0].outputs[0].text.strip()
    first = {"instruction": "Hi", "dataset": "koala", "output": text, "generator": "me"}
    assert json.loads(out.read_text()) == [
        {**first, "datasplit": "e"},
        {"instruction": "Hi", "output": text, "generator": "me"},
    ]


@pytest.mark.parametrize("form", ["urial", "chat"])
def test_mt_bench_rows(tiny_model: TinyModel, tmp_path: Path, prefix: Path, form: str) -> None:
    """The second turn reads the first answer, cleaned."""
    model, out = tiny_model(), tmp_path / "out.jsonl"
    source = write(tmp_path / "in.jsonl", MT)
    how = ("--suite", "mt-bench", "--prompt", prefix if form == "urial" else form)
    run = ("eval", "answers", model, "--in", source, "--out", out, *how, "--max-tokens", 9)
    cli(*run, "--generator", "m-1")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    with Engine(model) as engine:
        for row, question in zip(rows, MT, strict=True):
            turns: list[str] = []
            for query in question["turns"]:
                turns.append(query)
                turns.append(answered(engine, form, turns, greedy(form))[0])
            assert row == {
                "question_id": question["question_id"],
                "answer_id": row["answer_id"],
                "model_id": "m-1",
                "choices": [{"index": 0, "turns": turns[1::2]}],
                "tstamp": 0.0,
            }
    ids = {row["answer_id"] for row in rows}
    assert len(ids) == 3 and {len(one) for one in ids} == {22}
    other = tmp_path / "other.jsonl"
    cli(*run[:6], other, *run[7:], "--generator", "m-2")
    again = [json.loads(line)["answer_id"] for line in other.read_text().splitlines()]
    assert not ids & set(again)


def test_samples_have_the_temperature_of_their_category_and_a_seed_of_their_own(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    model, out = tiny_model(), tmp_path / "out.jsonl"
    source = write(tmp_path / "in.jsonl", MT)
    run = ("eval", "answers", model, "--suite", "mt-bench", "--in", source, "--out", out)
    how = ("--prompt", "chat", "--max-tokens", 9, "--category-temperatures", "--seed", 3)
    cli(*run, *how)
    kept = rows_of(tmp_path / "out.jsonl.turn1.jsonl")
    with Engine(model) as engine:
        for question, temperature in zip(MT, (0.7, 0.0, 0.1), strict=True):
            seed = seed_of(3, question["question_id"], 1)
            params = SamplingParams(max_tokens=9, temperature=temperature, seed=seed)
            text, _ = answered(engine, "chat", [question["turns"][0]], params)
            assert kept[question["question_id"]]["answer"] == text
            assert kept[question["question_id"]]["seed"] == seed
    before = out.read_bytes()
    out.unlink()
    assert "0 of them new" in cli(*run, *how).stderr  # what is kept makes the file again
    assert out.read_bytes() == before
    assert "seed (3 then, 4 now)" in cli(*run, *how[:-1], 4, code=1).stderr
    refused = cli(*run, *how, "--temperature", 0.5, code=1)
    assert "give one of them" in refused.stderr


def test_turns_share_the_context(tiny_model: TinyModel, tmp_path: Path) -> None:
    """The first answer, which would take all of it, leaves as much for the second."""
    model, out = tiny_model(max_position_embeddings=200), tmp_path / "out.jsonl"
    source = write(tmp_path / "in.jsonl", MT[:1])
    run = ("eval", "answers", model, "--suite", "mt-bench", "--prompt", "chat", "--threads", 1)
    said = cli(*run, "--in", source, "--out", out, "--set", "ignore_eos=true").stderr
    assert "2 answers had no end yet" in said
    with Engine(model) as engine:
        messages = [{"role": r, "content": c} for r, c in (("user", "Say a"), ("assistant", ""))]
        chat = engine.tokenizer.render_chat([*messages, {"role": "user", "content": "Say b"}])
        room = 200 - len(engine.tokenizer.encode(chat, add_special_tokens=False))
        params = SamplingParams(max_tokens=room // 2, ignore_eos=True)
        text, ids = answered(engine, "chat", ["Say a"], params)
    assert len(ids) == room // 2 > 50
    (row,) = map(json.loads, out.read_text().splitlines())
    assert row["choices"][0]["turns"][0] == text and row["choices"][0]["turns"][1]
    rows = [
        {"question_id": 1, "turns": ["a" * 156, "b"]},
        MT[0],
        {"question_id": 3, "turns": ["b"]},
    ]
    rows += [{"question_id": 9 + i, "turns": ["a" * 300]} for i in range(5)]
    source = write(source, rows)
    refused = cli(*run, "--in", source, "--out", tmp_path / "other", code=1).stderr
    assert f"{source}:1" in refused and "leave no room for 2 answers" in refused
    # All of them are told at once, before any is answered.
    assert "6 of 8 rows cannot be asked; give a shorter --prompt, or a --in without" in refused
    assert refused.count("is too long") == 4 and refused.rstrip().endswith("; …")
    assert not list(tmp_path.glob("other*"))


@pytest.mark.parametrize("suite", ["just-eval", "alpaca-eval", "mt-bench"])
def test_shards_put_together_are_the_whole(
    tiny_model: TinyModel, tmp_path: Path, suite: str
) -> None:
    model = tiny_model()
    rows = {
        "just-eval": [{"instruction": f"q {i}", "dataset": "d"} for i in range(7)],
        "alpaca-eval": [{"instruction": "the same"} for _ in range(7)],
        "mt-bench": [{"question_id": i, "turns": [f"a {i}", "b"]} for i in range(7)],
    }[suite]
    source = write(tmp_path / "in.json", rows)
    run = ("eval", "answers", model, "--suite", suite, "--in", source, "--prompt", "zero-shot")
    run = (*run, "--max-tokens", 6, "--temperature", 1)
    whole = tmp_path / "whole"
    cli(*run, "--out", whole)
    shards = [tmp_path / f"shard-{number}" for number in (1, 2, 3)]
    for number, shard in enumerate(shards, start=1):
        cli(*run, "--out", shard, "--shard", f"{number}/3")
    merged = tmp_path / "merged"
    cli("eval", "merge", merged, shards[2], shards[0], shards[1])
    assert merged.read_bytes() == whole.read_bytes()
    kept = rows_of(tmp_path / "whole.turn1.jsonl").values()
    assert len({row["seed"] for row in kept}) == 7  # of equal questions, too


def test_shards_that_do_not_belong_together(tiny_model: TinyModel, tmp_path: Path) -> None:
    model, source = tiny_model(), write(tmp_path / "in.json", JUST)
    run = ("eval", "answers", model, "--suite", "just-eval", "--in", source, "--prompt", "raw")
    one, two, other, merged = (tmp_path / name for name in ("one", "two", "other", "merged"))
    cli(*run, "--out", one, "--shard", "1/2", "--max-tokens", 2)
    cli(*run, "--out", two, "--shard", "2/2", "--max-tokens", 2)
    cli(*run, "--out", other, "--shard", "2/2", "--max-tokens", 3)
    for shards, message in (
        ((one,), "each of the shards 1/2 to 2/2 is needed once, not 1/2"),
        ((one, two, two), "is needed once, not 1/2, 2/2, 2/2"),
        ((one, other), "not of one run: max_tokens is 2 and 3"),
        ((one, tmp_path / "none"), "does not say with what"),
    ):
        assert message in cli("eval", "merge", merged, *shards, code=1).stderr
    before, same = one.read_bytes(), tmp_path / "." / "one"
    assert "is one of the shards" in cli("eval", "merge", same, one, two, code=1).stderr
    assert one.read_bytes() == before
    nowhere = tmp_path / "no" / "out"
    assert f"no folder {nowhere.parent}" in cli("eval", "merge", nowhere, one, two, code=1).stderr
    rows = json.loads(two.read_text())
    two.write_text(json.dumps([*rows, *rows]))
    assert "the id 800 is that of" in cli("eval", "merge", merged, one, two, code=1).stderr
    two.write_text(json.dumps([*rows, {**rows[0], "id": 9}]))
    assert "has 2 rows, and shard 2/2 1" in cli("eval", "merge", merged, one, two, code=1).stderr
    two.write_text(json.dumps([{**rows[0], "id": 5}]))
    assert "two shards have a row with" in cli("eval", "merge", merged, one, two, code=1).stderr
    two.unlink()
    assert (
        "the run of shard 2/2 is not over" in cli("eval", "merge", merged, one, two, code=1).stderr
    )
    assert not merged.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shard", "4/4"), "has only 3 rows"),
        (("--shard", "4"), "write I/N"),
        (("--suite", "x"), "--suite x is not known"),
        (("--prompt", "raw"), "has no form for a second turn"),
        (("--set", "n=2", "--temperature", 1), "the judges read one answer"),
        (("--suite", "just-eval"), "instruction must be a text"),
        (("--out", "no such folder/out"), "there is no folder no such folder; make it first"),
    ],
)
def test_refused_before_any_work(
    tiny_model: TinyModel, tmp_path: Path, options: Any, message: str
) -> None:
    source, out = write(tmp_path / "in.json", MT), tmp_path / "out"
    run = ("eval", "answers", tiny_model(), "--in", source, "--out", out, "--suite", "mt-bench")
    assert message in cli(*run, "--prompt", "chat", *options, code=1).stderr
    assert not list(tmp_path.glob("out*"))


def test_category_temperatures_are_mt_benchs(tiny_model: TinyModel, tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.json", ALPACA), tmp_path / "out"
    run = ("eval", "answers", tiny_model(), "--in", source, "--out", out, "--suite", "alpaca-eval")
    refused = cli(*run, "--category-temperatures", code=1)
    assert "only mt-bench has any" in refused.stderr


def test_a_run_killed_in_any_turn_gives_the_same_bytes(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    model = tiny_model()
    rows = [{"question_id": i, "turns": [f"text {i}", "more"]} for i in range(30)]
    source = write(tmp_path / "in.json", rows)
    run = ("eval", "answers", model, "--suite", "mt-bench", "--in", source, "--prompt", "zero-shot")
    run = (*run, "--max-tokens", 40, "--max-batch", 4, "--temperature", 0.9, "--threads", 1)
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    cli(*run, "--out", whole)
    for turn, goal in ((1, 1), (1, 18), (2, 1), (2, 18)):
        path = tmp_path / f"out.jsonl.turn{turn}.jsonl"
        process = start(*run, "--out", out)
        while process.poll() is None and (not path.exists() or count(path) < goal):
            time.sleep(0.002)
        process.kill()
        process.communicate()
        assert count(path) >= goal
        assert not out.exists() or count(path) == 30
        with path.open("ab") as file:
            file.write(b'{"id": 1' if count(path) < 30 else b"")  # as if killed while writing
    cli(*run, "--out", out)
    assert out.read_bytes() == whole.read_bytes()


def count(path: Path) -> int:
    return path.read_bytes().count(b"\n")
