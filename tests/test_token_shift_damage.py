"""Files of a token shift that are damaged, or of another program: the error names the file."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import rows_of, write_rows
from tests.shifts import made_shift
from urial_engine import token_shift_files as files
from urial_engine.errors import ParameterError
from urial_engine.token_shift_table import ABOUT

pyarrow = pytest.importorskip("pyarrow", reason="needs the package pyarrow")
parquet = pytest.importorskip("pyarrow.parquet", reason="needs the package pyarrow")

Change = Callable[[Any], Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files.write_tables(made_shift(5, 9, published=True), tmp_path)
    return tmp_path


def check(folder: Path, name: str, message: str) -> None:
    """Reading and joining name the file and the fault, and leave the table as it is."""
    pair = folder / "answers.jsonl", folder / "tokens.parquet"
    before = pair[1].read_bytes()
    for read in (lambda: files.read_data(*pair), lambda: files.join_files([pair], folder)):
        with pytest.raises(ParameterError, match=message) as caught:
            read()
        said = str(caught.value)
        assert str(folder / name) in said and re.search("remove|put it back", said)
    assert pair[1].read_bytes() == before
    assert sorted(path.name for path in folder.iterdir() if path.suffix[1:].isdigit()) == []


def rewrite(folder: Path, table: Change = lambda t: t, about: Change = lambda text: text) -> None:
    """As a program does that knows nothing of us, but keeps the metadata."""
    path = folder / "tokens.parquet"
    text = parquet.read_metadata(path).metadata[ABOUT]
    changed = table(parquet.read_table(path))
    parquet.write_table(changed.replace_schema_metadata({ABOUT: about(text)}), path)


def set_column(name: str, make: Change) -> Change:
    def change(table: Any) -> Any:
        column = make(table[name].combine_chunks())
        return table.set_column(table.column_names.index(name), name, column)

    return change


def set_about(**fields: object) -> Change:
    return lambda text: json.dumps({**json.loads(text), **fields})


def without(name: str) -> Change:
    return lambda text: json.dumps({n: v for n, v in json.loads(text).items() if n != name})


def test_a_file_that_was_written_anew_is_read(folder: Path) -> None:
    before = files.read_folder(folder)
    rewrite(folder)
    assert files.read_folder(folder).answers == before.answers
    whole = (folder / "vocabulary.json").read_bytes()
    files.join_files([(folder / "answers.jsonl", folder / "tokens.parquet")], folder)
    assert (folder / "vocabulary.json").read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: b"{", "cannot be read: Expecting property name"),
        (lambda _: b"\xff", "cannot be read: 'utf-8' codec"),
        (lambda _: b"[" * 100_000, "cannot be read: "),
        (lambda _: b"[1]", r"has format \[1\], not 3"),
        (lambda _: b"{}", "has format None, not 3: another version or program"),
        (set_about(format=2), "has format 2, not 3"),
        *((without(name), f"another form: .*{name}") for name in ("top_k", "answers", "contexts")),
        (set_about(more=1), "another form: .*more"),
        (set_about(top_k=-1), "another form: a value has another type"),
        (set_about(top_k=True), "another form: a value has another type"),
        (set_about(published=1), "another form: a value has another type"),
        (set_about(vocabulary=["a"]), "another form: .*items"),
        (set_about(vocabulary={"x": "a"}), "invalid literal for int"),
        (set_about(vocabulary={"1": 2}), "another form: a value has another type"),
        (set_about(answers=7), "another form: .*iterable"),
        (set_about(answers=[[1]]), "not enough values"),
        (set_about(answers=[[1.5, 0]]), "another form: a value has another type"),
        (set_about(answers=["ab"]), "another form: a value has another type"),
        (set_about(contexts=[{"name": "a"}]), "another form: .*base"),
        (set_about(contexts=[["a", "b", "c"]]), "another form: .*mapping"),
        (set_about(contexts=[{"name": 1, "base": "", "aligned": ""}]), "has another type"),
        (set_about(contexts=[]), "context has 'urial', which|context has 'zero-shot', which"),
        (set_about(top_k=3), "base_top_ids has rows of other than 3 values"),
        (set_about(answers=[[0, 0]]), "answer counts other than its 1 answers"),
    ],
)
def test_metadata(folder: Path, change: Change, message: str) -> None:
    rewrite(folder, about=change)
    check(folder, "tokens.parquet", message)


def first_null(column: Any) -> Any:
    return pyarrow.array([None, *column.to_pylist()[1:]], column.type)


def first(value: Any) -> Change:
    return lambda column: pyarrow.array([value, *column.to_pylist()[1:]], column.type)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(["kl_base_aligned"]), "columns kl_base_aligned are missing or of"),
        (lambda t: t.drop(["published_kl", "id"]), "columns id, published_kl are missing or of"),
        (lambda t: t.append_column("answer", t["answer"]), "cannot be read: .*2 times"),
        (set_column("base_rank", lambda c: c.cast("int64")), "columns base_rank are missing or of"),
        (set_column("kl_aligned_base", lambda c: c.cast("double")), "kl_aligned_base are missing"),
        (set_column("context", lambda c: c.cast("string")), "columns context are missing or of"),
        (set_column("base_top_ids", lambda c: c.flatten()[: len(c)]), "base_top_ids are missing"),
        (set_column("aligned_top_logprobs", first([1.0])), "rows of other than 4 values"),
        (set_column("aligned_top_ids", first([1, 2, None, 4])), "aligned_top_ids has rows without"),
        (set_column("base_top_ids", first_null), "base_top_ids has rows without a value"),
        (set_column("base_rank", first_null), "base_rank has rows without a value"),
        (set_column("published_kl", first_null), "published_kl has rows without a value"),
        (set_column("context", first_null), "context has rows without a value"),
        (set_column("context", first("né")), "context has 'né', which is none of it"),
        (set_column("answer", first(-1)), "answer counts other than its 5 answers"),
        (set_column("answer", first(5)), "answer counts other than its 5 answers"),
    ],
)
def test_columns(folder: Path, change: Change, message: str) -> None:
    rewrite(folder, change)
    check(folder, "tokens.parquet", message)


@pytest.mark.parametrize("size", [0, 3, 200, -1, -9, -300])
def test_a_file_that_was_cut(folder: Path, size: int) -> None:
    path = folder / "tokens.parquet"
    path.write_bytes(path.read_bytes()[:size])
    check(folder, "tokens.parquet", "cannot be read: ")
    with pytest.raises(ParameterError, match="cannot be read: "):
        files.read_keys(path)


def test_a_value_that_was_changed_on_the_disk_is_seen(folder: Path) -> None:
    """In the first page of the table's floats, which has a sum of its own."""
    path = folder / "tokens.parquet"
    about = parquet.read_metadata(path).row_group(0)
    columns = {about.column(i).path_in_schema: about.column(i) for i in range(about.num_columns)}
    column, held = columns["published_kl"], bytearray(path.read_bytes())
    held[column.dictionary_page_offset + column.total_compressed_size - 1] ^= 1
    path.write_bytes(held)
    check(folder, "tokens.parquet", "cannot be read: .*(?i:crc|checksum)")


def test_any_damage_is_a_parameter_error(folder: Path) -> None:
    path, chance = folder / "tokens.parquet", random.Random(0)
    whole, refused = path.read_bytes(), 0
    for _ in range(400):
        held = bytearray(whole)
        held[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(held)
        with suppress(ParameterError):
            files.read_folder(folder)
            refused -= 1
        refused += 1
    assert refused > 200  # others change a text or a statistic at the end of the file


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("id", 1.5, r"its id must be Id"),
        ("id", True, r"its id must be Id"),
        ("sample", "0", "its sample must be int"),
        ("query", None, "its query must be str"),
        ("text", ["a"], "its text must be str"),
        ("source", 3, "its source must be str"),
        ("dataset", 3, "its dataset must be str | None"),
        ("token_ids", None, r"its token_ids must be list\[int\]"),
        ("token_ids", [1, "2"], r"its token_ids must be list\[int\]"),
        ("token_ids", [1, 2.0], r"its token_ids must be list\[int\]"),
        ("token_ids", [1], r"\d+ pieces of 1 token_ids"),
        ("pieces", {"a": 1}, r"its pieces must be list\[str\]"),
        ("pieces", ["a"], r"1 pieces of \d+ token_ids"),
        ("aligned_context_ids", [1], r"its aligned_context_ids must be dict"),
        ("base_context_ids", {"a": [None]}, r"its base_context_ids must be dict"),
        ("text", "\ud800", "surrogates not allowed"),
        ("base_context_ids", {"\ud800": [1]}, "surrogates not allowed"),
        ("unknown", 1, "unexpected keyword argument 'unknown'"),
    ],
)
def test_a_row_of_another_form(folder: Path, field: str, value: object, message: str) -> None:
    rows = list(rows_of(folder / "answers.jsonl").values())
    rows[1][field] = value
    write_rows(folder / "answers.jsonl", *rows)
    check(folder, "answers.jsonl", f"answers.jsonl:2 is no answer of a run: .*{message}")
    with pytest.raises(ParameterError, match=f"^somewhere is no answer of a run: .*{message}"):
        files.answer_of(rows[1], "somewhere")


@pytest.mark.parametrize(
    "line", [b"", b"[1]", b"null", b'{"id": 1}', b'{"id": ', b'"\xff"', b"[" * 100_000]
)
def test_a_line_that_is_no_answer(folder: Path, line: bytes) -> None:
    path = folder / "answers.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:2], line, *lines[2:]]))
    check(folder, "answers.jsonl", "answers.jsonl:3 is no answer of a run")
    with pytest.raises(ParameterError, match=r"answers.jsonl:3 is no answer"):
        files.read_answers(path)


def test_answers_that_are_not_there(folder: Path) -> None:
    path = folder / "answers.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], *lines[4:]]))
    check(folder, "answers.jsonl", r"lacks the answer \('row 3', 0\), of which .*tokens.parquet")
    path.write_bytes(b"".join([lines[1], lines[0], *lines[2:]]))
    check(folder, "answers.jsonl", r"lacks the answer \('row 1', 0\), .* in another place")
    path.unlink()
    check(folder, "answers.jsonl", "cannot be read .No such file")
    with pytest.raises(ParameterError, match=r"holds no answers.jsonl: it is no finished run"):
        files.read_folder(folder)
    with pytest.raises(ParameterError, match=r"other.parquet cannot be read"):
        files.read_keys(folder / "other.parquet")
