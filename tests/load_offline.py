"""What a load came to goes in; the time that the engine itself takes for it comes out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from tests.load import Report
from tests.load_work import Ask
from urial_engine import Engine, SamplingParams
from urial_engine.scheduler_requests import Request


class Offline:
    """Reads on in what a load has come to, always with a full batch, as a script that has it all:
    while the load stands still, so that both are measured in the same minutes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._seen = (0, 0, 0)  # of what was answered, left and pinned
        self._requests: list[Request] = []
        self.seconds = 0.0

    def read_on(self, report: Report, *, to_the_end: bool = False) -> None:
        """As far as the batch stays full, or to the end."""
        start = time.perf_counter()
        for request in self._new(report):
            self._engine.submit(request)
            self._requests.append(request)
        while self._engine.load.waiting or to_the_end:
            if not self._engine.step():
                break
        self.seconds += time.perf_counter() - start
        assert not [request.error for request in self._requests if request.error]

    def _new(self, report: Report) -> Iterator[Request]:
        """Of those that were left so many tokens, and of what was pinned the fewest there can be:
        a server has computed that, too."""
        answered, left, pinned = self._seen
        self._seen = (len(report.answered), len(report.left), len(report.pinned))
        for ask in report.answered[answered:]:
            yield from self._of(ask)
        for ask, tokens in report.left[left:]:
            assert isinstance(ask.params, SamplingParams)
            each = -(-tokens // ask.params.n)
            params = replace(ask.params, max_tokens=max(each, 1))
            yield self._engine.generation(ask.prompt, params, ask.path)
        for text in report.pinned[pinned:]:
            ids = self._engine.tokenizer.encode(text)
            yield self._engine.generation(ids, SamplingParams(max_tokens=1), "a pin")

    def _of(self, ask: Ask) -> Iterator[Request]:
        if isinstance(ask.params, list):
            yield self._engine.scoring(ask.prompt, ask.params, 0, ask.path)
            return
        chat = isinstance(ask.prompt, str)  # its answer may end before the model does
        params = replace(ask.params, max_tokens=ask.tokens) if chat else ask.params
        yield self._engine.generation(ask.prompt, params, ask.path)
        if ask.compared:
            yield self._engine.scoring(ask.body["prompt"], list(ask.compared), 0, ask.path)
