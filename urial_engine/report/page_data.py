"""A `ShiftData` and its summary go in; what the page carries of them comes out, compressed.

Two kinds of blocks: the *core*, which the page opens at once (texts, ids, classes, the summary),
and *parts*, each with all measures of some answers, for when a reader asks about a token. Numbers
in them are little-endian and unsigned, 1, 2 or 4 bytes wide, in runs that start at multiples of 4.
Letters: T tokens of all answers, W words, N rows = T × contexts, k of the top-k.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ParameterError
from ..shift_data import ShiftData
from .bootstrap import Ints
from .tokens import all_words

PART_ROWS = 8192  # about half a megabyte: opened in a few milliseconds
# A measure is a number of steps in two bytes: a thousandth of a nat, which is 0.05 % of a
# probability, or a ten-thousandth of a share. The two largest say "this or more" and "none".
NAT, SHARE = 1e-3, 1e-4
OR_MORE, NONE = 65534, 65535

Unsigned = NDArray[np.unsignedinteger]


class Column(NamedTuple):
    name: str
    values: Unsigned  # [N] or [N, k]
    step: float | None = None  # of a measure; None: whole numbers


def core(data: ShiftData, summary: Mapping[str, Any], columns: Sequence[Column]) -> bytes:
    """What the page needs before a reader asks about a token. `columns` are those of the parts."""
    _check(data)
    pieces = [piece for answer in data.answers for piece in answer.pieces]
    distinct = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    ids = np.array([i for answer in data.answers for i in answer.token_ids], np.int64)
    words = all_words(data.answers)
    by_context = [data.shift_class[data.context == c] for c in range(len(data.contexts))]
    arrays = {
        "token": _place(data, ids),  # [T]
        "piece": _smallest([distinct[piece] for piece in pieces]),  # [T]
        "class": np.concatenate(by_context).astype(np.uint8),  # [contexts · T]
        "word": _smallest(words.word),  # [W]
        "wordStart": _smallest(words.row),  # [W] its first token
    }
    header = {
        "summary": {**summary, "contexts": [_without_answers(c) for c in summary["contexts"]]},
        "contexts": [context.name for context in data.contexts],
        "answers": [
            [a.id, a.sample, a.query, a.dataset, a.source, a.finish_reason, len(a.token_ids)]
            for a in data.answers
        ],
        "ids": sorted(data.vocabulary),
        "vocabulary": [data.vocabulary[i] for i in sorted(data.vocabulary)],
        "pieces": list(distinct),
        "words": words.names,
        "arrays": [[name, array.itemsize, array.size] for name, array in arrays.items()],
        "columns": [[c.name, c.values.itemsize, _width(c), c.step] for c in columns],
        "parts": _first_answers(data).tolist(),
    }
    # ASCII: half of a surrogate pair, which a text can hold, survives as an escape only.
    text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode("ascii")
    size = np.array([len(text)], "<u4").tobytes()
    return zlib.compress(_padded(size + text) + b"".join(_bytes(a) for a in arrays.values()))


def columns(data: ShiftData, top_k: int) -> list[Column]:
    """All measures of the rows, and the `top_k` likeliest tokens of both models."""
    told: list[Column] = []
    for model in ("base", "aligned"):
        likeliest = getattr(data, f"{model}_top_ids")[:, :top_k]
        likely = getattr(data, f"{model}_top_logprobs")[:, :top_k]
        told += [
            Column(f"{model}_rank", _smallest(getattr(data, f"{model}_rank"))),
            Column(f"{model}_ties", _smallest(getattr(data, f"{model}_ties"))),
            Column(f"{model}_surprisal", _steps(-getattr(data, f"{model}_logprob"), NAT), NAT),
            Column(f"{model}_entropy", _steps(getattr(data, f"{model}_entropy"), NAT), NAT),
            Column(f"{model}_top", _place(data, likeliest)),
            Column(f"{model}_top_surprisal", _steps(-likely, NAT), NAT),
        ]
    for name in ("kl_aligned_base", "kl_base_aligned"):
        told.append(Column(name, _steps(getattr(data, name), NAT), NAT))
    if data.published:
        told += [
            Column("published_rank", _smallest(data.published.rank + 1)),  # 0: no such position
            Column("published_probability", _steps(data.published.probability, SHARE), SHARE),
            Column("published_kl", _steps(data.published.kl, NAT), NAT),
        ]
    return told


def parts(data: ShiftData, columns: Sequence[Column]) -> Iterator[bytes]:
    """The rows of some answers at a time, column after column."""
    starts = _row_starts(data)
    edges = [*starts[_first_answers(data)].tolist(), len(data.answer)]
    for begin, end in pairwise(edges):
        yield zlib.compress(b"".join(_bytes(c.values[begin:end]) for c in columns))


def _row_starts(data: ShiftData) -> Ints:
    """[answers] the first row of each."""
    sizes = np.array([len(a.token_ids) for a in data.answers], np.int64) * len(data.contexts)
    return np.cumsum(sizes) - sizes


def _first_answers(data: ShiftData) -> Ints:
    """The first answer of each part: a part ends where an answer does, at most an answer late."""
    return np.flatnonzero(np.diff(_row_starts(data) // PART_ROWS, prepend=-1))


def _check(data: ShiftData) -> None:
    """The page finds a row by counting, so the rows must stand as they should."""
    sizes = [len(a.token_ids) for a in data.answers]
    blocks = [(i, c, n) for i, n in enumerate(sizes) for c in range(len(data.contexts))]
    lengths = [n for _, _, n in blocks]
    expected: dict[str, Any] = {
        "answer": np.repeat([i for i, _, _ in blocks], lengths),
        "context": np.repeat([c for _, c, _ in blocks], lengths),
        "token_id": [t for i, _, _ in blocks for t in data.answers[i].token_ids],
    }
    for name, values in expected.items():
        if not np.array_equal(getattr(data, name), values):
            raise ParameterError(
                f"the rows' {name} is not that of {len(sizes)} answers, each with its tokens once "
                f"for each of {len(data.contexts)} contexts; keep rows by answer, context, position"
            )


def _place(data: ShiftData, ids: Ints) -> Unsigned:
    """Where token ids stand among the sorted ids of the vocabulary; shaped as they are."""
    known = np.array(sorted(data.vocabulary), np.int64)
    if missing := set(np.unique(ids).tolist()) - data.vocabulary.keys():
        raise ParameterError(f"token id {min(missing)} has no text in the vocabulary of the run")
    return _smallest(np.searchsorted(known, ids))


def _smallest(values: Ints | list[int]) -> Unsigned:
    """The same numbers, from 0, in as few bytes as hold them all."""
    array = np.asarray(values)
    top = int(array.max(initial=0))
    return array.astype(np.uint8 if top < 1 << 8 else np.uint16 if top < 1 << 16 else np.uint32)


def _steps(values: NDArray[np.floating[Any]], step: float) -> Unsigned:
    """Numbers from 0 in steps; what rounding has put below 0 counts as 0."""
    counted = np.clip(np.rint(values / np.float32(step)), 0, OR_MORE)
    return np.where(np.isnan(values), NONE, counted).astype(np.uint16)


def _width(column: Column) -> int:
    return column.values.shape[1] if column.values.ndim == 2 else 1


def _without_answers(context: Mapping[str, Any]) -> dict[str, Any]:
    """The page counts what an answer has by itself."""
    return {name: value for name, value in context.items() if name != "by_answer"}


def _bytes(array: Unsigned) -> bytes:
    return _padded(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())


def _padded(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % 4)
