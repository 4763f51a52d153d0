"""What a waiting person sees: the requests of a call go in; a progress bar comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from .scheduler_requests import Generation


@contextmanager
def progress_bar(
    requests: Sequence[Generation], *, shown: bool
) -> Iterator[Callable[[], None] | None]:
    """Yields what to call after a step, which draws how many prompts and tokens are done."""
    if not shown:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    tokens_column = TextColumn("prompts, {task.fields[tokens]} tokens")
    columns = (BarColumn(), MofNCompleteColumn(), tokens_column, TimeElapsedColumn())
    # Not on stdout: what a caller prints there stays as it is.
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(requests), tokens=0)

        def show() -> None:
            finished = sum(request.finished for request in requests)
            tokens = sum(len(s.token_ids) for request in requests for s in request.samples)
            progress.update(task, completed=finished, tokens=tokens)

        yield show
