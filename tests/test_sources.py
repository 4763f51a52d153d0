"""Files of queries and answers, in every format: what a row says, and what is wrong with it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from urial_engine.errors import ParameterError
from urial_engine.sources import FORMATS, Probe, Probes, read_probes

URIAL = {
    "id": 7,
    "instruction": "Why?",
    "output": "Because.\n",
    "generator": "Mistral-7B-v0.1",
    "dataset": "helpful_base",
    "source_id": "alpaca_eval-0",
    "datasplit": "just_eval",
    "model_input": "# Query:\n```\nWhy?\n```",
}
JUST_EVAL = {name: value for name, value in URIAL.items() if name != "model_input"}
QUESTION = {name: value for name, value in JUST_EVAL.items() if name != "output"}
ALIGNTDS = {
    "id": 0,
    "pure_input": "Who?",
    "input": "<s>[INST] Who? [/INST] ",
    "output": ["She.</s>", "He.</s>"],
    "reference": "N/A",
}
MT_BENCH = {"question_id": 81, "category": "writing", "turns": ["First?", "Second?"]}
OURS = {"query": "What?", "answer_token_ids": [5, 2**31 - 1], "dataset": "d", "note": [None]}


def written(folder: Path, rows: Any, name: str = "in.json") -> Path:
    """Bytes and text as they are; rows as an array, or a line each in a .jsonl file."""
    path = folder / name
    if isinstance(rows, str):
        rows = rows.encode()
    elif not isinstance(rows, bytes):
        lines = name.endswith(".jsonl")
        text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows, indent=2)
        rows = text.encode()
    path.write_bytes(rows)
    return path


def read(folder: Path, rows: Any, name: str = "in.json", **options: str) -> Probes:
    return read_probes(written(folder, rows, name), **options)


def message(folder: Path, rows: Any, name: str = "in.json", **options: str) -> str:
    with pytest.raises(ParameterError) as caught:
        read(folder, rows, name, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("format", "row", "expected"),
    [
        ("jsonl", OURS, [(1, "What?", None, [5, 2**31 - 1], None, "d", None, 0)]),
        ("jsonl", {"query": "", "answer": ""}, [(1, "", "", None, None, None, None, 0)]),
        ("urial", URIAL, [(7, "Why?", "Because.\n", None, "# Query:\n```\nWhy?\n```")]),
        ("just-eval", JUST_EVAL, [(7, "Why?", "Because.\n", None, None)]),
        ("just-eval", QUESTION, [(7, "Why?", None, None, None)]),
        (
            "aligntds",
            ALIGNTDS,
            [
                (0, "Who?", "She.</s>", None, "<s>[INST] Who? [/INST] ", None, None, 0),
                (0, "Who?", "He.</s>", None, "<s>[INST] Who? [/INST] ", None, None, 1),
            ],
        ),
        ("mt-bench", MT_BENCH, [(81, "First?", None, None, None, "writing", None, 0)]),
    ],
)
@pytest.mark.parametrize("name", ["in.json", "in.jsonl"])
def test_a_row_of_each_format(
    tmp_path: Path, format: str, row: Any, expected: Any, name: str
) -> None:
    where = f"{tmp_path / name}:{'2, element 1' if name == 'in.json' else '1'}"
    rest = ("helpful_base", "Mistral-7B-v0.1", 0)
    probes = [Probe(*(p if len(p) == 8 else (*p, *rest)), where) for p in expected]
    for forced in ("auto", format):
        assert read(tmp_path, [row], name, format=forced) == Probes(format, probes, [])


def test_several_answers_are_several_probes(tmp_path: Path) -> None:
    rows = [{**URIAL, "id": 1, "output": ["a", "b", "c"]}, {**URIAL, "id": 2, "output": ["d"]}]
    found = [(p.id, p.answer, p.sample) for p in read(tmp_path, rows).probes]
    assert found == [(1, "a", 0), (1, "b", 1), (1, "c", 2), (2, "d", 0)]


def test_text_has_a_query_a_line(tmp_path: Path) -> None:
    text = '\ufeffOne\u2028more?\r\n\r\n  {"query": 3}\nlast'
    for name in ("q.txt", "q", "q.csv"):
        found = read(tmp_path, text, name)
        assert [(p.id, p.query) for p in found.probes] == [
            (1, "One\u2028more?"),
            (3, '  {"query": 3}'),
            (4, "last"),
        ]
        assert found.format == "text" and found.probes[1].where == f"{tmp_path / name}:3"
    assert read(tmp_path, "[1]", "q.json", format="text").probes[0].query == "[1]"


def test_a_suffix_does_not_stop_a_forced_format(tmp_path: Path) -> None:
    assert len(read(tmp_path, json.dumps([QUESTION]), "q.txt", format="just-eval").probes) == 1
    assert len(read(tmp_path, json.dumps(OURS), "q.txt", format="jsonl").probes) == 1
    assert read(tmp_path, [URIAL], format="just-eval").probes[0].prompt is None


def test_rows_of_a_json_file_may_stand_on_lines(tmp_path: Path) -> None:
    rows = "\ufeff\r\n" + "\r\n".join(json.dumps({"query": q}) for q in "ab") + "\r\n\r\n"
    for name in ("q.json", "q.JSONL"):
        found = [(p.id, p.query) for p in read(tmp_path, rows, name).probes]
        assert found == [(2, "a"), (3, "b")]
    found = [(p.id, p.query) for p in read(tmp_path, '{"query": "a"}', "one.json").probes]
    assert found == [(1, "a")]


def test_one_object_is_not_an_array(tmp_path: Path) -> None:
    told = message(tmp_path, json.dumps({"data": [OURS]}, indent=1))
    assert "in.json is one JSON object; give the array of its rows alone" in told
    told = message(tmp_path, json.dumps({"data": [OURS]}))
    assert "in.json:1: a row needs query" in told and 'it has "data"' in told


GOOD = {"id": "good", "query": "q", "answer": "a"}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (3, "a row must be a JSON object, not 3"),
        (None, "a row must be a JSON object, not null"),
        ({}, 'a row needs query, or .* instruction and dataset, or .*; it has ""'),
        ({"instruction": "i", "input": "x", "output": "o"}, "a row needs query"),
        ({"query": ["q"], "answer": "a"}, "query must be a text, not a list of 1"),
        ({"query": "\ud800", "answer": "a"}, r"query is no valid Unicode: '\\ud800' is half"),
        ({"query": "q", "answer": "x\udfff"}, r"answer is no valid Unicode: '\\udfff'"),
        ({"query": "q", "answer": None}, "answer must be a text, not null"),
        ({"query": "q", "answer": []}, "answer is an empty list; give a text, or leave answer out"),
        ({"query": "q", "answer": ["a", 1]}, r"answer\[1\] must be a text, not 1"),
        ({"query": "q", "answer": {"text": "a"}}, "answer must be a text, not an object of 1"),
        ({"query": "q", "answer": "a", "answer_token_ids": [1]}, "say the same; give one of them"),
        ({"query": "q", "answer_token_ids": "1"}, 'must be a list of token ids, not "1"'),
        ({"query": "q", "answer_token_ids": [0, -1]}, r"answer_token_ids\[1\] must be .*, not -1"),
        ({"query": "q", "answer_token_ids": [True]}, r"answer_token_ids\[0\] must be .*, not true"),
        ({"query": "q", "answer_token_ids": [1.0]}, r"must be a token id, not 1\.0"),
        ({"query": "q", "answer_token_ids": [2**31]}, "must be a token id, not 2147483648"),
        ({"query": "q", "answer": "a", "dataset": 1}, "dataset must be a text, not 1"),
        ({"query": "q", "answer": "a", "generator": []}, "generator must be a text, not a list"),
        ({"query": "q", "answer": "a", "id": None}, "id must be a text or .*, not null"),
        ({"query": "q", "answer": "a", "id": True}, "id must be a text or .*, not true"),
        ({"query": "q", "answer": "a", "id": 2**63}, "of 64 bits, not 9223372036854775808"),
        ({"query": "q", "answer": "a", "id": 10**4000}, r"of 64 bits, not 1000*\.\.\."),
        ({"query": "q", "answer": "a", "id": "good"}, r'the id "good" is that of .*:[12].* too'),
        (URIAL, 'a row of urial, and those before it are of jsonl; it has "id, instruction'),
        ({"\ud83d": 1}, r'it has "\\ud83d"'),
        ({"query": "q", "answer_token_ids": "é" * 99}, r'not "é{56}\.\.\.'),
    ],
)
@pytest.mark.parametrize("name", ["in.json", "in.jsonl"])
def test_a_malformed_row_is_refused_or_skipped(
    tmp_path: Path, row: Any, why: str, name: str
) -> None:
    rows = [GOOD, row, {**GOOD, "id": "last"}]
    found = read(tmp_path, rows, name, malformed="skip")
    assert [p.id for p in found.probes] == ["good", "last"]
    (skipped,) = found.skipped
    line = f"{json.dumps([GOOD, 0], indent=2)[:-4].count(chr(10)) + 1}, element 2"
    assert skipped.where == f"{tmp_path / name}:{line if name == 'in.json' else 2}"
    assert re.search(why, skipped.why)
    told = message(tmp_path, rows, name)
    assert "1 of 3 rows malformed" in told
    assert f"{skipped.where}: {skipped.why}" in told.encode().decode()  # can be printed


@pytest.mark.parametrize(
    ("format", "row", "why"),
    [
        ("urial", {**URIAL, "output": []}, "output is an empty list"),
        ("just-eval", {**JUST_EVAL, "output": None}, "output must be a text, not null"),
        ("aligntds", {**ALIGNTDS, "output": [["a"]]}, r"output[0] must be a text, not a list of 1"),
        ("aligntds", {**ALIGNTDS, "input": None}, "input must be a text, not null"),
        ("mt-bench", {**MT_BENCH, "turns": []}, "turns is an empty list"),
        ("mt-bench", {**MT_BENCH, "question_id": 0.5}, "question_id must be a text or a whole"),
        ("mt-bench", {**MT_BENCH, "category": 1}, "category must be a text, not 1"),
        ("aligntds", JUST_EVAL, "a row of aligntds needs pure_input and input and output; it has"),
    ],
)
def test_the_error_has_the_name_of_the_field(
    tmp_path: Path, format: str, row: Any, why: str
) -> None:
    assert why in message(tmp_path, [row], format=format)
    assert "every row malformed" in message(tmp_path, [row], format=format, malformed="skip")


def test_the_format_is_that_of_the_first_good_row(tmp_path: Path) -> None:
    rows = [{**OURS, "query": 1}, URIAL, MT_BENCH, {**URIAL, "id": 8}, JUST_EVAL]
    found = read(tmp_path, rows, "in.jsonl", malformed="skip")
    assert found.format == "urial" and [p.id for p in found.probes] == [7, 8]
    assert [s.where[-1] for s in found.skipped] == ["1", "3", "5"]


def test_the_first_ten_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    rows = "\n".join(['{"query": "q"}'] + ["x"] * 12)
    told = message(tmp_path, rows, "in.jsonl")
    assert "in.jsonl: 12 of 13 rows malformed" in told and told.endswith("\n  and 2 more")
    assert [f"in.jsonl:{n}: " in told for n in range(2, 14)] == [True] * 10 + [False] * 2
    assert "more" not in message(tmp_path, "\n".join(rows.split("\n")[:11]), "in.jsonl")


def test_answers_are_for_all_or_for_none(tmp_path: Path) -> None:
    rows = [GOOD, {"id": "b", "query": "q"}, {"id": "c", "query": "q", "answer_token_ids": []}]
    for malformed in ("refuse", "skip"):
        told = message(tmp_path, rows, "in.jsonl", malformed=malformed)
        assert 'in.jsonl:2: the row "b" has no answer, as 1 of 3 have none' in told
    assert len(read(tmp_path, [rows[0], rows[2]]).probes) == 2
    assert len(read(tmp_path, [rows[1], {**rows[1], "id": 1}]).probes) == 2


def test_a_missing_id_is_never_one_that_is_given(tmp_path: Path) -> None:
    rows = [{"id": given} if given is not None else {} for given in (2, None, "row 2", None, "4")]
    probes = read(tmp_path, [{"query": "q", **row} for row in rows]).probes
    assert [p.id for p in probes] == [2, "row row 2", "row 2", 4, "4"]
    bad = {"id": 1, "query": 3}  # is skipped, and keeps its id
    found = read(tmp_path, [{"query": "q"}, bad], malformed="skip")
    assert [p.id for p in found.probes] == ["row 1"]


def test_bytes_that_are_no_text_cost_their_row(tmp_path: Path) -> None:
    rows = [json.dumps({"query": f"q{i}", "x": "y"}).encode() for i in range(3)]
    rows[1] = rows[1].replace(b"y", b"\xff", 1)
    files = (b"\n".join(rows), "q.JSONL"), (b"[" + b",\n".join(rows) + b"]", "q.json")
    for content, name in (*files, (b"q0\nq\xff\nq2", "q.txt")):
        found = read(tmp_path, content, name, malformed="skip")
        assert [p.query for p in found.probes] == ["q0", "q2"]
        assert len(found.skipped) == 1 and found.skipped[0].where.startswith(f"{tmp_path / name}:2")
        assert "not UTF-8: it holds the byte 0xff" in found.skipped[0].why


@pytest.mark.parametrize("content", ["", "\ufeff", " \n\r\n", "[]", "[ ]\n"])
def test_a_file_without_queries_is_refused(tmp_path: Path, content: str) -> None:
    assert message(tmp_path, content).endswith(
        "in.json has no queries; give one a line, or rows of JSON"
    )


def test_what_is_asked_for_must_exist(tmp_path: Path) -> None:
    told = message(tmp_path, [OURS], format="csv")
    assert "format = 'csv' is not known; it is one of auto, jsonl" in told
    told = message(tmp_path, [OURS], malformed="drop")
    assert "malformed = 'drop' is not known; it is one of refuse, skip" in told
    with pytest.raises(ParameterError, match="absent cannot be read"):
        read_probes(tmp_path / "absent")
    assert set(FORMATS) == {"auto", "jsonl", "text", "urial", "just-eval", "aligntds", "mt-bench"}


MANY = {
    "in.jsonl": [{"query": f'q{i} é\\ "', "answer": "{[\n", "id": i} for i in range(8)],
    "in.json": [{**ALIGNTDS, "id": i, "output": [f'a{i}\n,{{"', "b"]} for i in range(8)],
    "in.txt": "\n".join(f"query {i} é" for i in range(8)),
}


@pytest.mark.parametrize("name", MANY)
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_is_an_error_or_told(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()
    content = bytearray(written(folder, MANY[name], name).read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    cut = data.draw(st.booleans())
    before = content[:at].count(b"},\n  {")
    content[at:] = b"" if cut else bytes([data.draw(st.integers(0, 255)), *content[at + 1 :]])
    try:
        found = read(folder, bytes(content), name, malformed="skip")
    except ParameterError:
        return
    kept = len({p.where for p in found.probes})
    if name == "in.json" and cut:
        assert kept >= before and len(found.skipped) == 1
    elif name == "in.json":
        assert kept >= 7 and kept + len(found.skipped) >= 8
    else:
        lines = [line for line in bytes(content).split(b"\n") if line.strip()]
        assert kept + len(found.skipped) == len(lines)
