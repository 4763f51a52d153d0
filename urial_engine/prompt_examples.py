"""A query goes in; a prompt with examples chosen for this query comes out, in URIAL's form.

Dynamic in-context examples, at random or the nearest by embeddings, and a hint (a short summary of
what the answer will say) before each answer: arXiv 2406.17692 makes base models answer as aligned
ones with them. The choice depends on the query alone, never on its place in a run.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError, ParameterError
from .json_values import read_json
from .jsonl import Row, read_rows
from .prompt import FENCE

F32 = NDArray[np.float32]
T = TypeVar("T")
LARGEST = float(np.finfo(np.float32).max)
CHOICES = ("random", "nearest")
FILES = ("examples", "embeddings", "hints")
KEYS = (*FILES, "instruction", "k", "choose", "seed")


@dataclass(frozen=True, slots=True)
class Example:
    """One of the pool. `hint`: a short summary of the answer, where hints are used."""

    query: str
    answer: str
    hint: str | None = None


@dataclass(frozen=True, eq=False)
class ExamplePrompt:
    """A prompt form: `prompt(query)` is the instruction, `k` examples of the pool, and the query.

    `choose`: "random", or "nearest" by the cosine of `embeddings`, the most similar one last. An
    example that asks the query itself is never taken. `embeddings`: a vector for each query, of the
    pool and asked; all of one size. `hints`: one for each query that is asked; with them the
    examples show theirs. Raises `ParameterError` for what does not fit together.
    """

    urial_form: ClassVar[bool] = True  # see `prompt.in_urial_form`

    pool: tuple[Example, ...]
    k: int = 3
    choose: str = "random"
    seed: int = 0
    instruction: str = ""
    embeddings: Mapping[str, F32] | None = None
    hints: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        for name, kind in (("k", int), ("seed", int), ("choose", str), ("instruction", str)):
            if type(value := getattr(self, name)) is not kind:
                raise ParameterError(f"{name} = {value!r} must be of type {kind.__name__}")
        if self.choose not in CHOICES:
            raise ParameterError(f"choose = {self.choose!r} must be {' or '.join(CHOICES)}")
        if not 1 <= self.k <= len(self.pool):
            raise ParameterError(f"k = {self.k}: must be 1 to {len(self.pool)}, the examples given")
        _unique("the pool of examples", ((e.query.strip(), e) for e in self.pool))
        without = next((e.query for e in self.pool if e.hint is None), None)
        if self.hints is not None and without is not None:
            raise ParameterError(f"with hints each example needs one; {without!r} has none")
        if (self.embeddings is not None) != (self.choose == "nearest"):
            raise ParameterError(
                f"choose = {self.choose!r} with{'' if self.embeddings else 'out'} embeddings:"
                ' "nearest" needs them, "random" does not use them'
            )
        if self.embeddings is not None:
            _ = self._directions  # a vector that is missing is found now, not in the run

    @classmethod
    def load(cls, path: Path | str) -> ExamplePrompt:
        """From a JSON file with KEYS, of which "examples" must be there. Files stand beside it:

        `examples`: JSON Lines with query, answer and, for hints, hint. `embeddings`: .npz with
        `queries` [n] and `vectors` [n, d], or JSON Lines with query and embedding. `hints`: JSON
        Lines with query and hint.
        """
        path = Path(path)
        try:
            given = dict(read_json(path))
        except ConfigError as error:
            raise ParameterError(str(error)) from error
        if unknown := given.keys() - set(KEYS):
            raise ParameterError(
                f"{path}: unknown {', '.join(sorted(unknown))}; the keys are {', '.join(KEYS)}"
            )
        examples, embeddings, hints = (_beside(path, n, given.pop(n, None)) for n in FILES)
        if examples is None:
            raise ParameterError(f"{path}: examples is missing, the JSON Lines file of the pool")
        try:
            return cls(
                pool=tuple(map(_example, _rows(examples, "query", "answer", "hint"))),
                embeddings=None if embeddings is None else _embeddings(embeddings),
                hints=None if hints is None else _hints(hints),
                **given,  # type: ignore[arg-type]  # the constructor checks the types
            )
        except ParameterError as error:
            raise ParameterError(f"{path}: {error}") from error

    def __call__(self, query: str) -> str:
        return self.render(query)

    def render(self, query: str) -> str:
        """The whole text; it ends where the model's answer starts."""
        own = self.instruction
        text = own + "\n" * bool(own and not own.endswith("\n"))
        for e in self.examples(query):
            hint = e.hint if self.hints is not None else None
            text += _asked(e.query, hint) + _block("Answer", e.answer)
        text += _asked(query, self._hint(query))
        return text.removeprefix("" if own else "\n") + f"\n# Answer:\n{FENCE}\n"

    def examples(self, query: str) -> list[Example]:
        """The k examples for a query, in the order in which the prompt shows them."""
        if self.choose == "nearest":
            # einsum adds each row in one order, so that equal vectors are equally near.
            cosines = np.einsum("nd,d->n", self._directions, self._direction(query))
            order = np.argsort(-cosines, kind="stable").tolist()
        else:
            # Of random.Random only seeding and random() are the same in every version of Python.
            key = hashlib.sha256(f"{self.seed}\n{query}".encode(errors="surrogatepass"))
            draw = random.Random(int.from_bytes(key.digest(), "big"))
            draws = [draw.random() for _ in self.pool]
            order = sorted(range(len(draws)), key=draws.__getitem__)
        others = (self.pool[i] for i in order if self.pool[i].query.strip() != query.strip())
        chosen = list(islice(others, self.k))
        if len(chosen) < self.k:
            raise ParameterError(
                f"k = {self.k}: the pool has {len(chosen)} examples besides {query!r} itself"
            )
        return chosen[::-1] if self.choose == "nearest" else chosen

    def describe(self) -> dict[str, Any]:
        """All that the prompts depend on, for run.json; what is long by the hash of its content."""
        pool = [[getattr(e, f.name) for f in fields(e)] for e in self.pool]
        return {
            "form": "examples",
            "k": self.k,
            "choose": self.choose,
            "seed": self.seed,
            "instruction": self.instruction,
            "examples": len(pool),
            "pool": _hash(pool),
            "embeddings": None if self.embeddings is None else _hash(dict(self.embeddings)),
            "hints": None if self.hints is None else _hash(dict(self.hints)),
        }

    @cached_property
    def _directions(self) -> F32:
        """[n, d] of the pool, of length 1."""
        return np.stack([self._direction(e.query) for e in self.pool])

    def _direction(self, query: str) -> F32:
        """[d] of length 1."""
        assert self.embeddings is not None
        if query not in self.embeddings:
            raise ParameterError(f"the embeddings have none for the query {query!r}")
        vector = np.asarray(self.embeddings[query], np.float64)
        size = np.shape(self.embeddings[self.pool[0].query])
        length = np.linalg.norm(vector)
        if vector.shape != size or vector.ndim != 1 or not 0 < length < np.inf:
            raise ParameterError(
                f"the embedding of {query!r}, of shape {vector.shape} and length {length:.3g}, must"
                f" be finite, not zero, and of the shape of the pool's first, {size}"
            )
        return (vector / length).astype(np.float32)

    def _hint(self, query: str) -> str | None:
        if self.hints is None:
            return None
        if query not in self.hints:
            raise ParameterError(f"the hints have none for the query {query!r}")
        return self.hints[query]


def _block(role: str, text: str) -> str:
    return f"\n# {role}:\n{FENCE}\n{text}\n{FENCE}\n"


def _asked(query: str, hint: str | None) -> str:
    return _block("Query", query) + ("" if hint is None else _block("Summary", hint))


def _hash(value: object) -> str:
    """Of a JSON value that may hold arrays."""

    def of_array(array: F32) -> str:
        return hashlib.sha256(np.asarray(array, np.float32).tobytes()).hexdigest()

    text = json.dumps(value, sort_keys=True, default=of_array)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _beside(path: Path, name: str, file: object) -> Path | None:
    if file is not None and not isinstance(file, str):
        raise ParameterError(f"{path}: {name} = {file!r} must be the name of a file")
    return None if file is None else path.parent / file


def _rows(path: Path, *names: str) -> Iterator[Row]:
    try:
        rows = read_rows(path)
    except OSError as error:
        raise ParameterError(f"{path} cannot be read: {error}") from error
    for row in rows:
        if unknown := row.fields.keys() - {"id", *names}:
            raise ParameterError(
                f"{row.where}: unknown {', '.join(sorted(unknown))}; a row has {', '.join(names)}"
            )
        yield row


def _example(row: Row) -> Example:
    hint = None if row.fields.get("hint") is None else row.text("hint")
    return Example(row.text("query"), row.text("answer"), hint)


def _hints(path: Path) -> dict[str, str]:
    return _unique(path, ((r.text("query"), r.text("hint")) for r in _rows(path, "query", "hint")))


def _embeddings(path: Path) -> dict[str, F32]:
    if path.suffix == ".npz":
        return _unique(path, _read_npz(path))
    rows = _rows(path, "query", "embedding")
    return _unique(path, ((row.text("query"), _vector(row)) for row in rows))


def _read_npz(path: Path) -> Iterator[tuple[str, F32]]:
    try:
        with np.load(path) as arrays:
            queries, vectors = arrays["queries"], arrays["vectors"]
    except Exception as error:  # numpy raises one of many kinds
        raise ParameterError(
            f"{path} cannot be read as an .npz with arrays queries and vectors: {error}"
        ) from error
    if queries.dtype.kind != "U" or vectors.dtype.kind != "f" or queries.shape != vectors.shape[:1]:
        raise ParameterError(
            f"{path}: queries must be [n] texts and vectors [n, d] floats, not {queries.dtype}"
            f" {queries.shape} and {vectors.dtype} {vectors.shape}"
        )
    return zip(queries.tolist(), vectors.astype(np.float32), strict=True)


def _vector(row: Row) -> F32:
    value = row.fields.get("embedding")
    if not isinstance(value, list) or not all(map(_fits, value)):
        raise ParameterError(f"{row.where}: embedding must be a list of finite numbers")
    return np.array(value, np.float32)


def _fits(value: object) -> bool:
    return type(value) in (int, float) and -LARGEST <= cast(float, value) <= LARGEST


def _unique(where: object, pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
    found: dict[str, T] = {}
    for query, value in pairs:
        if query in found:
            raise ParameterError(f"{where}: the query {query!r} stands there twice; keep one")
        found[query] = value
    return found
