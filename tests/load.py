"""Many clients at once: how they behave goes in; whether each was served right, and how fast."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np

from tests.load_work import BAD, Ask

MANNERS = {"whole": 40, "stream": 39, "leave": 10, "mistake": 10, "pin": 1}  # of 100
# Nobody began to answer: a connection that was refused, or closed before the first byte.
UNSENT = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)


@dataclass
class Report:
    """What came of a load. `ended`: answers that a server's end refused, cleanly."""

    clients: int
    seconds: float = 0.0
    begun: int = 0
    answered: list[Ask] = field(default_factory=list)
    left: list[tuple[Ask, int]] = field(default_factory=list)  # and tokens until then
    mistakes: Counter[int] = field(default_factory=Counter)  # by status
    pinned: list[str] = field(default_factory=list)  # texts
    full: int = 0  # told to come again
    ended: int = 0
    cut: int = 0  # of these, in the midst of the answer
    wrong: list[str] = field(default_factory=list)
    ids: Counter[str] = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)  # seconds to the first event
    gaps: list[float] = field(default_factory=list)  # and between two

    @property
    def tokens(self) -> int:
        return sum(ask.tokens for ask in self.answered) + sum(count for _, count in self.left)

    @property
    def accounted(self) -> int:
        others = self.mistakes.total() + len(self.pinned) + self.ended
        return len(self.answered) + len(self.left) + others

    def __str__(self) -> str:
        return (
            f"{self.clients} clients, {self.seconds:.0f} s: {len(self.answered)} answered, "
            f"{len(self.left)} left, {self.mistakes.total()} mistakes, {len(self.pinned)} pinned, "
            f"{self.full} times told to come again, {self.ended} refused by the server's end, "
            f"{len(self.wrong)} wrong; "
            f"{self.tokens / self.seconds:.0f} tokens/s; "
            f"ms to the first event {_places(self.first)}, between two {_places(self.gaps)}"
        )


def _places(seconds: Sequence[float]) -> str:
    """Median and 99th percentile in ms."""
    if not seconds:
        return "none"
    return ", ".join(f"p{p} {1e3 * float(np.percentile(seconds, p)):.0f}" for p in (50, 99))


def _events(data: bytearray) -> list[Any]:
    """Of a stream, those that have come to their end."""
    lines = [line[5:].strip() for line in bytes(data).split(b"\n\n")[:-1]]
    return [json.loads(line) for line in lines if line != b"[DONE]"]


class Load:
    """Clients of a server. After `stop` each ends with the request that it is at."""

    def __init__(self, url: str, work: Sequence[Ask], clients: int, seed: int) -> None:
        self._url = url
        self._work = work
        self._random = random.Random(seed)
        self._stop = asyncio.Event()
        self.report = Report(clients)
        self.ending = False  # the server may end from now on
        self._still = 0.0  # seconds that count for nobody

    def stop(self) -> None:
        self._stop.set()

    async def run(
        self, seconds: float, still: Callable[[Report], None] | None = None, parts: int = 1
    ) -> Report:
        """Until so many seconds have gone by, or `stop`. Between `parts` of it `still` is called,
        while all clients stand still."""
        report, start = self.report, self._now()
        limits = aiohttp.TCPConnector(limit=0)
        patience = aiohttp.ClientTimeout(total=300)
        async with aiohttp.ClientSession(self._url, connector=limits, timeout=patience) as session:
            clients = [asyncio.create_task(self._client(session)) for _ in range(report.clients)]
            for part in range(parts):
                if part and still:
                    began = time.perf_counter()
                    still(report)
                    self._still += time.perf_counter() - began
                await asyncio.wait(clients, timeout=seconds / parts)
            self.stop()
            await asyncio.gather(*clients)
        report.seconds = self._now() - start
        return report

    def _now(self) -> float:
        return time.perf_counter() - self._still

    async def _client(self, session: aiohttp.ClientSession) -> None:
        while not self._stop.is_set():
            (manner,) = self._random.choices([*MANNERS], [*MANNERS.values()])
            self.report.begun += 1
            try:
                await self._one(session, manner)
            except UNSENT as error:
                self._unserved(f"{manner}: {error!r}")
            except Exception as error:
                self.report.ended += 1
                self.report.wrong.append(f"{manner}: {error!r}")

    async def _one(self, session: aiohttp.ClientSession, manner: str) -> None:
        if manner in ("mistake", "pin"):
            await (self._mistake if manner == "mistake" else self._pin)(session)
            return
        ask = self._random.choice(self._work)
        path, body = ask.path, ask.body
        if manner != "whole" and path == "/v1/score":
            manner = "whole"  # it has no stream
        if manner != "whole":
            path = "/generate_stream" if path == "/generate" else path
            body = body if path == "/generate_stream" else {**body, "stream": True}
        while True:
            begun = self._now()
            async with session.post(path, json=body) as response:
                if response.status == 429:
                    self.report.full += 1
                    await response.read()
                    await asyncio.sleep(float(response.headers["Retry-After"]))
                elif response.status == 503:
                    self._unserved(await response.text())
                    return
                elif manner == "whole":
                    self._compare(ask, ask.got(self._seen(await response.json())))
                    return
                else:
                    await self._stream(ask, response, begun, leave=manner == "leave")
                    return

    async def _stream(
        self, ask: Ask, response: aiohttp.ClientResponse, begun: float, *, leave: bool
    ) -> None:
        """Of whom leaves the connection closes with the response, which is not at its end."""
        last, data = begun, bytearray()
        most = self._random.randrange(1, 12) if leave else None
        events = 0
        async for part in response.content.iter_any():
            now = self._now()
            (self.report.gaps if data else self.report.first).append(now - last)
            last = now
            data += part
            events += part.count(b"data:")
            if most is not None and events >= most:
                response.close()
                self._leave(ask, _events(data))
                return
        told = _events(data)
        if any("error" in one for one in told):
            self.report.cut += 1
            self._unserved(f"{told[-1]}")
            return
        if not data.endswith(b"\n\n" if ask.path == "/generate" else b"data: [DONE]\n\n"):
            self.report.wrong.append(f"{ask.path}: ends with {data[-99:]!r}")
        for one in told[-1:]:
            self._seen(one)
        self._compare(ask, ask.streamed(told))

    async def _pin(self, session: aiohttp.ClientSession) -> None:
        """A prompt that is another one each time: what it replaces is let go of."""
        text = f"{self._random.random()} " * 20
        what = {"json": {"text": text}}
        if await self._heard(session.put, "/v1/prompts/moving", 200, what) is not None:
            self.report.pinned.append(text)

    async def _mistake(self, session: aiohttp.ClientSession) -> None:
        path, body, wanted = self._random.choice(BAD)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        what = {"data": data, "headers": {"Content-Type": "application/json"}}
        if (status := await self._heard(session.post, path, wanted, what)) is not None:
            self.report.mistakes[status] += 1

    async def _heard(
        self, send: Callable[..., Any], path: str, wanted: int, what: dict[str, Any]
    ) -> int | None:
        """The status, once it was looked at; None where the server has ended."""
        while True:
            async with send(path, **what) as response:
                told = await response.json()
            if response.status == 503:
                self._unserved(f"{path}: {told}")
                return None
            if response.status != 429:
                break
            self.report.full += 1
            await asyncio.sleep(float(response.headers["Retry-After"]))
        if response.status != wanted or (wanted >= 400 and not told.get("error")):
            self.report.wrong.append(f"{path} {str(what)[:99]}: {response.status} {told}")
        return response.status

    def _leave(self, ask: Ask, told: list[Any]) -> None:
        tokens = None if any("error" in one for one in told) else ask.left_at(told)
        if tokens is None:
            self.report.wrong.append(f"{ask.path} {ask.body}: left at {told!r}")
        self.report.left.append((ask, tokens or 0))

    def _seen(self, answer: Any) -> Any:
        if "id" in answer:
            self.report.ids[answer["id"]] += 1
        return answer

    def _compare(self, ask: Ask, got: tuple[Any, ...]) -> None:
        self.report.answered.append(ask)
        if got != ask.wanted:
            self.report.wrong.append(f"{ask.path} {ask.body}: {got!r}, alone {ask.wanted!r}")

    def _unserved(self, what: str) -> None:
        self.report.ended += 1
        if self.ending:
            self.stop()
        else:
            self.report.wrong.append(what)
