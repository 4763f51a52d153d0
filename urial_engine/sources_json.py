"""The text of a file in; its rows, each with its number, its line and its value or its fault, out.

One damaged row does not take the others with it, and none goes missing without a fault that says
where. Bytes that are no UTF-8 come in as `surrogateescape` leaves them, so that their row is known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple, NoReturn

_BAD_BYTE = re.compile("[\udc80-\udcff]")
_EMPTY = re.compile(r"\s*\[\s*\]\s*")
_SPACE = re.compile(r"[ \t\r\n]*")
# Inside of a text a quotation mark has a backslash before it, so no text looks like this.
_NEXT_ROW = re.compile(r',[ \t\r\n]*(?=\{[ \t\r\n]*"[^"\\\n]{1,64}"[ \t\r\n]*:)')
_MOST_FAULTS = 1000  # on end


class Element(NamedTuple):
    """A row of a file. Where there is a fault, there is no value."""

    number: int  # from 1: of the line, or of the element in an array
    place: str  # the line where it begins, from 1; for an array's element its number too
    value: object
    fault: str | None = None


def text_lines(text: str) -> Iterator[Element]:
    """A query on each line, as an object with `query`; lines of white space are passed over."""
    for number, line in _lines(text):
        fault = _bad_byte(line, 0, len(line))
        yield Element(number, str(number), None if fault else {"query": line}, fault)


def json_lines(text: str) -> Iterator[Element]:
    """A JSON value on each line; lines of white space are passed over."""
    for number, line in _lines(text):
        try:
            value, end = _decode(line, _space(line, 0), number)
            if _space(line, end) < len(line):
                raise ValueError(f"not JSON: more text follows at column {end + 1}")
        except ValueError as error:
            yield Element(number, str(number), None, str(error))
        else:
            yield Element(number, str(number), value)


def json_array(text: str) -> Iterator[Element]:
    """The elements of a JSON array.

    After a fault it goes on at the next place that reads `, {"key":`, which is how a row begins:
    between rows, or in a list of objects inside of one. The fault says on which line that is, so
    what it covers is known. An array without its end, or with text after it, is a fault too.
    After a thousand faults on end the rest is lost: a fault can cost a pass over the whole text.
    """
    if _EMPTY.fullmatch(text):
        return
    line_of = _LineOf(text)
    at, sign, faults = _space(text, 0), "[", 0
    for number in count(1):
        start = at
        try:
            following = _row_after(text, at, sign)
            if following is None:
                return
            start = following
            place = f"{line_of(start)}, element {number}"
            value, end = _decode(text, start)
        except ValueError as error:
            place = f"{line_of(start)}, element {number}"
            faults += 1
            found = _NEXT_ROW.search(text, start) if faults < _MOST_FAULTS else None
            goes_on = f"read on at line {line_of(found.end())}" if found else "the rest is lost"
            yield Element(number, place, None, f"{error}; {goes_on}")
            if not found:
                return
            at = found.start()
        else:
            yield Element(number, place, value)
            at, faults = _space(text, end), 0
        sign = ","


def _row_after(text: str, at: int, sign: str) -> int | None:
    """Where the row after the `sign` at `at` begins; None where the array ends instead."""
    here, following = text[at : at + 1], _space(text, at + 1)
    if here == sign:
        return following
    if here != "]" or sign == "[":
        found = ascii(here) if here else "the end of the file"
        wanted = "'['" if sign == "[" else "',' or ']'"
        raise ValueError(f"not a JSON array: {found} where {wanted} must stand")
    if following < len(text):
        raise ValueError("text follows the end of the array")
    return None


class _LineOf:
    """The line of a position, from 1. Positions are asked for in rising order."""

    def __init__(self, text: str) -> None:
        self._text, self._at, self._line = text, 0, 1

    def __call__(self, position: int) -> int:
        self._line += self._text.count("\n", self._at, position)
        self._at = position
        return self._line


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line. U+2028 and its like end none: they may stand in a text."""
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removeprefix("\ufeff").removesuffix("\r")
        if line.strip():
            yield number, line


def _space(text: str, at: int) -> int:
    """Where the white space from `at` on ends."""
    match = _SPACE.match(text, at)
    assert match
    return match.end()


def _decode(text: str, start: int, first_line: int = 1) -> tuple[object, int]:
    """The value that begins at `start`, and where it ends. `ValueError` says what is wrong."""
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        at = f"line {first_line + error.lineno - 1}, column {error.colno}"
        raise ValueError(f"not JSON: {error.msg} ({at})") from None
    except RecursionError:
        raise ValueError("not JSON that can be read: it is nested too deeply") from None
    if fault := _bad_byte(text, start, end):
        raise ValueError(fault)
    return value, end


def _bad_byte(text: str, start: int, end: int) -> str | None:
    found = _BAD_BYTE.search(text, start, end)
    return f"not UTF-8: it holds the byte 0x{ord(found[0]) - 0xDC00:02x}" if found else None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"not JSON: {name} is no number there")


_DECODER = json.JSONDecoder(parse_constant=_no_number)
