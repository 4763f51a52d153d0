"""Answers of a run as JSON Lines, a row an answer: they are written, and read back checked."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from .errors import ParameterError
from .jsonl import replacing
from .shift_data import Answer, Id

Key = tuple[Id, int]  # an answer's id and sample


def key(answer: Answer) -> Key:
    return answer.id, answer.sample


def _only(kind: type, value: object) -> bool:
    return isinstance(value, list) and set(map(type, value)) <= {kind}


FORMS: Mapping[str, Callable[[Any], bool]] = {  # by the type of a field of `Answer`
    "Id": lambda value: type(value) in (str, int),
    "int": lambda value: type(value) is int,
    "str": lambda value: type(value) is str,
    "str | None": lambda value: value is None or type(value) is str,
    "list[int]": lambda value: _only(int, value),
    "list[str]": lambda value: _only(str, value),
    "dict[str, list[int]]": lambda value: (
        isinstance(value, dict) and all(_only(int, ids) for ids in value.values())
    ),
}


def answer_of(row: Any, where: str) -> Answer:
    """Of a row as JSON holds it. ParameterError names `where` it is, and what is wrong with it."""
    try:
        answer = Answer(**row)
        values = {f.name: (str(f.type), getattr(answer, f.name)) for f in fields(Answer)}
        if wrong := [name for name, (kind, value) in values.items() if not FORMS[kind](value)]:
            raise ValueError(f"its {wrong[0]} must be {values[wrong[0]][0]}")
        if len(answer.pieces) != len(answer.token_ids):
            raise ValueError(f"{len(answer.pieces)} pieces of {len(answer.token_ids)} token_ids")
        texts = [value for _, value in values.values() if isinstance(value, str)]
        names = [*answer.aligned_context_ids, *answer.base_context_ids]
        "".join(texts + names + answer.pieces).encode()  # ValueError at half a character
    except (TypeError, ValueError) as error:
        raise _damaged(where, error) from None
    return answer


def _damaged(where: str, error: Exception) -> ParameterError:
    return ParameterError(
        f"{where} is no answer of a run: {error}; put it back as it was, or remove the file to "
        "have it made again"
    )


def write_answers(path: Path, answers: Iterable[Answer]) -> None:
    """The file is whole, or as it was."""
    names = [f.name for f in fields(Answer)]
    with replacing(path) as file:
        for answer in answers:
            row = {name: getattr(answer, name) for name in names}
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def read_answers(path: Path) -> list[Answer]:
    """ParameterError names the line that is no answer."""
    return list(_each(path))


def told(path: Path, keys: Sequence[Key], tokens: Path) -> Iterator[Answer]:
    """The answers of these keys, of which `tokens` has the rows. The file may have others too, but
    these in this order: ParameterError where one is not found."""
    left = deque(keys)
    for answer in _each(path):
        if left and key(answer) == left[0]:
            left.popleft()
            yield answer
    if left:
        raise ParameterError(
            f"{path} lacks the answer {left[0]!r}, of which {tokens} has tokens, or has it in "
            "another place; put it back, or remove both files to have them made again"
        )


def _each(path: Path) -> Iterator[Answer]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield _parsed(line, f"{path}:{number}")
    except OSError as error:
        raise ParameterError(
            f"{path} cannot be read ({error.strerror}); put it back, or remove the tokens beside "
            "it to have both made again"
        ) from None


def _parsed(line: bytes, where: str) -> Answer:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _damaged(where, error) from None
    return answer_of(row, where)
