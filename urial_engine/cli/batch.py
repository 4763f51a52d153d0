"""Rows in, rows out, for as long as it takes: keeps the batch full and writes what is finished.

Everything is checked before the first step. Ctrl-C, or worse, loses no row that is in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..json_values import Json
from ..jsonl import Id, Results, Row
from .options import console, note

if TYPE_CHECKING:
    from ..engine import Engine
    from ..scheduler_requests import Request

Fields = dict[str, Any]
R = TypeVar("R", bound="Request")


def run_rows(
    engine: Engine,
    rows: Sequence[Row],
    out: Path,
    parameters: Json,
    *,
    begin: Callable[[Row], Fields],
    request: Callable[[Row], R],
    end: Callable[[R], Fields | None],
    max_batch: int,
) -> None:
    """For each row that `out` does not hold yet, write begin(row) and end(request(row)) as one.

    Rows are written in the order in which they are finished; `end` gives None for one that is not.
    `parameters`: all that the results depend on besides the rows and the engine.
    """
    begun: dict[Id, Fields] = {row.id: begin(row) for row in rows}
    with Results(out, {**parameters, **engine.identity, "prefix": engine.prefix}, begun) as results:
        if results.note:
            note(results.note)
        pending = {row.id: request(row) for row in rows if row.id not in results.finished}
        new = len(pending)
        with rows_bar(len(rows)) as show:

            def write_finished() -> None:
                # Requests leave the queue in order, so those that run are the first of these.
                for key, one in list(islice(pending.items(), 2 * max_batch)):
                    if one.finished:
                        del pending[key]
                        if one.error is None and (fields := end(one)) is not None:
                            results.write({**begun[key], **fields})
                show(len(rows) - len(pending))

            show(len(results.finished))
            try:
                engine.run(list(pending.values()), write_finished)
            finally:
                write_finished()
    note(f"{out} has all {len(rows)} rows, {new} of them new", title="done:", style="bold green")


@contextmanager
def rows_bar(total: int) -> Iterator[Callable[[int], None]]:
    """Yields a function that shows how many rows are done, where a person looks on."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    where = console(stderr=True)
    columns = ("rows", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=where, transient=True, disable=not where.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)
