"""How far a run is, for a person: done, rate and time left of each of its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .options import console


@contextmanager
def run_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Yields a function that is told the step, how much of it is done and how much there is."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Task as RichTask
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: RichTask) -> Text:
            return Text(f"{task.speed or 0:,.1f}/s", style="progress.data.speed")

    where = console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate())
    tasks: dict[str, TaskID] = {}
    with Progress(
        *columns, TimeRemainingColumn(), console=where, disable=not where.is_terminal
    ) as bar:

        def show(step: str, done: int, total: int) -> None:
            if step not in tasks:
                # What an earlier run has done is no part of the rate.
                tasks[step] = bar.add_task(step, total=total, completed=done)
            bar.update(tasks[step], completed=done, total=total)

        yield show
