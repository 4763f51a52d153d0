"""Measures as a Parquet file, a row a token and context, with what the rows mean in its metadata.

Tables of rows go in, in any pieces, and the file's bytes depend on the rows and their order alone.
Tables come out, checked against what the file says of itself. Needs pyarrow (extra `analysis`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import ParameterError
from .jsonl import replacing
from .shift_data import ARRAYS, CLASSES, Context, Published, ShiftData
from .token_shift_answers import Key, key

if TYPE_CHECKING:
    import pyarrow

ABOUT = b"urial_engine"  # the key of our metadata in the Parquet file
FORMAT = 3  # of the folder
ROW_GROUP = 1 << 16  # rows that are held at a time: 16 MB with the ten likeliest of both models


class About(NamedTuple):
    """What a file of tokens says of itself, besides its FORMAT."""

    contexts: tuple[Context, ...]
    answers: list[Key]  # that the column `answer` counts; some may have no rows
    vocabulary: dict[int, str]
    top_k: int
    published: bool

    @classmethod
    def of(cls, data: ShiftData) -> About:
        top_k, published = data.base_top_ids.shape[1], data.published is not None
        answers = [key(a) for a in data.answers]
        return cls(data.contexts, answers, data.vocabulary, top_k, published)

    @classmethod
    def parse(cls, text: bytes) -> About:
        """What `json` has made; ValueError where it is anything else."""
        value = json.loads(text)
        found = value.pop("format", None) if isinstance(value, dict) else value
        if found != FORMAT:
            raise ValueError(
                f"it has format {found!r}, not {FORMAT}: another version or program has made it"
            )
        try:
            raw: Any = cls(**value)
            about: About = raw._replace(
                contexts=tuple(Context(**context) for context in raw.contexts),
                answers=[(i, sample) for i, sample in raw.answers],
                vocabulary={int(i): text for i, text in raw.vocabulary.items()},
            )
            if not about._fits():
                raise TypeError("a value has another type")
        except (AttributeError, TypeError) as error:
            raise ValueError(f"its metadata are of another form: {error}") from None
        return about

    def _fits(self) -> bool:
        texts = [*self.vocabulary.values(), *(name for c in self.contexts for name in c)]
        return (
            {type(text) for text in texts} <= {str}
            and all(type(i) in (int, str) and type(sample) is int for i, sample in self.answers)
            and (type(self.top_k), type(self.published)) == (int, bool)
            and self.top_k >= 0
        )

    def json(self) -> str:
        contexts = [c._asdict() for c in self.contexts]
        own = self._asdict() | {"contexts": contexts, "vocabulary": self.texts()}
        return json.dumps({"format": FORMAT, **own})

    def texts(self) -> dict[str, str]:
        """The vocabulary as JSON has it, in order of the ids."""
        return {str(i): self.vocabulary[i] for i in sorted(self.vocabulary)}


def arrow() -> Any:
    """The package pyarrow, or how to get it."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ParameterError(
            "files of a token shift need pyarrow: pip install 'urial-engine[analysis]'"
        ) from error
    return pyarrow


def to_table(data: ShiftData) -> pyarrow.Table:
    """A row a token and context. Names and texts stand beside their numbers; top-k are lists. `id`
    is a text whatever it was: ids 1 and "1" are never in one run, which its caller has checked. The
    table's metadata name the contexts, the answers and every token's text."""
    pa, about = arrow(), About.of(data)
    ids, contexts = [str(a.id) for a in data.answers], [c.name for c in data.contexts]
    samples = np.array([a.sample for a in data.answers], np.int32)
    columns = {name: _array(getattr(data, name)) for name in ARRAYS} | {
        "id": _texts(ids, data.answer),
        "sample": samples[data.answer],
        "context": _texts(contexts, data.context),
        "token": pa.array(data.token, pa.string()),
        "shift_class": _texts(CLASSES, data.shift_class),
    }
    if data.published is not None:
        columns |= {f"published_{n}": a for n, a in data.published._asdict().items()}
    schema = schema_of(about)
    table = pa.table({name: columns[name] for name in schema.names})
    return _encoded(table, schema).replace_schema_metadata({ABOUT: about.json()})


def schema_of(about: About) -> pyarrow.Schema:
    pa = arrow()
    text, whole, real = pa.dictionary(pa.int32(), pa.string()), pa.int32(), pa.float32()
    kinds = {f.name: whole if f.type == "I32" else real for f in fields(ShiftData)}
    columns = {"id": text, "sample": whole}
    columns |= {n: pa.list_(kinds[n]) if "_top_" in n else kinds[n] for n in ARRAYS}
    columns |= dict.fromkeys(("context", "token", "shift_class"), text)
    if about.published:
        names = [f"published_{name}" for name in Published._fields]
        columns |= dict(zip(names, (whole, real, real), strict=True))
    return pa.schema(columns)


def _texts(values: Sequence[str], index: NDArray[Any]) -> Any:
    pa = arrow()
    return pa.array(values, pa.string()).take(pa.array(index))


def _array(values: NDArray[Any]) -> Any:
    """[N] as it is; [N, k] as a list a row."""
    if values.ndim == 1:
        return values
    pa, (rows, width) = arrow(), values.shape
    ends = np.arange(rows + 1, dtype=np.int32) * width
    return pa.ListArray.from_arrays(ends, np.ascontiguousarray(values).reshape(-1))


def _encoded(table: Any, schema: Any) -> Any:
    """One piece a column, and texts numbered by where they come first: else pages would end where
    pieces do, and Parquet would meet dictionaries that have a text twice."""
    pa = arrow()
    columns = []
    for column, kind in zip(table.columns, schema.types, strict=True):
        is_text = pa.types.is_dictionary(kind)
        whole = (column.cast(pa.string()) if is_text else column).combine_chunks()
        columns.append(whole.dictionary_encode() if is_text else whole)
    return pa.table(columns, schema=schema)


def write_tokens(path: Path, about: About, tables: Iterable[Any]) -> None:
    """The file is whole, or as it was. Tables have the columns of `schema_of(about)`."""
    schema, parquet = schema_of(about), arrow().parquet
    with (
        replacing(path) as file,
        parquet.ParquetWriter(file, schema, write_page_checksum=True) as writer,
    ):
        for group in _groups(tables):
            writer.write_table(_encoded(group, schema), ROW_GROUP)
        # Not with the schema, whose metadata are written twice.
        writer.add_key_value_metadata({ABOUT: about.json()})


def _groups(tables: Iterable[Any]) -> Iterator[Any]:
    """The same rows, ROW_GROUP at a time; at the end what is left."""
    pa = arrow()
    held: list[Any] = []
    for table in tables:
        held.append(table)
        while sum(map(len, held)) >= ROW_GROUP:
            rows = pa.concat_tables(held)
            yield rows.slice(0, ROW_GROUP)
            held = [rows.slice(ROW_GROUP)]
    if any(map(len, held)):
        yield pa.concat_tables(held)


def read_about(tokens: Path) -> About:
    """ParameterError where the file is damaged, or is none of ours."""
    with _opened(tokens) as file:
        return About.parse((file.metadata.metadata or {}).get(ABOUT, b"{}"))


def read_tables(tokens: Path, about: About) -> Iterator[pyarrow.Table]:
    """Of at most ROW_GROUP rows, each checked. ParameterError where the file is damaged."""
    schema = schema_of(about)
    with _opened(tokens) as file:
        found = {field.name: field.type for field in file.schema_arrow}
        if wrong := [field.name for field in schema if found.get(field.name) != field.type]:
            raise ValueError(f"its columns {', '.join(wrong)} are missing or of another type")
        # Each thread that decodes would keep memory of its own.
        for batch in file.iter_batches(ROW_GROUP, columns=schema.names, use_threads=False):
            table = arrow().Table.from_batches([batch]).select(schema.names)
            _check(table, about)
            yield table


@contextmanager
def _opened(tokens: Path) -> Iterator[Any]:
    """The Parquet file; whatever is found wrong with it becomes an error that names it."""
    pa = arrow()
    try:
        # Buffered ahead, the whole file would be in memory.
        options = {"pre_buffer": False, "page_checksum_verification": True}
        with pa.parquet.ParquetFile(tokens, **options) as file:
            yield file
    except (pa.ArrowException, OSError, ValueError, KeyError, RecursionError) as error:
        raise ParameterError(
            f"{tokens} cannot be read: {error}; remove it to have it made again"
        ) from None


def _check(table: Any, about: About) -> None:
    """ValueError where rows are not what their file says of itself."""
    for name in table.column_names:
        column, listed = table[name].combine_chunks(), "_top_" in name
        if column.null_count or (listed and column.flatten().null_count):
            raise ValueError(f"its column {name} has rows without a value")
        if listed and (column.value_lengths().to_numpy() != about.top_k).any():
            raise ValueError(f"its column {name} has rows of other than {about.top_k} values")
    answer = table["answer"].to_numpy()
    if answer.size and not 0 <= answer.min() <= answer.max() < len(about.answers):
        raise ValueError(f"its column answer counts other than its {len(about.answers)} answers")
    names = {c.name for c in about.contexts}
    if unknown := set(table["context"].combine_chunks().dictionary.to_pylist()) - names:
        raise ValueError(f"its column context has {min(map(str, unknown))!r}, which is none of it")


def numbers(table: Any, name: str, about: About) -> NDArray[Any]:
    """[N], or [N, k] of a list column; of the context its place among all."""
    column = table[name].combine_chunks()
    if name == "context":
        names = [c.name for c in about.contexts]
        places = [names.index(text) for text in column.dictionary.to_pylist()]
        return np.asarray(np.array(places, np.int32)[column.indices.to_numpy()])
    if "_top_" not in name:
        return column.to_numpy()  # type: ignore[no-any-return]
    flat: NDArray[Any] = column.flatten().to_numpy()
    return flat.reshape(len(column), about.top_k)
