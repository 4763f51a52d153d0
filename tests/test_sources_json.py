"""Rows out of damaged text: each is there with its line, or a fault covers it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from urial_engine.errors import ParameterError
from urial_engine.sources import read_probes
from urial_engine.sources_json import Element, json_array, json_lines, text_lines


def summary(elements: Iterator[Element]) -> list[tuple[int, str, object]]:
    return [(e.number, e.place, e.fault if e.fault else e.value) for e in elements]


def test_lines_keep_their_numbers_and_texts() -> None:
    text = "\ufeffone\r\n\n \t\r\n two\u2028three \x0b!\r\n\ufefffour"
    assert summary(text_lines(text)) == [
        (1, "1", {"query": "one"}),
        (4, "4", {"query": " two\u2028three \x0b!"}),
        (5, "5", {"query": "four"}),
    ]
    assert list(text_lines("")) == list(text_lines(" \r\n\n")) == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", r"not JSON: Expecting property name.* \(line 2, column 2\)"),
        ('{"a": "b\tc"}', r"not JSON: Invalid control character at \(line 2, column 9\)"),
        ("[1] [2]", "not JSON: more text follows at column 4"),
        ('{"a": NaN}', "not JSON: NaN is no number there"),
        ("[-Infinity]", "not JSON: -Infinity is no number there"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "limit"),
        ('{"a": "\udcff"}', "not UTF-8: it holds the byte 0xff"),
    ],
)
def test_a_damaged_row_says_what_is_wrong(line: str, fault: str) -> None:
    found = list(json_lines(f'{{"a": 1}}\n{line}\n{{"a": 3}}'))
    assert [(e.number, e.place, e.value) for e in found] == [
        (1, "1", {"a": 1}),
        (2, "2", None),
        (3, "3", {"a": 3}),
    ]
    assert found[1].fault and re.search(fault, found[1].fault)
    found = list(json_array(f'[{{"a": 1}},\n{line}\n, {{"a": 3}}\n]'))
    assert found[0].value == {"a": 1} and found[-1].value == {"a": 3}
    assert found[1].place == "2, element 2"
    if "more text" not in fault:
        assert found[1].fault and re.search(fault.split(" \\(")[0], found[1].fault)


def test_bytes_that_are_no_text_are_named_in_lines_too() -> None:
    assert summary(text_lines("a\n\udcc3b")) == [
        (1, "1", {"query": "a"}),
        (2, "2", "not UTF-8: it holds the byte 0xc3"),
    ]


@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize("rows", [[], [{}], [1, "a", None, [], {"a": [{"b": 1}, {"b": 2}]}]])
def test_an_array_is_read_as_json_reads_it(rows: list[object], indent: int | None) -> None:
    text = f"\r\n {json.dumps(rows, indent=indent)} \n"
    found = list(json_array(text))
    assert [e.value for e in found] == rows
    assert [e.number for e in found] == list(range(1, len(rows) + 1))
    assert not any(e.fault for e in found)


def test_the_line_of_an_element_is_where_it_begins() -> None:
    text = '[\n\n  {"a":\n 1}, {"b": "x\\ny"}\n ,\r\n3]'
    assert [e.place for e in json_array(text)] == ["3, element 1", "4, element 2", "6, element 3"]


@pytest.mark.parametrize(
    ("text", "values", "fault", "place"),
    [
        ('[{"a": 1}, {"a": 2', [{"a": 1}], r"Expecting ',' delimiter.*; the rest is lost", "1"),
        ('[{"a": 1},\n{"a": "b', [{"a": 1}], "Unterminated string.*; the rest is lost", "2"),
        ('[{"a": 1}', [{"a": 1}], "the end of the file where ',' or ']' must stand", "1"),
        ("[", [], "Expecting value", "1"),
        ("", [], r"the end of the file where '\[' must stand", "1"),
        ('[{"a": 1},]', [{"a": 1}], "Expecting value", "1"),
        ('[{"a": 1}]\n{"a": 2}', [{"a": 1}], "text follows the end of the array", "1"),
        ('[{"a": 1}]]', [{"a": 1}], "text follows the end of the array", "1"),
        ("]", [], r"']' where '\[' must stand; the rest is lost", "1"),
        ('[{"t": ["x, {", "y"] 1},\n{"a": 3}]', [{"a": 3}], "read on at line 2", "1"),
        ("[] x", [], "Expecting value", "1"),
        ('{"a": 1},\n {"a": 2}]', [{"a": 2}], r"'{' where '\[' must stand; read on at line 2", "1"),
        ('[{"a": 1}\n{"a": 2},\n\n{"a": 3}]', [{"a": 1}, {"a": 3}], "read on at line 4", "2"),
        ('[{"a": 1}, {"a" 2},\n{"a": 3}]', [{"a": 1}, {"a": 3}], "read on at line 2", "1"),
        ('[{"a": "x}, {"a": 2},\n{"a": 3}]', [{"a": 2}, {"a": 3}], "read on at line 1", "1"),
        (r'[{"a": ",{\"b\": 1"x},{"a": 3}]', [{"a": 3}], "read on at line 1", "1"),
        ('[{"a": 1}]\n, {"a": 2}]', [{"a": 1}, {"a": 2}], "text follows", "1"),
    ],
)
def test_what_follows_a_fault_is_read(
    text: str, values: list[object], fault: str, place: str
) -> None:
    found = list(json_array(text))
    assert [e.value for e in found if not e.fault] == values
    (damaged,) = [e for e in found if e.fault]
    assert damaged.fault and re.search(fault, damaged.fault)
    assert damaged.place.split(",")[0] == place
    assert [e.number for e in found] == list(range(1, len(found) + 1))


def test_faults_without_end_do_not_take_forever() -> None:
    for unit in ('{"a": [0,', '{"a": {"b": 1},', "[", ","):
        found = list(json_array(f'[{{"a": 0}},{unit * 200_000}'))
        assert found[0].value == {"a": 0} and len(found) <= 1001
        assert found[-1].fault and found[-1].fault.endswith("the rest is lost")


def test_a_thousand_faults_with_a_good_row_between_them_lose_nothing() -> None:
    text = ",".join(['{"a": NaN},{"a": NaN},{"a": 1}'] * 2000)
    found = list(json_array(f"[{text}]"))
    assert len(found) == 6000 and sum(e.value == {"a": 1} for e in found) == 2000


ROWS = [{"n": i, "text": f"a [{i}], {{b}} \"c\" \\ é\n{{'d': 1}}, {{"} for i in range(12)]
# One row a line, so that what a fault covers can be told from the lines that it names.
ARRAY = "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n]"
BREAKS = [i for i, byte in enumerate(ARRAY.encode()) if byte == 10]


def damaged(changes: list[tuple[int, int]]) -> str:
    """Bytes replaced where no line begins or ends, so that all lines stay where they are."""
    data = bytearray(ARRAY.encode())
    for at, byte in changes:
        if at not in BREAKS and byte != 10:
            data[at] = byte
    return data.decode("utf-8", "surrogateescape")


def covered(found: list[Element]) -> set[int]:
    """The lines that the elements and the faults account for."""
    last = ARRAY.count("\n") + 1
    lines: set[int] = set()
    for element in found:
        line = int(element.place.split(",")[0])
        reading = re.search(r"read on at line (\d+)$", element.fault or "")
        lost = element.fault is not None and element.fault.endswith("; the rest is lost")
        assert lost or bool(element.fault) == bool(reading)
        lines.update(range(line, last + 1 if lost else int(reading[1]) if reading else line + 1))
    return lines


BYTES = st.tuples(st.integers(0, len(ARRAY.encode()) - 1), st.integers(0, 255))


@settings(max_examples=400, deadline=None)
@given(st.lists(BYTES, max_size=6), st.data())
def test_no_row_is_lost_without_a_fault(
    changes: list[tuple[int, int]], data: st.DataObject
) -> None:
    text = damaged(changes)
    whole = set(range(2, 2 + len(ROWS)))
    assert whole <= covered(list(json_array(text)))
    cut = data.draw(st.integers(0, len(text)))
    lines = {line for line in whole if line <= text[:cut].count("\n") + 1}
    assert lines <= covered(list(json_array(text[:cut])))


@settings(max_examples=400, deadline=None)
@given(BYTES)
def test_one_byte_costs_one_row(change: tuple[int, int]) -> None:
    found = list(json_array(damaged([change])))
    kept = [e.value for e in found if not e.fault]
    assert sum(row in kept for row in ROWS) >= len(ROWS) - 1
    assert len(found) >= len(ROWS)


def test_an_array_cut_anywhere_keeps_the_rows_before_the_cut() -> None:
    for cut in range(1, len(ARRAY) - 1):
        found = list(json_array(ARRAY[:cut]))
        lines = [line.removesuffix(",") for line in ARRAY[:cut].split("\n")]
        rows = [json.loads(line) for line in lines if is_json(line)]
        assert [e.value for e in found if not e.fault] == rows, cut
        assert sum(e.fault is not None for e in found) == 1 and found[-1].fault, cut


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def test_rows_of_json_are_no_text_whatever_the_file_is_called(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text('\ufeff\n{"query": "a"}\n')
    with pytest.raises(ParameterError, match="its first line is a JSON object; call it"):
        read_probes(path)
    assert [p.query for p in read_probes(path, format="jsonl").probes] == ["a"]
    path.write_text("{query} in braces\n")
    assert [p.query for p in read_probes(path).probes] == ["{query} in braces"]
