"""Items in; what a judge at an OpenAI-compatible address says of each, appended to a file as it
comes, out. A run that is killed loses no judgement that was finished."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UrialError
from ..json_values import Json
from ..jsonl import Id, Results, lock, write_atomically
from .judged import Item
from .verdicts import NoVerdictError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

HOPELESS = (401, 403, 404)  # every other item would get the same answer


@dataclass(frozen=True, slots=True)
class Judge:
    """Where the judge is, and how it is asked. timeout: seconds. body: fields of each request."""

    address: str
    model: str
    key: str | None = field(default=None, repr=False)
    concurrency: int = 8
    retries: int = 3
    timeout: float = 120.0
    body: Json = field(default_factory=dict)

    def ask_all(self, items: Sequence[Item], write: Callable[[Json], None]) -> None:
        """`write` gets a verdict as soon as it is there: {id, prompt, said, scores or failure}.

        UrialError where nobody is there to ask, or every request would be refused; what was
        written until then is worth keeping.
        """
        if items:
            asyncio.run(self._ask_all(items, write))

    async def _ask_all(self, items: Sequence[Item], write: Callable[[Json], None]) -> None:
        from openai import AsyncOpenAI

        waiting = iter(items)

        async def work(client: AsyncOpenAI) -> None:
            for item in waiting:  # all workers draw from the one iterator
                write({**item.begin, **await self._ask(client, item)})

        # A server that wants no key gets one that is none.
        how = {"timeout": self.timeout, "max_retries": self.retries}
        async with AsyncOpenAI(base_url=self.address, api_key=self.key or "none", **how) as client:  # type: ignore[arg-type]
            count = min(self.concurrency, len(items))
            workers = [asyncio.create_task(work(client)) for _ in range(count)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _ask(self, client: AsyncOpenAI, item: Item) -> dict[str, Any]:
        said: str | None = None
        try:
            said, reason = await self._said(client, item.prompt)
            if reason == "length":
                raise NoVerdictError("cut off", "the answer ended at its most tokens")
            if said is None or not said.strip():
                raise NoVerdictError("no text", f"an answer without text; it ended by {reason!r}")
            return {"said": said, "scores": item.read(said)}
        except NoVerdictError as error:
            return {"said": said, "failure": {"kind": error.kind, "why": str(error)}}

    async def _said(self, client: AsyncOpenAI, prompt: str) -> tuple[str | None, str]:
        """The text of the answer and why it ended; the client tries again where that can help."""
        import openai

        try:
            answer: Any = await client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": prompt}],
                extra_body=dict(self.body),
            )
            choice = answer.choices[0]  # servers differ: nothing is taken for granted
            content, reason = choice.message.content, choice.finish_reason
        except openai.APITimeoutError as error:
            raise NoVerdictError("timeout", f"no answer in {self.timeout:g} s") from error
        except openai.APIConnectionError as error:
            raise UrialError(
                f"nobody answers at {self.address} ({error.__cause__ or error}); what was judged "
                "is kept, so the same command goes on from there"
            ) from error
        except openai.APIStatusError as error:
            if error.status_code in HOPELESS:
                raise UrialError(f"{self.address} refuses all of it: {error}") from error
            raise NoVerdictError(f"HTTP {error.status_code}", str(error)) from error
        except (openai.APIError, ValueError, AttributeError, IndexError, TypeError) as error:
            raise NoVerdictError("no completion", f"no chat completion came: {error}") from error
        return content if isinstance(content, str) else None, str(reason)


def judge_into(
    path: Path,
    items: Sequence[Item],
    judge: Judge,
    made: Json,
    *,
    retry_failures: bool = False,
    show: Callable[[int], None] = lambda done: None,
    say: Callable[[str], None] = lambda note: None,
) -> dict[Id, dict[str, Any]]:
    """Verdicts of all items by id; those that `path` has are not asked for again, but failures
    with `retry_failures`. `made`: all that the verdicts depend on besides the items."""
    expected = {item.id: item.begin for item in items}
    if retry_failures:
        with Results(path, made, expected):
            pass  # a file of another run is refused before anything is removed from it
    with _without_failures(path, really=retry_failures), Results(path, made, expected) as results:
        if results.note:
            say(results.note)
        pending = [item for item in items if item.id not in results.finished]
        done = len(items) - len(pending)
        show(done)

        def write(verdict: Json) -> None:
            nonlocal done
            results.write(verdict)
            done += 1
            show(done)

        judge.ask_all(pending, write)
    rows = map(json.loads, path.read_bytes().splitlines())
    return {row["id"]: row for row in rows}


@contextmanager
def _without_failures(path: Path, *, really: bool) -> Iterator[None]:
    """Inside, they are gone from the file. Its lock is held until who works on it has the new
    file's, so that nobody goes on writing to the old one."""
    if not really:
        yield
        return
    with path.open("rb") as file:
        lock(file.fileno(), path)
        kept = [line for line in file if not _is_failure(line)]
        write_atomically(path, b"".join(kept))
        yield


def _is_failure(line: bytes) -> bool:
    with suppress(ValueError):
        row = json.loads(line)
        return isinstance(row, Mapping) and "failure" in row
    return False
