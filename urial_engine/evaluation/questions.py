"""A benchmark's own file in; its questions, each with an id that no sharding changes, out.

- just-eval: rows of just-eval-instruct: `instruction`, `dataset`, and as a rule `id`, `source_id`
- alpaca-eval: `instruction`, and as a rule `dataset`
- mt-bench: FastChat's question.jsonl: `question_id`, `turns`, and as a rule `category`

A file is a JSON array, or has a row on each line. What a row has beyond these is passed over: the
reference answers, and in just-eval the `output` "N/A".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..errors import ParameterError
from ..jsonl import Id, Row
from ..sources_json import Element, json_array, json_lines

SUITES = ("just-eval", "alpaca-eval", "mt-bench")
# What FastChat samples with, by category, and where it knows none (llm_judge/common.py).
TEMPERATURES = {
    **dict.fromkeys(("writing", "roleplay"), 0.7),
    **dict.fromkeys(("extraction", "math", "coding", "reasoning"), 0.0),
    **dict.fromkeys(("stem", "humanities"), 0.1),
}
OTHER_TEMPERATURE = 0.7
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question:
    """`index`: its place in the whole file, from 0. `turns`: what the user says, one after the
    other."""

    row: Row
    index: int
    turns: tuple[str, ...]

    @property
    def id(self) -> Id:
        return self.row.id

    @property
    def temperature(self) -> float:
        """FastChat's, of its category."""
        return TEMPERATURES.get(str(self.row.fields.get("category")), OTHER_TEMPERATURE)


@dataclass(frozen=True, slots=True)
class Shard:
    """Every `of`-th row, beginning with row `number`, which counts from 1."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`ParameterError` unless it is I/N with 1 <= I <= N."""
        number, _, of = text.partition("/")
        if not (_is_number(number) and _is_number(of) and 1 <= int(number) <= int(of)):
            raise ParameterError(f"--shard {text}: write I/N, such as 1/4 for the first of four")
        return cls(int(number), int(of))

    def take(self, rows: Sequence[T]) -> list[T]:
        return list(rows[self.number - 1 :: self.of])

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def read_questions(path: Path, suite: str) -> list[Question]:
    """All questions of a file. `ParameterError` names file:line of what is no row of this suite."""
    rows = read_rows(path, suite)
    return [Question(row, index, _turns(row, suite)) for index, row in enumerate(rows)]


def read_rows(path: Path, suite: str) -> list[Row]:
    """The rows of a benchmark's file, or of a file of answers. The id of one that has none is made
    of the suite, its place in the file and its text."""
    if suite not in SUITES:
        raise ParameterError(f"--suite {suite} is not known; it is one of {', '.join(SUITES)}")
    rows: dict[Id, Row] = {}
    for index, element in enumerate(_elements(path)):
        row = _row(element, index, suite, f"{path}:{element.place}")
        if row.id in rows:
            raise ParameterError(f"{row.where}: the id {row.id!r} is that of {rows[row.id].where}")
        rows[row.id] = row
    if not rows:
        raise ParameterError(f"{path} has no rows")
    return list(rows.values())


def digest(value: object) -> str:
    """Of anything that JSON can hold: the same wherever it was computed."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of(questions: Sequence[Question]) -> str:
    """Which questions these are, whatever form their file has."""
    return digest([[q.id, q.turns, q.row.fields] for q in questions])


def seed_of(seed: int, row: Id, turn: int) -> int:
    """Of one answer's random numbers: it depends on the run's seed, this row and turn alone."""
    return int(digest([seed, row, turn])[:15], 16)


def _elements(path: Path) -> list[Element]:
    try:
        text = path.read_bytes().decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    except OSError as error:
        raise ParameterError(f"{path} cannot be read: {error}") from error
    elements = list((json_array if text.lstrip().startswith("[") else json_lines)(text))
    for element in elements:
        if element.fault:
            raise ParameterError(f"{path}:{element.place}: {element.fault}")
    return elements


def _row(element: Element, index: int, suite: str, where: str) -> Row:
    fields = element.value
    if not isinstance(fields, dict):
        raise ParameterError(f"{where}: a row must be a JSON object, not {type(fields).__name__}")
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ParameterError(f"{where}: not valid Unicode: {error}") from None
    name = "question_id" if suite == "mt-bench" else "id"
    key = fields.get(name)
    if name not in fields and suite != "mt-bench":
        key = digest([suite, index, fields.get("instruction")])[:16]
    if not isinstance(key, str) and type(key) is not int:
        raise ParameterError(f"{where}: {name} must be a text or a whole number, not {key!r:.60}")
    return Row(key, fields, where)


def _turns(row: Row, suite: str) -> tuple[str, ...]:
    """What the user says, checked with all that the judge's row repeats."""
    if suite != "mt-bench":
        if row.fields.get("input"):
            raise ParameterError(
                f"{row.where}: the row has an input, which the {suite} of today has not: write it "
                "into the instruction"
            )
        needed = ("instruction", "dataset") if suite == "just-eval" else ("instruction",)
        return tuple(row.text(name) for name in needed)[:1]
    turns = row.fields.get("turns")
    if not isinstance(turns, list) or not turns:
        raise ParameterError(f"{row.where}: turns must be a list of texts, at least one")
    return tuple(
        Row(row.id, {f"turns[{i}]": t}, row.where).text(f"turns[{i}]") for i, t in enumerate(turns)
    )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()
