"""Questions of the benchmarks, their ids, shards and seeds; conversations in every form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.command_line import PREFIX
from tests.fixtures import TinyModel
from urial_engine.errors import ParameterError
from urial_engine.evaluation.conversation import conversation
from urial_engine.evaluation.questions import Shard, digest_of, read_questions, seed_of
from urial_engine.prompt import UrialPrompt
from urial_engine.tokenizer import Tokenizer

JUST = [
    {"id": 0, "instruction": "Why?", "source_id": "a-0", "dataset": "lima", "output": "N/A"},
    {"id": 800, "instruction": "How?", "dataset": "MaliciousInstruct", "generator": None},
]
ROLES = ("Query", "Answer", "Query")
ALPACA = [{"instruction": "Hi", "dataset": "koala", "output": "x"}, {"instruction": "Hi"}]


def write(path: Path, rows: list[dict[str, Any]], *, array: bool = True) -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(json.dumps(rows, indent=1) if array else lines)
    return path


def test_the_real_questions_of_mt_bench(shared_data: Path) -> None:
    questions = read_questions(shared_data / "mt_bench_questions.jsonl", "mt-bench")
    assert [question.id for question in questions] == list(range(81, 161))
    assert {len(question.turns) for question in questions} == {2}
    temperatures = {q.row.fields["category"]: q.temperature for q in questions}
    sampled = {name for name, value in temperatures.items() if value}
    assert sampled == {"writing", "roleplay", "stem", "humanities"}
    assert (temperatures["writing"], temperatures["stem"]) == (0.7, 0.1)


@pytest.mark.parametrize(("suite", "rows"), [("just-eval", JUST), ("alpaca-eval", ALPACA)])
def test_ids_are_those_of_the_rows_whatever_the_file(
    tmp_path: Path, suite: str, rows: list[dict[str, Any]]
) -> None:
    read = [
        read_questions(write(tmp_path / name, rows, array=array), suite)
        for name, array in (("a.json", True), ("b.jsonl", False), ("c.json", False))
    ]
    ids = [[question.id for question in questions] for questions in read]
    assert ids[0] == ids[1] == ids[2]
    assert len(set(ids[0])) == 2  # of two rows with one text, too
    assert all(own in (row.get("id"), own) for own, row in zip(ids[0], rows, strict=True))
    assert len({digest_of(questions) for questions in read}) == 1
    other = read_questions(write(tmp_path / "d.json", rows[:1]), suite)
    assert other[0].id == ids[0][0]
    assert digest_of(other) != digest_of(read[0])


def test_a_row_of_unknown_category_has_fastchats_temperature(tmp_path: Path) -> None:
    rows = [{"question_id": 1, "turns": ["a"], "category": "poetry"}]
    (question,) = read_questions(write(tmp_path / "q.jsonl", rows), "mt-bench")
    assert question.temperature == 0.7


@pytest.mark.parametrize(
    ("suite", "row", "message"),
    [
        ("just-eval", {"instruction": "a"}, "dataset must be a text"),
        ("just-eval", {"dataset": "a"}, "instruction must be a text"),
        ("just-eval", {"instruction": "a", "dataset": "b", "id": 1.5}, "id must be a text or a wh"),
        ("alpaca-eval", {"instruction": ["a"]}, "instruction must be a text"),
        ("alpaca-eval", {"instruction": "\ud800"}, "not valid Unicode"),
        ("alpaca-eval", {"instruction": "a", "input": "b"}, "the row has an input"),
        ("mt-bench", {"turns": ["a"]}, "question_id must be a text or a whole number, not None"),
        ("mt-bench", {"question_id": 1, "turns": []}, "turns must be a list of texts"),
        ("mt-bench", {"question_id": 1, "turns": ["a", 2]}, "turns[1] must be a text, not 2"),
        ("mt-bench", ["a"], "a row must be a JSON object, not list"),
        ("alpaca", {"instruction": "a"}, "--suite alpaca is not known; it is one of just-eval"),
    ],
)
def test_what_is_no_question_is_named(tmp_path: Path, suite: str, row: Any, message: str) -> None:
    path = write(tmp_path / "q.json", [row])
    with pytest.raises(ParameterError) as caught:
        read_questions(path, suite)
    assert message in str(caught.value)
    assert "q.json:2" in str(caught.value) or suite == "alpaca"


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    for text, message in (
        ('[{"instruction": "a"},\n{"instruction" "b"}]', "q.json:2, element 2: not JSON"),
        ("", "has no rows"),
        ('{"id": 1, "instruction": "a"}\n{"id": 1, "instruction": "b"}', "the id 1 is that of"),
    ):
        path.write_text(text)
        with pytest.raises(ParameterError, match=message):
            read_questions(path, "alpaca-eval")
    with pytest.raises(ParameterError, match="cannot be read"):
        read_questions(tmp_path / "none", "alpaca-eval")


@given(rows=st.integers(1, 50), of=st.integers(1, 12))
def test_shards_take_every_row_once(rows: int, of: int) -> None:
    shards = [Shard.parse(f"{number}/{of}") for number in range(1, of + 1)]
    taken = [row for shard in shards for row in shard.take(range(rows))]
    assert sorted(taken) == list(range(rows))


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/", "/2", "-1/2", "1/2/3", "²/3"])
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(ParameterError, match="write I/N"):
        Shard.parse(text)


def test_seeds_depend_on_the_row_and_the_turn() -> None:
    seeds = [seed_of(s, row, turn) for s in (0, 1) for row in (1, "1", 2) for turn in (1, 2)]
    assert len(set(seeds)) == len(seeds)
    assert seeds[0] == seed_of(0, 1, 1) < 2**63


def test_conversations_in_every_form(tiny_model: TinyModel) -> None:
    tokenizer = Tokenizer.load(tiny_model())
    turns = ["a", "b", "c"]
    urial = conversation(UrialPrompt(PREFIX), tokenizer, several=True)
    blocks = [f"\n# {role}:\n```\n{turn}\n```\n" for role, turn in zip(ROLES, turns, strict=True)]
    text = "".join(blocks) + "\n# Answer:\n```\n"
    assert urial.render(turns) == text
    assert (urial.clean("x\n```\nrest"), urial.stop) == ("x", ("# Query", "# User"))
    zero = conversation("zero-shot", tokenizer, several=True)
    assert zero.render(turns) == text[1:]
    assert (zero.clean("x\n```\n"), zero.stop) == ("x", urial.stop)
    chat = conversation("chat", tokenizer, several=True)
    ids = chat.render(turns)
    assert not isinstance(ids, str)
    shown = "<user>\na\n<assistant>\nb\n<user>\nc\n<assistant>\n"
    assert tokenizer.decode(ids) == shown and ids.count(1) == 1
    assert (chat.clean(" x\n```\n "), chat.stop) == ("x\n```", ())


def test_forms_of_one_turn(tiny_model: TinyModel) -> None:
    tokenizer = Tokenizer.load(tiny_model())
    assert conversation("zero-shot", tokenizer).render(["a"]) == (
        "# Query:\n```\na\n```\n\n# Answer:\n```\n"
    )
    assert conversation("raw", tokenizer).render(["{query}"]) == "{query}"
    fenced = conversation("Q: {query}\n```\n", tokenizer)
    assert (fenced.render(["a"]), fenced.clean("x\n```\n")) == ("Q: a\n```\n", "x")
    assert fenced.stop
    for form in ("raw", "Q: {query}"):
        with pytest.raises(ParameterError, match="has no form for a second turn"):
            conversation(form, tokenizer, several=True)
