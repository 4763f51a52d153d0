"""A token shift as JSON Lines: a row an answer goes out, the same bits come back in.

The row holds all of the answer, so the other files of a folder are made from answers.jsonl alone.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ParameterError
from .jsonl import Row, read_rows, write_atomically
from .token_shift_result import Answer, TokenShift

ANSWERS = "answers.jsonl"
DERIVED = {"answers", "answer", "position", "token_id"}  # follow from the answers' token_ids
COLUMNS = [f.name for f in fields(TokenShift) if f.name not in DERIVED]
INTEGERS = {"base_rank", "base_ties", "base_top_ids"}


def shift_rows(shift: TokenShift) -> Iterator[dict[str, Any]]:
    """A row an answer: its `id` (its number, from 1, where it has none), texts and ids, and each
    measure as a list with an entry for each of its tokens.

    A float32 becomes the double of the same value, which JSON writes and reads exactly.
    """
    end = 0
    for number, answer in enumerate(shift.answers, start=1):
        start, end = end, end + len(answer.token_ids)
        told = {f.name: getattr(answer, f.name) for f in fields(answer) if f.name != "id"}
        own = {name: getattr(shift, name)[start:end] for name in COLUMNS}
        own = {n: v.tolist() if isinstance(v, np.ndarray) else v for n, v in own.items()}
        yield {"id": number if answer.id is None else answer.id, **told, **own}


def shift_of_rows(rows: Sequence[Row]) -> TokenShift:
    """What `shift_rows` took apart. `ParameterError` names the row that is not of that form."""
    answers = [_answer(row) for row in rows]
    lengths = [len(a.token_ids) for a in answers]
    columns = {name: [v for row in rows for v in _column(row, name)] for name in COLUMNS}
    arrays: dict[str, Any] = {n: _array(n, v) for n, v in columns.items() if n != "token"}
    return TokenShift(
        answers=answers,
        answer=np.repeat(np.arange(len(answers), dtype=np.int32), lengths),
        position=np.array([p for n in lengths for p in range(n)], np.int32),
        token_id=np.array([i for a in answers for i in a.token_ids], np.int32),
        token=columns["token"],
        **arrays,
    )


def _answer(row: Row) -> Answer:
    texts = (row.text(name) for name in ("query", "text"))
    ids = (row.token_ids(f"{name}_ids") for name in ("token", "base_context", "aligned_context"))
    reason = None if row.fields.get("finish_reason") is None else row.text("finish_reason")
    return Answer(*texts, *ids, reason, row.id)


def _column(row: Row, name: str) -> list[Any]:
    values, size = row.fields.get(name), len(row.token_ids("token_ids"))
    if not isinstance(values, list) or len(values) != size:
        raise ParameterError(f"{row.where}: {name} must be a list with {size} entries, one a token")
    return values


def _array(name: str, values: list[Any]) -> NDArray[Any]:
    """[N] or, of the top-k, [N, k]."""
    dims = 2 if "_top_" in name else 1
    try:
        none: NDArray[Any] = np.empty((0,) * dims)
        array = np.array(values or none, np.int32 if name in INTEGERS else np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise ParameterError(f"{name} of an answer has values of another kind: {error}") from None
    if array.ndim != dims:
        raise ParameterError(f"{name} of an answer: {array.ndim} dimensions, not {dims}")
    return array


def load_shift(folder: Path) -> TokenShift:
    """`TokenShift.load`."""
    return shift_of_rows(read_rows(folder / ANSWERS))


def save_shift(shift: TokenShift, folder: Path) -> None:
    """`TokenShift.save`. A run of the command line cannot go on in the folder then."""
    save_tables(shift, folder)
    (folder / f"{ANSWERS}.run.json").unlink(missing_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in shift_rows(shift))
    write_atomically(folder / ANSWERS, "".join(lines).encode())


def save_tables(shift: TokenShift, folder: Path) -> None:
    """tokens.parquet and summary.json, each whole or as it was."""
    table, file = shift.table(), io.BytesIO()
    import pyarrow.parquet as parquet

    folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, file)
    write_atomically(folder / "tokens.parquet", file.getvalue())
    summary = json.dumps(shift.summary(), indent=1, ensure_ascii=False)
    write_atomically(folder / "summary.json", f"{summary}\n".encode())
