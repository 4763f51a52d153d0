"""A token shift as files: a row an answer in JSON Lines, a row a token and context in Parquet.

answers.jsonl is written first and may hold more answers than tokens.parquet names: what was whole
before a write stays whole, whenever that is ended. Needs pyarrow (extra `analysis`).
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import ParameterError
from .jsonl import write_atomically
from .shift_data import ARRAYS, CLASSES, Answer, Context, Id, Published, ShiftData

if TYPE_CHECKING:
    import pyarrow

ANSWERS, TOKENS, SUMMARY, VOCABULARY = (
    *("answers.jsonl", "tokens.parquet", "summary.json", "vocabulary.json"),
)
ABOUT = b"urial_engine"  # the key of our metadata in the Parquet file
FORMAT = 2  # of the folder
ROW_GROUP = 1 << 16
Key = tuple[Id, int]  # an answer's id and sample


def arrow() -> Any:
    """The package pyarrow, or how to get it."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ParameterError(
            "files of a token shift need pyarrow: pip install 'urial-engine[analysis]'"
        ) from error
    return pyarrow


def key(answer: Answer) -> Key:
    return answer.id, answer.sample


def to_table(data: ShiftData) -> pyarrow.Table:
    """A row a token and context. Names and texts stand beside their numbers; top-k are lists. The
    table's metadata name the contexts, the answers and every token's text."""
    pa = arrow()
    classes, contexts = np.array(CLASSES, object), [c.name for c in data.contexts]
    texts = {
        "id": _texts([str(a.id) for a in data.answers], data.answer),
        "context": _texts(contexts, data.context),
        "token": pa.array(data.token, pa.string()).dictionary_encode(),
        "shift_class": _texts(classes.tolist(), data.shift_class),
    }
    samples = np.array([a.sample for a in data.answers], np.int32)
    columns = {"id": texts.pop("id"), "sample": samples[data.answer]}
    columns |= {name: texts.get(name, _array(getattr(data, name))) for name in ARRAYS}
    columns |= {name: texts[name] for name in ("token", "shift_class")}
    if data.published is not None:
        columns |= {f"published_{n}": a for n, a in data.published._asdict().items()}
    about = {
        "format": FORMAT,
        "contexts": [c._asdict() for c in data.contexts],
        "answers": [key(a) for a in data.answers],
        "vocabulary": {str(i): data.vocabulary[i] for i in sorted(data.vocabulary)},
    }
    return pa.table(columns).replace_schema_metadata({ABOUT: json.dumps(about)})


def _texts(values: list[str], index: NDArray[Any]) -> Any:
    pa = arrow()
    # Encoded anew: Parquet wants each text once, and several samples have one id.
    return pa.array(values, pa.string()).take(pa.array(index)).dictionary_encode()


def _array(values: NDArray[Any]) -> Any:
    """[N] as it is; [N, k] as a list a row."""
    if values.ndim == 1:
        return values
    pa, (rows, width) = arrow(), values.shape
    ends = np.arange(rows + 1, dtype=np.int32) * width
    return pa.ListArray.from_arrays(ends, np.ascontiguousarray(values).reshape(-1))


def write_data(data: ShiftData, answers: Path, tokens: Path) -> None:
    """Both files, each whole or as it was. The second says that the first is complete."""
    rows = (json.dumps(asdict(a), ensure_ascii=False) + "\n" for a in data.answers)
    write_atomically(answers, "".join(rows).encode())
    file = io.BytesIO()
    arrow().parquet.write_table(to_table(data), file, row_group_size=ROW_GROUP)
    write_atomically(tokens, file.getvalue())


def read_keys(tokens: Path) -> list[Key]:
    """Of the answers that a file of tokens is about, in order."""
    return [(i, sample) for i, sample in _about(tokens, _schema(tokens).metadata)["answers"]]


def read_data(answers: Path, tokens: Path) -> ShiftData:
    """What `write_data` has written. ParameterError names the file that is damaged."""
    table = _reading(tokens, lambda: arrow().parquet.read_table(tokens))
    about = _about(tokens, table.schema.metadata)
    known = {key(a): a for a in read_answers(answers)}
    if lost := [k for k in map(tuple, about["answers"]) if k not in known]:
        raise ParameterError(
            f"{answers} lacks the answer {lost[0]!r}, of which {tokens} has tokens"
        )
    try:
        return ShiftData(
            answers=[known[i, sample] for i, sample in about["answers"]],
            contexts=tuple(Context(**c) for c in about["contexts"]),
            vocabulary={int(i): text for i, text in about["vocabulary"].items()},
            published=_published(table),
            context=_places(table.column("context"), [c["name"] for c in about["contexts"]]),
            **{n: _numbers(table.column(n), n) for n in ARRAYS if n != "context"},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ParameterError(f"{tokens} is not of this form: {error}") from None


def read_answers(path: Path) -> list[Answer]:
    """ParameterError names the line that is no answer."""
    answers = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                answers.append(Answer(**json.loads(line)))
            except (ValueError, TypeError, RecursionError) as error:
                raise ParameterError(f"{path}:{number} is no answer of a run: {error}") from None
    return answers


def _published(table: pyarrow.Table) -> Published | None:
    names = [f"published_{name}" for name in Published._fields]
    if names[0] not in table.column_names:
        return None
    return Published(*(table.column(name).to_numpy() for name in names))


def _numbers(column: Any, name: str) -> NDArray[Any]:
    """[N], or [N, k] of a list column."""
    kind = {f.name: f.type for f in fields(ShiftData)}[name]
    dtype = np.int32 if kind == "I32" else np.float32
    pa, whole = arrow(), column.combine_chunks()
    if pa.types.is_list(whole.type):
        flat = whole.flatten().to_numpy(zero_copy_only=False).astype(dtype, copy=False)
        return flat.reshape(len(whole), -1) if len(whole) else np.empty((0, 0), dtype)
    return whole.to_numpy(zero_copy_only=False).astype(dtype, copy=False)  # type: ignore[no-any-return]


def _places(column: Any, names: list[str]) -> NDArray[np.int32]:
    """[N] the place among the names; a reader may have numbered them anew."""
    whole = column.combine_chunks().dictionary_encode()
    places = np.array([names.index(name) for name in whole.dictionary.to_pylist()], np.int32)
    return places[whole.indices.to_numpy()] if len(whole) else np.empty(0, np.int32)


def _schema(tokens: Path) -> Any:
    return _reading(tokens, lambda: arrow().parquet.read_schema(tokens))


def _reading(tokens: Path, read: Any) -> Any:
    pa = arrow()
    try:
        return read()
    except (pa.ArrowException, ValueError) as error:
        raise ParameterError(
            f"{tokens} cannot be read as Parquet: {error}; remove it to have it made again"
        ) from None


def _about(tokens: Path, metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    about = json.loads((metadata or {}).get(ABOUT, b"{}"))
    if about.get("format") != FORMAT:
        raise ParameterError(
            f"{tokens} has format {about.get('format')}, not {FORMAT}: it was made by another "
            "version, or by another program"
        )
    return about  # type: ignore[no-any-return]


def write_folder(data: ShiftData, folder: Path, summary: Mapping[str, Any]) -> None:
    """answers.jsonl, tokens.parquet, vocabulary.json, summary.json. Makes the folder."""
    arrow()
    folder.mkdir(parents=True, exist_ok=True)
    write_tables(data, folder)
    write_json(folder / SUMMARY, summary)


def write_tables(data: ShiftData, folder: Path) -> None:
    """All but the summary."""
    write_data(data, folder / ANSWERS, folder / TOKENS)
    texts = {str(i): data.vocabulary[i] for i in sorted(data.vocabulary)}
    write_json(folder / VOCABULARY, texts)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())


def read_folder(folder: Path) -> ShiftData:
    """ParameterError where something is missing or damaged."""
    for name in (ANSWERS, TOKENS):
        if not (folder / name).is_file():
            raise ParameterError(f"{folder} holds no {name}: it is no finished run")
    return read_data(folder / ANSWERS, folder / TOKENS)
