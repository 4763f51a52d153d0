"""How far a run is, for a person: done, rate and time left of each of its steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .options import console, note

EVERY = 30.0  # seconds between two lines where no terminal shows a bar
Show = Callable[[str, int, int], None]  # the step, how much of it is done, how much there is


@contextmanager
def run_bar() -> Iterator[Show]:
    """Yields a function that is told how far a step is."""
    if not console(stderr=True).is_terminal:
        yield _lines()
        return
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

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, TimeRemainingColumn(), console=console(stderr=True)) as bar:

        def show(step: str, done: int, total: int) -> None:
            if step not in tasks:
                # What an earlier run has done is no part of the rate.
                tasks[step] = bar.add_task(step, total=total, completed=done)
            bar.update(tasks[step], completed=done, total=total)

        yield show


def _lines() -> Show:
    """For a log: a line now and then."""
    begun: dict[str, tuple[float, int]] = {}
    told = [time.monotonic()]

    def show(step: str, done: int, total: int) -> None:
        now = time.monotonic()
        start, before = begun.setdefault(step, (now, done))
        if now - told[0] >= EVERY:
            told[0] = now
            rate = (done - before) / max(now - start, 1e-9)
            left = f", {(total - done) / rate:,.0f} s left" if rate else ""
            note(f"{done:,} of {total:,}, {rate:,.1f}/s{left}", title=f"{step}:")

    return show
