"""JSON Lines in and out: faults are named by file and line, and no finished row is ever lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from urial_engine.errors import ParameterError
from urial_engine.jsonl import Results, Row, read_rows

PARAMETERS = {"command": "generate", "temperature": 0.5, "stop": ("a", "b")}
EXPECTED: dict[str | int, dict[str, Any]] = {
    "a": {"id": "a", "prompt": "one"},
    "b": {"id": "b", "prompt": "zwei ümläut\u2028"},
    3: {"id": 3, "prompt": "three"},
}
ROWS = [{**fields, "outputs": [f"→ {key}"]} for key, fields in EXPECTED.items()]


def written(path: Path, *lines: str) -> Path:
    path.write_text("".join(lines), encoding="utf-8")
    return path


def run(path: Path, rows: list[dict[str, Any]] = ROWS, **changes: Any) -> set[str | int]:
    """Write the rows that are not there; which were."""
    with Results(path, {**PARAMETERS, **changes}, EXPECTED) as results:
        for row in rows:
            if row["id"] not in results.finished:
                results.write(row)
        return results.finished


def ids(path: Path) -> list[object]:
    return [json.loads(line)["id"] for line in path.read_bytes().splitlines()]


def test_rows_are_read_as_they_stand(tmp_path: Path) -> None:
    lines = ["\ufeff" + '{"prompt": "x\u2028y"}\n', "\n", '{"id": "k"}\n', '{"id": 7}']
    rows = read_rows(written(tmp_path / "in.jsonl", *lines))
    assert [row.id for row in rows] == [1, "k", 7]
    assert rows[0].text("prompt") == "x\u2028y"
    assert rows[2].where == f"{tmp_path / 'in.jsonl'}:4"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100000, "not JSON"),
        ('{"prompt": "\xff', "not JSON"),
        ("[1]", r"a row must be a JSON object, not \[1\]"),
        ('{"id": null}', "id must be a text or a whole number, not null"),
        ('{"id": true}', "id must be a text or a whole number, not true"),
        ('{"id": 1}', r"the id 1 is that of .*in.jsonl:1 too"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = written(tmp_path / "in.jsonl", "{}\n", f"{line}\n")
    with pytest.raises(ParameterError, match=rf"in\.jsonl:2: {message}"):
        read_rows(path)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(ParameterError, match=r"in\.jsonl:1: not JSON"):
        read_rows(path)


@pytest.mark.parametrize(
    ("fields", "read", "message"),
    [
        ({}, lambda row: row.text("prompt"), "prompt must be a text, not null"),
        ({"prompt": 1}, lambda row: row.text("prompt"), "prompt must be a text, not 1"),
        ({"prompt": "\ud800"}, lambda row: row.text("prompt"), "prompt is not valid Unicode"),
        ({"ids": [1, -1]}, lambda row: row.token_ids("ids"), "ids must be a list of token ids"),
        ({"ids": [True]}, lambda row: row.token_ids("ids"), "ids must be a list of token ids"),
        ({"x": 1}, lambda row: row.one_of("a", "b"), "exactly one of a, b is needed; it has x"),
        ({"a": 1, "b": 2}, lambda row: row.one_of("a", "b"), "it has a and b"),
    ],
)
def test_a_wrong_field_is_named(fields: Any, read: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=rf"^f:1: .*{message}"):
        read(Row(1, fields, "f:1"))


def test_a_run_writes_rows_and_what_they_depend_on(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert run(out) == set()
    assert [json.loads(line) for line in out.read_bytes().splitlines()] == ROWS
    assert json.loads((tmp_path / "out.jsonl.run.json").read_text()) == {
        **PARAMETERS,
        "stop": ["a", "b"],
    }
    assert {path.name for path in tmp_path.iterdir()} == {"out.jsonl", "out.jsonl.run.json"}
    assert run(out) == set(EXPECTED)


def test_a_row_is_with_the_system_when_write_returns(tmp_path: Path) -> None:
    with Results(tmp_path / "out.jsonl", PARAMETERS, EXPECTED) as results:
        results.write(ROWS[0])
        assert ids(tmp_path / "out.jsonl") == ["a"]


def test_a_file_cut_at_any_byte_is_taken_up(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(out)
    whole = out.read_bytes()
    ends = [end for end in range(len(whole) + 1) if whole[:end].endswith(b"}")]
    for cut in range(len(whole) + 1):
        out.write_bytes(whole[:cut])
        with Results(out, PARAMETERS, EXPECTED) as results:
            lines = [line for line in whole[:cut].split(b"\n") if line]
            partial = bool(lines) and cut not in ends and not whole[:cut].endswith(b"\n")
            assert len(results.finished) == len(lines) - partial, cut
            assert (results.note is not None) == partial, cut
        assert len(run(out)) == len(lines) - partial
        assert out.read_bytes() == whole


def test_the_note_says_what_was_dropped(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(out)
    out.write_bytes(out.read_bytes()[:-5])
    with Results(out, PARAMETERS, EXPECTED) as results:
        assert results.note is not None
        assert "half-written last row; it is computed again" in results.note


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.7}, r"other parameters: temperature \(0\.5 then, 0\.7 now\)"),
        ({"new": 1}, r"other parameters: new \(null then, 1 now\)"),
        ({"stop": "x" * 99}, r"stop \(\[\"a\", \"b\"\] then, \"x{56}\.\.\. now\)"),
    ],
)
def test_other_parameters_are_refused_by_name(tmp_path: Path, changes: Any, message: str) -> None:
    out = tmp_path / "out.jsonl"
    run(out, ROWS[:1])
    out.write_bytes(before := out.read_bytes() + b'{"half')
    with pytest.raises(ParameterError, match=message):
        run(out, **changes)
    assert out.read_bytes() == before


def test_a_parameter_that_is_gone_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(out, ROWS[:1], old=2)
    with pytest.raises(ParameterError, match=r"old \(2 then, null now\)"):
        run(out)


def test_before_the_first_row_parameters_may_change(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(out, [])
    run(out, temperature=0.7)
    assert ids(out) == ["a", "b", 3]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("{}\n", r"out\.jsonl:1 is damaged; remove the line"),
        ('{"id": "b"\n{"id": "a", "prompt": "one"}\n', r"out\.jsonl:1 is damaged"),
        ('{"id": "z"}\n', r"out\.jsonl:1: the input has no row 'z'"),
        ('{"id": "a", "prompt": "two"}\n', r"made from prompt = \"two\", and the input now has"),
        ('{"id": "a", "prompt": "one"}\n' * 2, r"out\.jsonl:2: a second row with the id 'a'"),
    ],
)
def test_rows_that_do_not_belong_here_are_refused(tmp_path: Path, lines: str, message: str) -> None:
    out = tmp_path / "out.jsonl"
    run(out, [])
    written(out, lines)
    with pytest.raises(ParameterError, match=message):
        run(out)
    assert out.read_text() == lines


def test_rows_of_unknown_origin_are_refused(tmp_path: Path) -> None:
    out = written(tmp_path / "out.jsonl", json.dumps(ROWS[0]) + "\n")
    with pytest.raises(ParameterError, match=r"out\.jsonl\.run\.json does not say with what"):
        run(out)


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with (
        Results(out, PARAMETERS, EXPECTED),
        pytest.raises(ParameterError, match="being written by another process"),
    ):
        run(out)
    run(out)
