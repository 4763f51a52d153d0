"""Requests that nobody would write: a server and a count go in, what it answered comes out.

They are drawn from the server's own OpenAPI document (schemathesis), from good bodies of which
parts are changed (`fuzzing_bodies`), and from a list of nasty ones (`fuzzing_nasties`); the same
seed makes the same. Each answer is held to the document, and to the form of errors of its API.
"""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import psutil

from tests import fuzzing_bodies, fuzzing_nasties
from tests.fuzzing_checks import Answer, Checks, Wrong
from tests.fuzzing_shots import Shot

if TYPE_CHECKING:
    from tests.serving import Server

CLIENTS = 8
PATIENCE = 60.0  # seconds without a byte, after which an answer counts as a hang
NASTY_EVERY = 500  # requests, among which the nasty ones come once


@dataclass(frozen=True)
class Process:
    """What the server's process holds."""

    rss: int  # bytes
    threads: int
    files: int

    @classmethod
    def of(cls, server: Server) -> Process:
        process = psutil.Process(server.process.pid)
        with process.oneshot():
            return cls(process.memory_info().rss, process.num_threads(), process.num_fds())


@dataclass
class Report:
    """Of one fuzz. `failures`: what is wrong, and the request that shows it."""

    before: Process
    after: Process
    sent: int = 0
    statuses: dict[str, Counter[int]] = field(default_factory=dict)  # by route
    failures: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")

    def share(self, route: str) -> float:
        """Of the route's answers, those that are 200."""
        counts = self.statuses[route]
        return counts[200] / max(counts.total(), 1)

    def text(self) -> str:
        """All of it, for people."""
        lines = [f"{self.sent} requests; slowest {self.slowest[0]:.2f} s: {self.slowest[1]}"]
        lines += [f"{self.before} -> {self.after}"]
        for route, counts in sorted(self.statuses.items()):
            each = ", ".join(f"{status} x {n}" for status, n in sorted(counts.items()))
            lines.append(f"{route}: {self.share(route):.0%} good: {each}")
        return "\n".join([*lines, f"{len(self.failures)} failures", *self.failures[:10]])


def fuzz(server: Server, count: int, seed: int) -> Report:
    """Sends so many requests, from several threads; others may use the server meanwhile.

    Adds the prompt `fuzz`, and leaves prompts of the names fuzz-0 to fuzz-3 behind.
    """
    with urlopen(f"{server.url}/openapi.json", timeout=PATIENCE) as answer:
        document = json.load(answer)
    fuzzing_bodies.prepare(server)
    before = Process.of(server)
    report = Report(before, before)
    told, checks = threading.Lock(), Checks(document)
    shots = islice(_shots(document, count, seed), count)

    def client() -> None:
        while True:
            with told:
                shot = next(shots, None)
            if shot is None:
                return
            seconds, answers, wrong = _send(server, shot, checks)
            with told:
                _note(report, server, shot, seconds, answers, wrong)

    with ThreadPoolExecutor(CLIENTS) as pool:
        for one in [pool.submit(client) for _ in range(CLIENTS)]:
            one.result()
    report.after = Process.of(server)
    return report


def _shots(document: Any, count: int, seed: int) -> Iterator[Shot]:
    """Drawn in one order whoever sends them; where one source ends, the others go on."""
    for part in range(0, count, NASTY_EVERY):
        nasty = list(fuzzing_nasties.nasties())
        rest = max(min(count - part, NASTY_EVERY) - len(nasty), 0)
        drawn = fuzzing_bodies.drawn(document, rest, seed + part)
        yield from _mixed(nasty, drawn, rest)


def _mixed(nasty: list[Shot], drawn: Iterable[Shot], rest: int) -> Iterator[Shot]:
    """The nasty ones at even distances among the others."""
    step = max(rest // max(len(nasty), 1), 1)
    others = iter(drawn)
    for shot in nasty:
        yield shot
        yield from islice(others, step)
    yield from others


def _note(
    report: Report, server: Server, shot: Shot, seconds: float, answers: list[Answer], wrong: str
) -> None:
    report.sent += 1
    counts = report.statuses.setdefault(shot.route or "no route", Counter())
    counts.update(answer.status for answer in answers)
    report.slowest = max(report.slowest, (seconds, shot.name))
    if wrong:
        report.failures.append(f"{shot.name}: {wrong}\n    {shot.repeat(server.url)}")


def _send(server: Server, shot: Shot, checks: Checks) -> tuple[float, list[Answer], str]:
    """Seconds, what was answered, and what is wrong with that ("": nothing)."""
    start, answers = time.monotonic(), list[Answer]()
    try:
        answers = answers_to(server, shot)
        checks.all_of(shot, answers)
    except (Wrong, OSError, http.client.HTTPException) as error:
        return time.monotonic() - start, answers, f"{type(error).__name__}: {error}"
    return time.monotonic() - start, answers, ""


def answers_to(server: Server, shot: Shot) -> list[Answer]:
    """What comes back for it, by the time that the server closes."""
    where = urlsplit(server.url)
    assert where.hostname and where.port
    with socket.create_connection((where.hostname, where.port), timeout=PATIENCE) as connection:
        try:
            for pause, piece in shot.pieces:
                time.sleep(pause)  # what is slow about a slow client
                connection.sendall(piece)
            if shot.then == "half-close":
                connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            if not shot.malformed:
                raise
        if shot.then == "leave":
            connection.recv(1)  # the answer has begun
            return []
        return list(_read(connection, shot))


class _Said(io.BytesIO):
    """What came, in the place of a socket: one answer after another is read from it."""

    def makefile(self, *_: Any) -> _Said:
        return self

    def close(self) -> None:
        pass


def _read(connection: socket.socket, shot: Shot) -> Iterator[Answer]:
    """Until the server closes, which each request asks for."""
    parts = list[bytes]()
    try:
        parts += iter(lambda: connection.recv(1 << 16), b"")
    except ConnectionResetError:
        if not shot.malformed:
            raise
    said: Any = _Said(b"".join(parts))
    while said.tell() < len(said.getvalue()):
        response = http.client.HTTPResponse(said, method=shot.method)
        response.begin()
        kind = response.getheader("Content-Type", "").partition(";")[0]
        yield Answer(response.status, kind, response.read())
