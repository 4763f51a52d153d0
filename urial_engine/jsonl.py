"""JSON Lines for long runs: input rows come in checked, result rows go out as each is finished.

A run that is killed at any point goes on where it ended. Beside the results OUT lies OUT.run.json
with everything that they depend on, so that rows of two different runs never end up in one file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .errors import ParameterError
from .json_values import Json

Id = str | int


@dataclass(frozen=True, slots=True)
class Row:
    """One input row. `where` is its file:line, for errors; the id is the line number by default."""

    id: Id
    fields: Json
    where: str

    def text(self, name: str) -> str:
        value = self.fields.get(name)
        if not isinstance(value, str):
            raise ParameterError(f"{self.where}: {name} must be a text, not {_brief(value)}")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ParameterError(f"{self.where}: {name} is not valid Unicode: {error}") from None
        return value

    def token_ids(self, name: str) -> list[int]:
        value = self.fields.get(name)
        if not isinstance(value, list) or not all(type(i) is int and i >= 0 for i in value):
            raise ParameterError(f"{self.where}: {name} must be a list of token ids")
        return value

    def one_of(self, *names: str) -> str:
        """Which of these fields the row has: exactly one."""
        found = [name for name in names if name in self.fields]
        if len(found) != 1:
            has = f"it has {' and '.join(found)}" if found else f"it has {', '.join(self.fields)}"
            raise ParameterError(
                f"{self.where}: exactly one of {', '.join(names)} is needed; {has}"
            )
        return found[0]


def read_rows(path: Path) -> list[Row]:
    """All rows of an input file; blank lines are passed over. `ParameterError` names file:line."""
    rows: dict[Id, Row] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            row = _read_row(line.removeprefix(b"\xef\xbb\xbf"), number, f"{path}:{number}")
            if row.id in rows:
                raise ParameterError(
                    f"{row.where}: the id {row.id!r} is that of {rows[row.id].where} too; "
                    "ids tell a resumed run what is finished, so each must be its own"
                )
            rows[row.id] = row
    return list(rows.values())


def _read_row(line: bytes, number: int, where: str) -> Row:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ParameterError(f"{where}: not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ParameterError(f"{where}: a row must be a JSON object, not {_brief(fields)}")
    given = fields.get("id", number)
    if type(given) not in (str, int):
        raise ParameterError(f"{where}: id must be a text or a whole number, not {_brief(given)}")
    return Row(given, fields, where)


class Results:
    """The result file of a run, open for more rows. One process at a time can have it open.

    finished: the ids of the rows that it holds.
    note: what a person should know about its repair, or None.
    """

    def __init__(self, path: Path, parameters: Json | None, expected: Mapping[Id, Json]) -> None:
        """`expected` has, for each id of the input, the fields with which its result row begins.
        `parameters`: None where the caller keeps a header of its own.

        A file of an earlier run is taken up. `ParameterError` where that run had other parameters,
        or a row in it is damaged or does not come from this input; then nothing is changed.
        """
        self.note: str | None = None
        self._file = path.open("a+b")
        try:
            lock(self._file.fileno(), path)
            self.finished, end, size = _scan(path, self._file, expected)
            if parameters is not None:
                _check_header(path, parameters, started=size > 0)
            self._repair(path, end, size)
        except BaseException:
            self._file.close()
            raise

    def write(self, row: Json) -> None:
        """Append a finished row. It is in the hands of the system when this returns."""
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _repair(self, path: Path, end: int, size: int) -> None:
        """Give a whole last row its line end, drop a half-written one."""
        if end > size:
            self._file.write(b"\n")
            self._file.flush()
        elif end < size:
            self._file.truncate(end)
            lost = f"{size - end} bytes of a half-written last row"
            self.note = f"{path}: dropped {lost}; it is computed again"


def _scan(path: Path, file: BinaryIO, expected: Mapping[Id, Json]) -> tuple[set[Id], int, int]:
    """(ids of whole rows, where these end, size of the file); the end counts a missing line end."""
    finished: set[Id] = set()
    end = size = 0
    file.seek(0)
    for number, line in enumerate(file, start=1):
        size += len(line)
        row = _whole_row(line)
        if row is None and not line.endswith(b"\n"):
            break
        where = f"{path}:{number}"
        if row is None:
            raise ParameterError(f"{where} is damaged; remove the line to have it computed again")
        finished.add(_check_row(where, row, expected, finished))
        end = size + (not line.endswith(b"\n"))
    return finished, end, size


def _whole_row(line: bytes) -> dict[str, object] | None:
    with contextlib.suppress(ValueError, RecursionError):
        row = json.loads(line)
        if isinstance(row, dict) and type(row.get("id")) in (str, int):
            return row
    return None


def _check_row(where: str, row: Json, expected: Mapping[Id, Json], finished: set[Id]) -> Id:
    key = row["id"]
    assert isinstance(key, str | int)
    if key in finished:
        raise ParameterError(f"{where}: a second row with the id {key!r}; remove one of them")
    if key not in expected:
        raise ParameterError(f"{where}: the input has no row {key!r}; give another --out")
    wanted = _plain(expected[key])
    for name, value in _differences(row, wanted):
        raise ParameterError(
            f"{where}: the row {key!r} was made from {name} = {_brief(value)}, and the input now "
            f"has {_brief(wanted.get(name))}; give another --out"
        )
    return key


def _check_header(path: Path, parameters: Json, *, started: bool) -> None:
    """Compare with the run that began the file; write the header where no row stands yet."""
    header = path.with_name(path.name + ".run.json")
    wanted = _plain(parameters)
    if not started:
        write_atomically(header, json.dumps(wanted, ensure_ascii=False, indent=1).encode() + b"\n")
        return
    try:
        given = json.loads(header.read_bytes())
    except (OSError, ValueError) as error:
        raise ParameterError(
            f"{path} holds rows, but {header} does not say with what they were made ({error}); "
            "give another --out"
        ) from None
    every = wanted | dict.fromkeys(given.keys() - wanted)
    _refuse(path, [(n, v, wanted.get(n)) for n, v in _differences(given, every)])


def settle(header: Path, parameters: Json, names: Json) -> None:
    """What a header says of a run must be what it says now; what it does not say yet is added, and
    so are the `names` by which things went when it was begun, which may be others now."""
    given: Json = {}
    if header.exists():
        try:
            given = dict(json.loads(header.read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise ParameterError(
                f"{header} does not say with what the run was made ({error}); give another --out"
            ) from None
    wanted = _plain({**parameters, **{n: v for n, v in names.items() if n not in given}})
    _refuse(header, [(n, v, wanted[n]) for n, v in _differences(given, wanted) if n in given])
    if whole := {n: v for n, v in wanted.items() if n not in given}:
        text = json.dumps({**given, **whole}, ensure_ascii=False, indent=1)
        write_atomically(header, f"{text}\n".encode())


def _refuse(path: Path, differing: list[tuple[str, object, object]]) -> None:
    if differing:
        each = (f"{name} ({_brief(then)} then, {_brief(now)} now)" for name, then, now in differing)
        raise ParameterError(
            f"{path} was begun with other parameters: {', '.join(each)}; "
            "give the same ones to continue it, or another --out"
        )


def _differences(given: Json, wanted: Json) -> Iterator[tuple[str, object]]:
    """Names of `wanted` whose value in `given` is another one, with that value."""
    for name, value in wanted.items():
        if name not in given or given[name] != value:
            yield name, given.get(name)


def _plain(fields: Json) -> dict[str, object]:
    """As it will be read back: tuples become lists."""
    plain: dict[str, object] = json.loads(json.dumps(fields))
    return plain


def lock(descriptor: int, path: Path) -> None:
    """Until the descriptor is closed. ParameterError where another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ParameterError(
            f"{path} is being written by another process; wait for it, or give another --out"
        ) from None
    except OSError:
        pass  # some network disks have no locks; there the user must see to it


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` once it is whole."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """The file is whole, or as it was."""
    with replacing(path) as file:
        file.write(data)


def _brief(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
