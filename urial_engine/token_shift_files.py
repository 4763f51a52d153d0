"""A token shift as files: a row an answer in JSON Lines, a row a token and context in Parquet.

Measures, or the files of a run's parts, go in; a folder's files come out, and measures again.
answers.jsonl is written first and may hold more answers than tokens.parquet names: what was whole
before a write stays whole, whenever that is ended. Needs pyarrow (extra `analysis`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ParameterError
from .jsonl import write_atomically
from .shift_data import ARRAYS, Published, ShiftData
from .token_shift_answers import Key, answer_of, key, read_answers, told, write_answers
from .token_shift_table import (
    FORMAT,
    About,
    arrow,
    numbers,
    read_about,
    read_tables,
    schema_of,
    to_table,
    write_tokens,
)

if TYPE_CHECKING:
    import pyarrow

# Of the two modules that this one puts together:
__all__ = ["FORMAT", "Key", "answer_of", "arrow", "key", "read_answers", "to_table"]
ANSWERS, TOKENS, SUMMARY, VOCABULARY = (
    *("answers.jsonl", "tokens.parquet", "summary.json", "vocabulary.json"),
)


def write_data(data: ShiftData, answers: Path, tokens: Path) -> None:
    """Both files, each whole or as it was. The second says that the first is complete."""
    write_answers(answers, data.answers)
    write_tokens(tokens, About.of(data), [to_table(data)])


def read_keys(tokens: Path) -> list[Key]:
    """Of the answers that a file of tokens is about, in order."""
    return read_about(tokens).answers


def read_data(answers: Path, tokens: Path) -> ShiftData:
    """What `write_data` has written. ParameterError names the file that is damaged."""
    about = read_about(tokens)
    named = list(told(answers, about.answers, tokens))
    tables = [schema_of(about).empty_table(), *read_tables(tokens, about)]
    names = [f"published_{name}" for name in Published._fields] if about.published else []
    arrays = {n: np.concatenate([numbers(t, n, about) for t in tables]) for n in ARRAYS + names}
    published = Published(*(arrays.pop(name) for name in names)) if names else None
    return ShiftData(
        named, about.contexts, vocabulary=about.vocabulary, published=published, **arrays
    )


def join_files(parts: Sequence[tuple[Path, Path]], folder: Path) -> None:
    """Files of parts of one run (answers and tokens of each, in order; at least one part) become
    those that `write_tables` makes of the whole. A part's files may be the folder's own.

    Memory holds a few groups of rows, the vocabulary, and of each answer its name. ParameterError
    where a file is damaged or does not go with the first; the folder's table is then as it was.
    """
    abouts = [read_about(tokens) for _, tokens in parts]
    _check_one_run([tokens for _, tokens in parts], abouts)
    whole = abouts[0]._replace(
        answers=[k for about in abouts for k in about.answers],
        vocabulary={i: text for about in abouts for i, text in about.vocabulary.items()},
    )
    pairs = [(*files, about) for files, about in zip(parts, abouts, strict=True)]
    every = (a for path, tokens, about in pairs for a in told(path, about.answers, tokens))
    write_answers(folder / ANSWERS, every)
    write_tokens(folder / TOKENS, whole, _joined([(tokens, about) for _, tokens, about in pairs]))
    write_json(folder / VOCABULARY, whole.texts())


def _check_one_run(paths: Sequence[Path], abouts: Sequence[About]) -> None:
    held: set[Key] = set()
    first = abouts[0]
    for path, about in zip(paths, abouts, strict=True):
        if about._replace(answers=first.answers, vocabulary=first.vocabulary) != first:
            raise ParameterError(f"{path} has other contexts or columns than {paths[0]}")
        if twice := [k for k in about.answers if k in held]:
            raise ParameterError(f"{path} has the answer {twice[0]!r}, which another part has too")
        held.update(about.answers)


def _joined(parts: Sequence[tuple[Path, About]]) -> Iterator[pyarrow.Table]:
    """Rows of all the files; `answer` counts the answers of all."""
    pa, before = arrow(), 0
    for path, about in parts:
        for table in read_tables(path, about):
            place = table.column_names.index("answer")
            answer = table["answer"].to_numpy() + np.int32(before)
            yield table.set_column(place, "answer", pa.array(answer))
        before += len(about.answers)


def write_folder(data: ShiftData, folder: Path, summary: Mapping[str, Any]) -> None:
    """answers.jsonl, tokens.parquet, vocabulary.json, summary.json. Makes the folder."""
    arrow()
    folder.mkdir(parents=True, exist_ok=True)
    write_tables(data, folder)
    write_json(folder / SUMMARY, summary)


def write_tables(data: ShiftData, folder: Path) -> None:
    """All but the summary."""
    write_data(data, folder / ANSWERS, folder / TOKENS)
    write_json(folder / VOCABULARY, About.of(data).texts())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())


def read_folder(folder: Path) -> ShiftData:
    """ParameterError where something is missing or damaged."""
    for name in (ANSWERS, TOKENS):
        if not (folder / name).is_file():
            raise ParameterError(f"{folder} holds no {name}: it is no finished run")
    return read_data(folder / ANSWERS, folder / TOKENS)
