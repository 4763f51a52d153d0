"""`eval judge` of MT-bench: a template for each turn, one rating a reply."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import cli
from tests.judges import judge_server

TURN_1, TURN_2 = "One: {question} -> {answer}", "{question_1}|{answer_1}|{question_2}|{answer_2}"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


QUESTIONS: list[dict[str, Any]] = [
    {"question_id": 81, "category": "writing", "turns": ["Say {answer}", "Say b"]},
    {"question_id": 82, "category": "math", "turns": ["1+1?", "2+2?"]},
    {"question_id": 83, "category": "math", "turns": ["Once"]},
]
ANSWERS = [
    {
        **q,
        "model_id": "me",
        "choices": [{"index": 0, "turns": [f"A{i}" for i, _ in enumerate(q["turns"])]}],
    }
    for q in QUESTIONS
]


@pytest.fixture
def run(tmp_path: Path) -> tuple[Any, ...]:
    """The command, but for --out and --address."""
    asked = write(tmp_path / "q.jsonl", "".join(json.dumps(q) + "\n" for q in QUESTIONS))
    given = write(tmp_path / "a.jsonl", "".join(json.dumps(a) + "\n" for a in ANSWERS))
    first, second = write(tmp_path / "one.md", TURN_1), write(tmp_path / "two.md", TURN_2)
    templates = ("--template", first, "--template", second)
    suite = ("eval", "judge", "--suite", "mt-bench", "--model", "j")
    return (*suite, *templates, "--questions", asked, "--in", given)


def test_mt_bench(run: tuple[Any, ...], tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    said = {
        "One: Say {answer} -> A0": "Fine. Rating: [[8]]",
        "Say {answer}|A0|Say b|A1": "Rating: [[9.5]]",
        "One: 1+1? -> A0": "[[11]]",
        "1+1?|A0|2+2?|A1": "[[2]]",
        "One: Once -> A0": "[[3]]",
    }
    with judge_server(lambda prompt: said[prompt]) as server:
        cli(*run, "--out", out, "--address", server.address)
        assert sorted(server.prompts) == sorted(said)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["question_id"], r["turn"], r["score"]) for r in rows] == [
        *((81, 1, 8), (81, 2, 9.5), (82, 1, -1), (82, 2, 2), (83, 1, 3)),
    ]
    assert rows[1] == {
        "question_id": 81,
        "model": "me",
        "judge": ["j", "two"],
        "user_prompt": "Say {answer}|A0|Say b|A1",
        "judgment": "Rating: [[9.5]]",
        "score": 9.5,
        "turn": 2,
        "tstamp": 0.0,
    }
    assert rows[2]["failure"]["kind"] == "wrong rating"
    found = json.loads((tmp_path / "out.json.summary.json").read_text())
    means = {name: (own["mean"], own["count"]) for name, own in found["means"].items()}
    assert means == {
        "turn 1": (5.5, 2),
        "turn 2": (5.75, 2),
        "all": (22.5 / 4, 4),
        "category writing": (8.75, 2),
        "category math": (2.5, 2),
    }
    assert found["failed"] == {"wrong rating": 1}


def test_what_does_not_fit_is_refused(run: tuple[Any, ...], tmp_path: Path) -> None:
    end = ("--out", tmp_path / "out.json", "--address", "x")
    fewer = (*run[:6], *run[8:])  # one template
    assert "needs --template twice" in cli(*fewer, *end, code=1).stderr
    assert "needs --questions" in cli(*run[:-4], *run[-2:], *end, code=1).stderr
    wrong = write(tmp_path / "w.jsonl", json.dumps({**ANSWERS[0], "question_id": 9}))
    command = (*run[:-1], wrong, *end)
    assert "has no question 9" in cli(*command, code=1).stderr
    write(wrong, json.dumps({**ANSWERS[0], "choices": [{"turns": ["a"]}]}))
    assert "1 answers to the 2 turns" in cli(*command, code=1).stderr
    write(wrong, json.dumps({**ANSWERS[0], "choices": []}))
    assert "choices must be one" in cli(*command, code=1).stderr
