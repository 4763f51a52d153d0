"""Answers in one batch, live: questions go in, text on the screen and a speed come out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..backends.cpu import read_bandwidth

if TYPE_CHECKING:
    from ..engine import Engine
    from ..prompt import UrialPrompt
    from ..sampling import SamplingParams
    from ..scheduler_requests import Generation

REFRESH = 0.1  # seconds


@dataclass
class Speed:
    """What the steps did in which every answer had begun, so all of them only decode."""

    tokens: int = 0
    moved: float = 0  # bytes
    steps: int = 0
    seconds: float = 0

    def lines(self, engine: Engine) -> Iterator[str]:
        """For people: tokens a second, and what that is of this machine's memory."""
        if not self.steps:
            yield "Too few tokens to measure."
            return
        each, threads = self.moved / self.steps, engine.backend.threads
        rate, limit = self.moved / self.seconds, read_bandwidth(threads, round(each))
        yield (
            f"{self.tokens / self.seconds:,.0f} tokens/s: {self.tokens} tokens in {self.steps} "
            f"steps, {self.seconds:.2f} s."
        )
        yield (
            f"{rate / 1e9:.1f} GB/s: each step reads {each / 1e6:,.0f} MB of weights and "
            f"KV-cache. That is {rate / limit:.0%} of the {limit / 1e9:.1f} GB/s at which "
            f"{threads} threads read so much memory here."
        )


@dataclass
class Meter:
    """Adds up a `Speed`; `step` is called after each step."""

    engine: Engine
    requests: Sequence[Generation]
    speed: Speed = field(default_factory=Speed)
    _last: tuple[float, int, float] | None = None  # time, tokens so far, bytes of the next step

    def step(self) -> None:
        counts = [len(request.samples[0].token_ids) for request in self.requests]
        if not all(counts):
            return
        now, speed = time.perf_counter(), self.speed
        if self._last is not None:
            began, tokens, moved = self._last
            speed.seconds += now - began
            speed.tokens += sum(counts) - tokens
            speed.moved += moved
            speed.steps += 1
        self._last = (now, sum(counts), self._bytes())

    def _bytes(self) -> float:
        """Of the next step: all weights, the prefix once, and the rest of each text."""
        backend, prefix = self.engine.backend, len(self.engine.prefix_ids)
        tails = (
            len(request.ids) - prefix + len(request.samples[0].token_ids)
            for request in self.requests
            if not request.finished
        )
        a_token = backend.block_bytes / backend.block_size
        return backend.weight_bytes + (prefix + sum(tails)) * a_token


def answer_together(
    out: Console,
    engine: Engine,
    prompt: UrialPrompt,
    questions: Sequence[str],
    params: SamplingParams,
) -> Speed:
    """Print each answer when it is finished; those that are not grow below, on a terminal."""
    requests = [engine.generation(prompt.render(q), params, q) for q in questions]
    meter, view = Meter(engine, requests), View(out, engine, prompt, questions, requests)
    with view.live:

        def after_step() -> None:
            meter.step()
            view.step()

        engine.run(requests, after_step)
    return meter.speed


class View:
    """What a person sees meanwhile."""

    def __init__(
        self,
        out: Console,
        engine: Engine,
        prompt: UrialPrompt,
        questions: Sequence[str],
        requests: Sequence[Generation],
    ) -> None:
        self.live = Live(console=out, auto_refresh=False, transient=True)
        self._out, self._engine, self._prompt = out, engine, prompt
        self._growing = dict(zip(questions, requests, strict=True))
        self._drawn = 0.0

    def step(self) -> None:
        for question in [q for q, request in self._growing.items() if request.finished]:
            self._print(question, self._growing.pop(question))
        if self._out.is_terminal and time.perf_counter() - self._drawn > REFRESH:
            self.live.update(self._table(), refresh=True)
            self._drawn = time.perf_counter()

    def _print(self, question: str, request: Generation) -> None:
        cut = "" if request.samples[0].finish_reason == "stop" else " […]"
        self._out.print(Text(f"▸ {question}", style="bold cyan"))
        self._out.print(Text(f"{self._text(request)}{cut}\n"))

    def _table(self) -> Table:
        """A line for each answer: how long it is, and its end."""
        width = max(self._out.width - 10, 20)  # without the count and the gaps
        asked = width * 2 // 5
        table = Table.grid(padding=(0, 2))
        table.add_column(width=asked, style="cyan", no_wrap=True)
        table.add_column(width=4, justify="right")
        table.add_column(width=width - asked, no_wrap=True)
        for question, request in self._growing.items():
            end = " ".join(self._text(request).split())[asked - width :]
            table.add_row(question, str(len(request.samples[0].token_ids)), Text(end))
        return table

    def _text(self, request: Generation) -> str:
        ids = request.samples[0].token_ids
        return self._prompt.clean(self._engine.tokenizer.decode(ids))
