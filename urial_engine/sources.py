"""A file of queries, with or without answers, in; probes, and what was malformed, out.

Six formats are known by the fields of their rows. What a row has beyond these is passed over.

- jsonl, ours: `query`, and where it has them `answer` or `answer_token_ids`, `id`, `dataset`
- text: a query on each line
- urial, what the URIAL code writes: `instruction`, `output`, `model_input`, `dataset`, `generator`
- just-eval: the same without `model_input`; without `output` it is a file of questions
- aligntds, the data file of AlignTDS: `pure_input`, `input`, `output`
- mt-bench: `question_id`, `category`, `turns`, of which the first is the query

An answer is a text or a list of several. It is kept as it stands: a `</s>` at the end of one, as
AlignTDS has it, is for the tokenizer to read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .errors import ParameterError
from .json_values import Json
from .jsonl import Id
from .sources_json import Element, json_array, json_lines, text_lines


@dataclass(frozen=True, slots=True)
class Probe:
    """A query, and one of its answers where the file has any: `id` and `sample` name it.

    `prompt` is the exact text that the answering model read. `where` is file:line, for errors; in
    an array the number of the element, from 1, comes with it. `sample` counts the answers of one
    row from 0. A row without an id has its line's number for one, or the element's.
    """

    id: Id
    query: str
    answer: str | None
    answer_token_ids: list[int] | None
    prompt: str | None
    dataset: str | None
    generator: str | None
    sample: int
    where: str


class Skipped(NamedTuple):
    where: str
    why: str


@dataclass(frozen=True, slots=True)
class Probes:
    """What a file holds, in its order. Either all probes have an answer, or none has."""

    format: str
    probes: list[Probe]
    skipped: list[Skipped]


@dataclass(frozen=True, slots=True)
class _Format:
    """The names of a format's fields; a row that has all of `marks` is of this format."""

    marks: tuple[str, ...]
    query: str
    answer: str | None = "output"
    token_ids: str | None = None
    prompt: str | None = None
    id: str = "id"
    dataset: str = "dataset"


# The first that fits a row is its format. `dataset` is a mark of just-eval because Alpaca's rows,
# whose `input` belongs to the query, have an `instruction` too.
_FORMATS: Mapping[str, _Format] = {
    "jsonl": _Format(("query",), "query", answer="answer", token_ids="answer_token_ids"),
    "text": _Format(("query",), "query"),
    "urial": _Format(("instruction", "output", "model_input"), "instruction", prompt="model_input"),
    "just-eval": _Format(("instruction", "dataset"), "instruction"),
    "aligntds": _Format(("pure_input", "input", "output"), "pure_input", prompt="input"),
    "mt-bench": _Format(
        ("question_id", "turns"), "turns", answer=None, id="question_id", dataset="category"
    ),
}
FORMATS = ("auto", *_FORMATS)
MALFORMED = ("refuse", "skip")


def read_probes(path: Path, *, format: str = "auto", malformed: str = "refuse") -> Probes:
    """The queries of a file, and their answers.

    format: one of FORMATS. With "auto" a .jsonl file has a row on each line, a .json file the same
    or an array of rows, of the format of the first good one; any other file is text.
    malformed: "refuse" the whole file if it has a malformed row, or "skip" such rows.

    `ParameterError` names the first ten malformed rows by file:line and counts them, where they
    are refused or leave nothing; and it names a row without an answer where others have one.
    """
    _check("format", format, FORMATS)
    _check("malformed", malformed, MALFORMED)
    guessed = format == "auto" and path.suffix.lower() not in (".json", ".jsonl")
    format = "text" if guessed else format
    elements = list(_elements(path, format, guessed=guessed))
    read = _read_rows(path, elements, format)
    if read.skipped and (malformed == "refuse" or not read.probes):
        raise ParameterError(_told(path, read.skipped, len(elements)))
    if not read.probes:
        raise ParameterError(f"{path} has no queries; give one a line, or rows of JSON")
    _check_answers(read.probes)
    return read


def _check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ParameterError(f"{name} = {value!r} is not known; it is one of {', '.join(known)}")


def _elements(path: Path, format: str, *, guessed: bool) -> Iterable[Element]:
    try:
        text = path.read_bytes().decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    except OSError as error:
        raise ParameterError(f"{path} cannot be read: {error}") from error
    begin = text.strip()
    if guessed and begin.startswith("{") and _is_json(begin.splitlines()[0]):
        raise ParameterError(
            f"{path}: its first line is a JSON object; call it .jsonl, or say which format it has"
        )
    if format == "text":
        return text_lines(text)
    if path.suffix.lower() == ".jsonl" or not begin:
        return json_lines(text)
    if not begin.startswith("{"):
        return json_array(text)
    if "\n" in begin and _is_json(begin):
        raise ParameterError(
            f"{path} is one JSON object; give the array of its rows alone, or a row on each line"
        )
    return json_lines(text)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _read_rows(path: Path, elements: list[Element], format: str) -> Probes:
    forced = format != "auto"
    given = _given_ids(elements)
    seen: dict[Id, str] = {}
    probes: list[Probe] = []
    skipped: list[Skipped] = []
    for element in elements:
        where = f"{path}:{element.place}"
        try:
            fields = _object(element)
            found = _format_of(fields, format, forced)
            row_id = _id(fields, _FORMATS[found].id, element.number, given)
            if row_id in seen:
                raise ValueError(f"the id {_brief(row_id)} is that of {seen[row_id]} too")
            probes += _probes(row_id, fields, _FORMATS[found], where)
        except ValueError as error:
            skipped.append(Skipped(where, str(error)))
        else:
            format = found
            seen[row_id] = where
    return Probes(format, probes, skipped)


def _given_ids(elements: list[Element]) -> set[object]:
    """Every id that a row gives, a malformed one's too: its repair must not rename the others."""
    names = {form.id for form in _FORMATS.values()}
    values = [e.value.get(name) for e in elements if isinstance(e.value, dict) for name in names]
    return {value for value in values if type(value) in (str, int)}


def _object(element: Element) -> Json:
    if element.fault:
        raise ValueError(element.fault)
    if not isinstance(element.value, dict):
        raise ValueError(f"a row must be a JSON object, not {_brief(element.value)}")
    return element.value


def _format_of(fields: Json, format: str, forced: bool) -> str:
    """The format of a row; it must be `format`, unless that is "auto"."""
    fits = [name for name, form in _FORMATS.items() if fields.keys() >= set(form.marks)]
    if forced and format in fits:
        return format
    has = f"it has {_brief(', '.join(fields))}"
    if forced:
        raise ValueError(f"a row of {format} needs {' and '.join(_FORMATS[format].marks)}; {has}")
    if not fits:
        marks = (" and ".join(form.marks) for form in _FORMATS.values())
        known = ", or ".join(dict.fromkeys(marks))
        raise ValueError(f"a row needs {known}; {has}")
    if format not in ("auto", fits[0]):
        raise ValueError(f"a row of {fits[0]}, and those before it are of {format}; {has}")
    return fits[0]


def _id(fields: Json, name: str, number: int, given: set[object]) -> Id:
    """The row's own id, or one that no row gives, made from its number."""
    value = fields.get(name, number)
    if name not in fields:
        while value in given:
            value = f"row {value}"
    if type(value) is int and -(2**63) <= value < 2**63:
        return value
    if isinstance(value, str):
        return _text(value, name)
    raise ValueError(f"{name} must be a text or a whole number of 64 bits, not {_brief(value)}")


def _probes(row_id: Id, fields: Json, form: _Format, where: str) -> list[Probe]:
    """A probe for each of the row's answers, or one without."""
    query = fields[form.query]
    query = _texts(query, form.query)[0] if form.query == "turns" else _text(query, form.query)
    prompt = _text(fields[form.prompt], form.prompt) if form.prompt else None
    dataset, generator = _optional(fields, form.dataset), _optional(fields, "generator")
    answers: list[str | None] = [None]
    token_ids = None
    if form.token_ids and form.token_ids in fields:
        if form.answer in fields:
            raise ValueError(f"{form.answer} and {form.token_ids} say the same; give one of them")
        token_ids = _token_ids(fields[form.token_ids], form.token_ids)
    elif form.answer and form.answer in fields:
        answers = [*_texts(fields[form.answer], form.answer)]
    return [
        Probe(row_id, query, answer, token_ids, prompt, dataset, generator, sample, where)
        for sample, answer in enumerate(answers)
    ]


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text, not {_brief(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = ascii(value[error.start])
        raise ValueError(f"{name} is no valid Unicode: {half} is half a character") from None
    return value


def _texts(value: object, name: str) -> list[str]:
    """A text, or several in a list."""
    if not isinstance(value, list):
        return [_text(value, name)]
    if not value:
        raise ValueError(f"{name} is an empty list; give a text, or leave {name} out of all rows")
    return [_text(item, f"{name}[{i}]") for i, item in enumerate(value)]


def _optional(fields: Json, name: str) -> str | None:
    value = fields.get(name)
    return None if value is None else _text(value, name)


def _token_ids(value: object, name: str) -> list[int]:
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list of token ids, not {_brief(value)}")
    for i, item in enumerate(value):
        if type(item) is not int or not 0 <= item < 2**31:
            raise ValueError(f"{name}[{i}] must be a token id, not {_brief(item)}")
    return value


def _brief(value: object) -> str:
    """A value as a message can show it: of any size and depth, with any characters in it."""
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    text = json.dumps(value[:60] if isinstance(value, str) else value, ensure_ascii=False)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return text.encode("utf-8", "backslashreplace").decode()


def _told(path: Path, skipped: list[Skipped], rows: int) -> str:
    """The first ten, and how many there are."""
    shown = "".join(f"\n  {where}: {why}" for where, why in skipped[:10])
    more = f"\n  and {len(skipped) - 10} more" if len(skipped) > 10 else ""
    whole = "every row" if len(skipped) == rows else f"{len(skipped)} of {rows} rows"
    remedy = "mend them" if len(skipped) == rows else "mend them, or have malformed rows skipped"
    return f"{path}: {whole} malformed; {remedy}:{shown}{more}"


def _check_answers(probes: list[Probe]) -> None:
    lacking = [p for p in probes if p.answer is None and p.answer_token_ids is None]
    if 0 < len(lacking) < len(probes):
        raise ParameterError(
            f"{lacking[0].where}: the row {_brief(lacking[0].id)} has no answer, as {len(lacking)} "
            f"of {len(probes)} have none; give one to each row, or to none"
        )
