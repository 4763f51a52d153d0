"""What the worker hands over, at the moments that are hard to meet from outside."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from tests.fixtures import TinyModel
from urial_engine.engine import Engine
from urial_engine.errors import DeviceError
from urial_engine.prompt import UrialPrompt
from urial_engine.sampling import SamplingParams
from urial_engine.server.models import Models, Served
from urial_engine.server.refusal import Refusal, refusal_of
from urial_engine.server.worker import Job, Worker

CHAT = [{"role": "user", "content": "why?"}]


def generation(engine: Engine, count: int = 3) -> Any:
    params = SamplingParams(max_tokens=count, ignore_eos=True)
    return engine.generation("abc", params, "it", stream=True)


def test_a_request_that_ends_while_it_is_looked_at_loses_nothing(tiny_model: TinyModel) -> None:
    """As where a prefix is pinned: another thread's step finishes it."""

    async def hear(engine: Engine) -> int:
        worker, request = Worker(4), generation(engine)
        engine.run([request])
        looks = iter([False])
        kind = type(request)
        request.__class__ = type(
            "Ending", (kind,), {"finished": property(lambda self: next(looks, True))}
        )
        job = Job(engine, request, None, every=1 << 30)
        worker._jobs = [job]
        for _ in range(3):
            worker._hand_over()
        heard = [event async for events in job.events() for event in events]
        await worker.close()
        return len(heard)

    with Engine(tiny_model(), threads=1) as engine:
        assert asyncio.run(hear(engine)) == 3


def test_a_model_that_fails_ends_its_requests_alone(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(worker: Worker, engine: Engine) -> BaseException | None:
        try:
            with worker.begin(engine, [generation(engine)]) as (job,):
                await job.done()
        except Exception as error:
            return error
        return None

    async def both(bad: Engine, good: Engine) -> tuple[Any, Any, Any, set[Engine]]:
        worker = Worker(4)
        monkeypatch.setattr(bad, "step", lambda: 1 / 0)
        first, other = await asyncio.gather(ask(worker, bad), ask(worker, good))
        again = await ask(worker, bad)
        await worker.close()
        return first, other, again, worker.failed

    with Engine(tiny_model(), threads=1) as bad, Engine(tiny_model(), threads=1) as good:
        first, other, again, failed = asyncio.run(both(bad, good))
        assert refusal_of(first).status == refusal_of(again).status == 500
        assert other is None and failed == {bad}


def test_deadlines_full_queues_and_the_end(tiny_model: TinyModel) -> None:
    async def refused(worker: Worker, engine: Engine, *lengths: int, **how: Any) -> int:
        requests = [generation(engine, length) for length in lengths]
        try:
            with worker.begin(engine, requests, how.get("deadline")) as (job, *_):
                if "meanwhile" in how:
                    await how["meanwhile"]()
                await job.done()
        except Refusal as refusal:
            return refusal.status
        return 200

    async def statuses(engine: Engine) -> list[int]:
        worker, found = Worker(1), list[int]()

        async def one_more() -> None:
            found.append(await refused(worker, engine, 3))

        late = time.monotonic() - 1
        found.append(await refused(worker, engine, 400, deadline=late, meanwhile=one_more))
        found.append(await refused(worker, engine, 3, 3))
        found.append(await refused(worker, engine, 3))
        found.append(await refused(worker, engine, 400, meanwhile=worker.close))
        return found

    with Engine(tiny_model(), threads=1) as engine:
        assert asyncio.run(statuses(engine)) == [429, 504, 400, 200, 503]


def test_work_that_goes_on_is_drained_to_its_end(tiny_model: TinyModel) -> None:
    """It may let go of its place and take it again at once, as a token shift does."""

    async def drained(engine: Engine) -> bool:
        worker = Worker(4)

        async def work() -> None:
            with worker.room_for(engine, 1):
                await asyncio.sleep(0.05)
            with worker.room_for(engine, 1, admitted=True):
                await asyncio.sleep(0.2)

        working = asyncio.create_task(work())
        await asyncio.sleep(0)
        ended = await worker.drain(30) and working.done()
        await working
        await worker.close()
        return ended

    with Engine(tiny_model(), threads=1) as engine:
        assert asyncio.run(drained(engine))


def test_a_request_that_cannot_be_begun_ends_alone(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(worker: Worker, engine: Engine) -> None:
        with worker.begin(engine, [generation(engine)]) as (job,):
            await job.done()

    async def twice(engine: Engine) -> BaseException:
        worker = Worker(4)
        with monkeypatch.context() as patch:
            patch.setattr(engine, "submit", lambda request: 1 / 0)
            with pytest.raises(DeviceError) as unforeseen:
                await ask(worker, engine)
        await ask(worker, engine)
        await worker.close()
        return unforeseen.value

    with Engine(tiny_model(), threads=1) as engine:
        assert "ZeroDivisionError" in str(asyncio.run(twice(engine)))


def test_when_there_should_be_room_again() -> None:
    async def told() -> list[int]:
        worker, found = Worker(4), list[int]()
        found.append(worker.retry_after(1))
        worker._finished += [time.monotonic() - 10 + i for i in range(11)]  # one a second
        for worker._active in (2, 13, 500):
            found.append(worker.retry_after(1))
        await worker.close()
        return found

    assert asyncio.run(told()) == [5, 1, 9, 60]


def test_a_prompt_is_forgotten_while_others_wait_for_it(tiny_model: TinyModel) -> None:
    async def forgotten(engines: list[Engine]) -> None:
        served = [Served(f"{i}", engine) for i, engine in enumerate(engines)]
        models = Models(served, {"default": UrialPrompt("Be good. " * 9)})
        for turns in range(5):
            await models.put(served[0], "mine", "Be short. " * 9)
            await models.unpin(served[0], "mine")
            chats = [asyncio.ensure_future(models.chat(one, "mine", CHAT)) for one in served]
            for _ in range(turns):
                await asyncio.sleep(0)
            pins = [models.pin(one, "mine") for one in served]
            work = (*chats, models.remove("mine"), *pins)
            told = await asyncio.gather(*work, return_exceptions=True)
            assert all(not isinstance(one, Exception) or isinstance(one, Refusal) for one in told)
            assert "mine" not in models.prompts
            assert not any("mine" in one.pins for one in served)

    with Engine(tiny_model(), threads=1) as one, Engine(tiny_model(folder="b"), threads=1) as two:
        asyncio.run(forgotten([one, two]))
