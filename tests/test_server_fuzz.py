"""Requests that nobody would write, by the hundred: all are answered; the server is as it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fuzzing import Report, answers_to, fuzz
from tests.fuzzing_bodies import GOOD, drawn
from tests.fuzzing_checks import EVENTS, JSON, Answer, Checks, Wrong
from tests.fuzzing_nasties import nasties
from tests.fuzzing_shots import Shot, request
from tests.serving import Server, metric, serving, tiny_arguments, until

EACH, SOAK = 300, 5000  # requests of each of the two rounds, all nasty ones among them
DEADLINE = 20  # seconds, of every request
# A small cache: one that is used for the first time is memory that grows.
LIMITS = ("--max-new-tokens", 32, "--max-n", 4, "--deadline", DEADLINE, "--kv-cache-gib", 0.02)
GREEDY = {"prompt": "what comes next", "max_tokens": 24, "temperature": 0}
PATH = "/v1/completions"
MIB = 1 << 20


@dataclass
class Fuzzed:
    """Two rounds, of which the first warms the server up; a plain answer before and after them; and
    meanwhile two requests of which only the beginning came."""

    server: Server
    rounds: list[Report]
    plain: list[Any]
    slow_body: list[Answer]
    slow_head: list[Answer]


@pytest.fixture(scope="module")
def each(request: pytest.FixtureRequest) -> int:
    return SOAK if request.config.getoption("--soak") else EACH


@pytest.fixture(scope="module")
def fuzzed(
    served_model: Path, tmp_path_factory: pytest.TempPathFactory, each: int
) -> Iterator[Fuzzed]:
    kept = ("--prefix-dir", tmp_path_factory.mktemp("kept"))
    with serving(*tiny_arguments(served_model), *LIMITS, *kept) as server:
        plain = [server.ask(PATH, GREEDY)[1]["choices"]]
        head = request("POST", PATH, b"", {"Content-Length": "100"})
        slow = [
            Shot("a slow body", "", PATH, ((0.0, head), (0.5, b"{"))),
            Shot("a slow head", "", PATH, ((0.0, head[:40]), (0.5, head[40:50]))),
        ]
        with ThreadPoolExecutor(2) as pool:
            late = [pool.submit(answers_to, server, one) for one in slow]
            rounds = [fuzz(server, each, seed) for seed in (1, 2)]
            plain += [server.ask(PATH, GREEDY)[1]["choices"]]
            yield Fuzzed(server, rounds, plain, *(one.result() for one in late))


def test_each_is_answered_as_the_document_says(fuzzed: Fuzzed, each: int) -> None:
    for report in fuzzed.rounds:
        print(f"\n{report.text()}")
        assert report.sent == each and not report.failures, report.text()
        assert report.slowest[0] < DEADLINE, report.text()


def test_many_get_past_the_checks_of_form(fuzzed: Fuzzed) -> None:
    every: Counter[int] = Counter()
    for route in GOOD:
        counts: Counter[int] = sum((one.statuses[route] for one in fuzzed.rounds), Counter())
        assert counts[200] >= max(0.1 * counts.total(), 1), (route, counts)
        every += counts
    assert every[200] >= 0.3 * every.total(), every


def test_the_server_is_as_it_was(fuzzed: Fuzzed, each: int) -> None:
    server, last = fuzzed.server, fuzzed.rounds[-1]
    assert server.ask("/health") == (200, b"ok")
    until(lambda: metric(server, "urial_requests_active") == 0)
    until(lambda: metric(server, 'urial_sequences_running{model="tiny"}') == 0)
    assert metric(server, 'urial_sequences_waiting{model="tiny"}') == 0
    assert fuzzed.plain[0] == fuzzed.plain[1]
    log = "".join(server.log)
    assert "Traceback" not in log and "Invalid" not in log
    before, after = last.before, last.after
    # A pool of threads and the memory of the C library still settle; a thread, a connection or a
    # body that is kept for each request would be more than that.
    assert after.threads - before.threads < 40 and after.files - before.files < 20, last.text()
    growth = 32 if each == SOAK else 160
    assert after.rss - before.rss < growth * MIB, last.text()


def test_what_does_not_come_is_not_waited_for(fuzzed: Fuzzed) -> None:
    (answer,) = fuzzed.slow_body
    assert answer.status == 408 and b"body_too_slow" in answer.body
    assert fuzzed.slow_head == []


def test_a_seed_makes_the_same_requests(fuzzed: Fuzzed) -> None:
    document = fuzzed.server.ask("/openapi.json")[1]
    one, again, other = ([shot.wire for shot in drawn(document, 400, seed)] for seed in (3, 3, 4))
    assert one == again != other and len(one) == 400
    assert [shot.wire for shot in nasties()] == [shot.wire for shot in nasties()]


@pytest.mark.parametrize(
    ("status", "kind", "body"),
    [
        (500, JSON, b'{"error": {"message": "", "type": "", "code": "", "param": null}}'),
        (418, JSON, b'{"error": {"message": "", "type": "", "code": "", "param": null}}'),
        (400, JSON, b'{"detail": "a framework\'s own"}'),
        (400, JSON, b'{"error": {"message": "", "type": "", "code": ""}}'),
        (400, "text/html", b"<h1>Bad Request</h1>"),
        (200, "text/html", b"{}"),
        (200, JSON, b'{"logprob": NaN}'),
        (200, JSON, b'{"choices": [{"index": 1, "finish_reason": "stop"}]}'),
        (200, JSON, b'{"choices": [{"index": 0, "finish_reason": null}]}'),
        (200, EVENTS, b'data: {"choices": []}\n\n'),
        (200, EVENTS, b'data: {"choices": []}\n\ndata: [DO'),
        (200, EVENTS, b'data: {"error": {}}\n\n'),
    ],
)
def test_a_wrong_answer_is_seen(fuzzed: Fuzzed, status: int, kind: str, body: bytes) -> None:
    checks = Checks(fuzzed.server.ask("/openapi.json")[1])
    shot = Shot("one", f"POST {PATH}", PATH, ())
    checks.one(shot, Answer(200, JSON, b'{"choices": [{"index": 0, "finish_reason": "stop"}]}'))
    with pytest.raises(Wrong):
        checks.one(shot, Answer(status, kind, body))
