"""A token shift as JSON Lines: a row an answer goes out, the same bits come back in.

The row holds all of the answer, so the other files of a folder are made from answers.jsonl alone.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import ParameterError
from .jsonl import Row, write_atomically

if TYPE_CHECKING:
    import pyarrow

ANSWERS = "answers.jsonl"
ID_LISTS = ("token_ids", "base_context_ids", "aligned_context_ids")
INTEGERS = {"base_rank", "base_ties", "base_top_ids"}


def read_columns(
    rows: Sequence[Row], measures: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What `TokenShift.rows` took apart: the fields of each answer, and each measure of all tokens.

    ParameterError names what is not of that form.
    """
    columns = {name: [v for row in rows for v in _column(row, name)] for name in measures}
    arrays = {n: v if n == "token" else _array(n, v) for n, v in columns.items()}
    return [_answer(row) for row in rows], arrays


def _answer(row: Row) -> dict[str, Any]:
    texts = {name: row.text(name) for name in ("query", "text")}
    ids = {name: row.token_ids(name) for name in ID_LISTS}
    reason = None if row.fields.get("finish_reason") is None else row.text("finish_reason")
    return {**texts, **ids, "finish_reason": reason, "id": row.id}


def _column(row: Row, name: str) -> list[Any]:
    values, size = row.fields.get(name), len(row.token_ids("token_ids"))
    if not isinstance(values, list) or len(values) != size:
        raise ParameterError(f"{row.where}: {name} must be a list with {size} entries, one a token")
    return values


def _array(name: str, values: list[Any]) -> NDArray[Any]:
    """[N] or, of the top-k, [N, k]."""
    dims = 2 if "_top_" in name else 1
    try:
        array = np.array(
            values or np.empty((0,) * dims), np.int32 if name in INTEGERS else np.float32
        )
    except (ValueError, TypeError, OverflowError) as error:
        raise ParameterError(f"{name} of an answer has values of another kind: {error}") from None
    if array.ndim != dims:
        raise ParameterError(f"{name} of an answer: {array.ndim} dimensions, not {dims}")
    return array


def write_rows(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """answers.jsonl, whole or as it was. A run of the command line cannot go on in the folder."""
    (folder / f"{ANSWERS}.run.json").unlink(missing_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(folder / ANSWERS, "".join(lines).encode())


def write_tables(folder: Path, table: pyarrow.Table, summary: Mapping[str, Any]) -> None:
    """tokens.parquet and summary.json, each whole or as it was. Makes the folder."""
    import pyarrow.parquet as parquet

    folder.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    parquet.write_table(table, file)
    write_atomically(folder / "tokens.parquet", file.getvalue())
    text = json.dumps(summary, indent=1, ensure_ascii=False)
    write_atomically(folder / "summary.json", f"{text}\n".encode())
