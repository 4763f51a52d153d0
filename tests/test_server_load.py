"""A server that many use at once: every answer is the one that it would be alone, bit for bit.

With --soak for minutes, as `make soak` runs it, and then the stated floors are asserted: a machine
that does other things meanwhile would miss them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import uvloop

from tests.load import Load, Report
from tests.load_offline import Offline
from tests.load_work import PROMPT, Ask, asks
from tests.serving import Server, metric, serving, until
from urial_engine import Engine

CLIENTS = 64
CACHE_GIB = 0.25  # for which all the work is too much, so that some of it is evicted all the time
QUEUE = 24  # too short for all clients: some are told to come again
FLOOR = 0.85  # of the engine's own throughput
FLAT = 0.03  # of the memory, over the second half
FILLING = 0.1  # and in seconds, in which parts of the cache are used for the first time


@pytest.fixture(scope="module")
def soak(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--soak"))


@pytest.fixture(scope="module")
def work(real_model: Path, soak: bool) -> list[Ask]:
    with Engine(real_model, prefix=PROMPT, kv_cache_gib=CACHE_GIB) as engine:
        return asks(engine, 96 if soak else 24, seed=1)


def arguments(model: Path, folder: Path) -> tuple[object, ...]:
    prompt = folder / "default.txt"
    prompt.write_text(PROMPT.text)
    limits = ("--max-queue", QUEUE, "--kv-cache-gib", CACHE_GIB)
    kept = ("--prompt", prompt, "--prefix-dir", folder)
    return (model, "--name", "smol", *limits, *kept)


class Memory:
    """Of a process, once a second, while the block runs and it is not stopped."""

    def __init__(self, process: int) -> None:
        self.process = psutil.Process(process)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.bytes: list[int] = []

    def _watch(self) -> None:
        while not self._over.wait(1):
            if self.process.status() != psutil.STATUS_STOPPED:
                self.bytes.append(self.process.memory_info().rss)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()


def idle(server: Server) -> None:
    """Nothing is left of all that came."""
    until(lambda: metric(server, "urial_requests_active") == 0)
    until(lambda: metric(server, 'urial_sequences_running{model="smol"}') == 0)
    assert metric(server, 'urial_sequences_waiting{model="smol"}') == 0


def test_no_answer_is_lost_doubled_or_crossed(
    real_model: Path, work: list[Ask], tmp_path: Path, soak: bool
) -> None:
    with serving(*arguments(real_model, tmp_path)) as server:
        load, memory = Load(server.url, work, CLIENTS, 1), Memory(server.process.pid)
        if soak:
            share = measured(real_model, load, memory)
        else:
            with memory:
                uvloop.run(load.run(30))
        idle(server)
        assert server.end() == 0
    report = load.report
    second = memory.bytes[len(memory.bytes) // 2 :]
    middle = sorted(second)[len(second) // 2]
    apart = max(max(second) - middle, middle - min(second))
    print(f"\n{report}; memory {middle / 1e6:.0f} MB, over the second half within ", end="")
    print(f"{100 * apart / middle:.1f} %")
    if soak:
        print(f"{share:.2f} of the throughput of the engine, which has it all at once")
    check(report)
    assert all(manner for manner in (report.answered, report.left, report.full, report.mistakes))
    assert not report.ended
    assert apart < (FLAT if soak else FILLING) * middle
    assert not soak or share >= FLOOR


def measured(model: Path, load: Load, memory: Memory) -> float:
    """Five minutes of the load in 20 parts. While it stands still, for less than a server waits for
    clients that do, the engine does the same work. The share of the engine's throughput."""
    with Engine(model, prefix=PROMPT, kv_cache_gib=CACHE_GIB) as engine:
        offline = Offline(engine)

        def still(report: Report) -> None:
            memory.process.suspend()
            try:
                offline.read_on(report)
            finally:
                memory.process.resume()

        with memory:
            report = uvloop.run(load.run(300, still, parts=20))
        offline.read_on(report, to_the_end=True)
    return offline.seconds / report.seconds


def check(report: Report) -> None:
    assert not report.wrong, report.wrong[:5]
    assert report.begun == report.accounted
    assert max(report.ids.values()) == 1


def loaded(server: Server, work: list[Ask], strike: Callable[[Load], None]) -> Report:
    """A load in whose midst something strikes, which ends it."""
    load = Load(server.url, work, CLIENTS, 2)

    async def run() -> Report:
        loading = asyncio.create_task(load.run(600))
        while len(load.report.answered) < 10 and not loading.done():
            await asyncio.sleep(0.01)
        load.ending = True
        await asyncio.to_thread(strike, load)
        return await loading

    return uvloop.run(run())


def test_the_end_under_load(real_model: Path, work: list[Ask], tmp_path: Path) -> None:
    """All that the server has begun it finishes; the rest is refused, and can be seen to be."""
    with serving(*arguments(real_model, tmp_path), "--drain-seconds", 200) as server:

        def strike(load: Load) -> None:
            running = metric(server, "urial_requests_active")
            server.process.terminate()
            assert server.process.wait(200) == 0
            assert running > 30

        report = loaded(server, work, strike)
        print(f"\n{report}")
        check(report)
        assert report.ended and not report.cut
        assert server.log == [f"ready: {server.url}\n"]


def test_a_kill_under_load(real_model: Path, work: list[Ask], tmp_path: Path) -> None:
    """Clients see that it is gone, and the next server has the prompt from the disk."""
    with serving(*arguments(real_model, tmp_path)) as server:

        def strike(load: Load) -> None:
            server.process.kill()
            server.process.wait(60)

        report = loaded(server, work, strike)
        print(f"\n{report}")
        assert report.begun == report.accounted and report.ended
        assert all("Client" in one or "Server" in one for one in report.wrong), report.wrong
    with serving(*arguments(real_model, tmp_path)) as server:
        (one,) = (p for p in server.ask("/v1/prompts")[1]["prompts"] if p["name"] == "default")
        assert one["models"]["smol"]["source"] == "restored"
        for ask in (ask for ask in work if ask.path == "/v1/chat/completions"):
            assert ask.got(server.ask(ask.path, ask.body)[1]) == ask.wanted
