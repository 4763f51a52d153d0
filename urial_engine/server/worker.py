"""Steps the engines in a thread of its own: requests go in from the event loop, events come out.

Whatever a client does happens in the loop, whatever a model does in the thread. Between two steps
the thread takes what has come in, and hands over what the step has brought, all at once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import anyio

from ..engine import Engine
from ..errors import DeviceError, UrialError
from ..outputs import StreamEvent
from ..scheduler_requests import Generation, Request
from .refusal import Refusal, bad, busy, too_late

LOG = logging.getLogger(__name__)
# Seconds of all streams together to the next event. Each costs the loop a twentieth of them, in
# which a step may wait for its core; so where many stream an event has several tokens.
EVENT = 0.004
FOR_WHOLE = 1 << 30  # events at once for who waits for the whole answer
RATE_WINDOW = 30.0  # seconds over which finished requests are counted


class Job:
    """A request in the worker's hands. Only the loop's thread looks at what has come of it."""

    def __init__(
        self, engine: Engine, request: Request, deadline: float | None, every: int
    ) -> None:
        self.engine = engine
        self.request = request
        self.deadline = deadline  # of time.monotonic
        self.every = every  # so many events at once, or the last of them: each wakes the loop
        self.told = -math.inf  # when it had events last, for the thread
        self.finished = False
        self.error: BaseException | None = None
        self._events: list[StreamEvent] = []
        self._news = asyncio.Event()

    def hear(self, events: list[StreamEvent], finished: bool, error: BaseException | None) -> None:
        self._events += events
        self.finished, self.error = finished, error
        self._news.set()

    async def news(self) -> list[StreamEvent]:
        """The events since the last call, at least one unless it is finished meanwhile."""
        await self._wait(lambda: bool(self._events))
        if self.deadline is not None and time.monotonic() > self.deadline and self._events:
            raise too_late()  # though its client may be too slow to have taken them all
        events, self._events = self._events, []
        return events

    async def events(self) -> AsyncIterator[list[StreamEvent]]:
        """All of them, as many at once as have come meanwhile."""
        while events := await self.news():
            yield events

    async def done(self) -> None:
        """Until it is finished. Its error is raised here, and where events are waited for."""
        await self._wait(lambda: False)

    async def _wait(self, enough: Callable[[], bool]) -> None:
        while not (self.finished or enough()):
            self._news.clear()
            if self.deadline is None:
                await self._news.wait()
                continue
            try:
                with anyio.fail_after(max(self.deadline - time.monotonic(), 0)):
                    await self._news.wait()
            except TimeoutError:
                raise too_late() from None
        if self.error is not None and not enough():
            raise self.error


class Worker:
    """Runs the requests of all clients on all engines, and refuses what is too much.

    room: how many requests may be in it at a time, those that run included.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.draining = False
        self.failed: set[Engine] = set()  # with which no step can be made any more
        self._inbox: deque[Job] = deque()
        self._jobs: list[Job] = []  # of the thread
        self._active = 0  # of the loop
        self._finished = deque[float](maxlen=4096)  # when, of the last ones
        self._idle = asyncio.Event()
        self._idle.set()
        self._wake = threading.Event()
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)
        self._thread.start()

    # In the loop

    @property
    def active(self) -> int:
        """Requests that are not finished."""
        return self._active

    @contextmanager
    def begin(
        self,
        engine: Engine,
        requests: Sequence[Request],
        deadline: float | None = None,
        *,
        every: int = 1,
        admitted: bool = False,
    ) -> Iterator[list[Job]]:
        """Their jobs, which end with the block: what is not finished then is dropped.

        Refusal where there is no room for them, now or ever; `admitted`: they are a part of what
        found room already, and count with that.
        """
        if self._closed:
            raise _ended()
        jobs = [Job(engine, request, deadline, every) for request in requests]
        with nullcontext() if admitted else self.room_for(engine, len(requests)):
            self._inbox += jobs
            self._wake.set()
            try:
                yield jobs
            finally:
                for job in reversed(jobs):  # in the queue's order, where each is then the first
                    if not job.finished:
                        engine.cancel(job.request)
                self._wake.set()

    @contextmanager
    def room_for(self, engine: Engine, count: int, *, admitted: bool = False) -> Iterator[None]:
        """For so much work, which counts as active meanwhile. Refusal as `begin` says."""
        if not admitted:
            self.check_room(engine, count)
        self._active += count
        self._idle.clear()
        try:
            yield
        finally:
            self._active -= count
            self._finished += [time.monotonic()] * count
            if not self._active:
                self._idle.set()

    async def drain(self, seconds: float) -> bool:
        """Take nothing new; until all is finished, but no longer than that. Whether it is."""
        self.draining = True
        with anyio.move_on_after(seconds):
            while self._active:  # a token shift lets go of its place and takes it again
                await self._idle.wait()
        return not self._active

    @property
    def healthy(self) -> bool:
        """Whether steps can be made, with all models."""
        return not self.failed and (self._thread.is_alive() or self._closed)

    async def close(self) -> None:
        """What is still there ends with an error."""
        self._closed = True
        self._wake.set()
        await asyncio.to_thread(self._thread.join)

    def retry_after(self, count: int) -> int:
        """In how many seconds there should be room for so many: by how fast others ended lately."""
        now = time.monotonic()
        while self._finished and self._finished[0] < now - RATE_WINDOW:
            self._finished.popleft()
        if len(self._finished) < 2:
            return 5
        each = (now - self._finished[0]) / len(self._finished)
        return min(max(round(each * (self._active + count - self.room)), 1), 60)

    def check_room(self, engine: Engine, count: int) -> None:
        """Refusal where there is none for so many requests, now or ever."""
        if engine in self.failed:
            raise Refusal(
                500, "server_error", "this model has failed; the server must be restarted"
            )
        self.check_queue(count)

    def check_queue(self, count: int = 1) -> None:
        """Refusal where there is none, whatever the model."""
        if self.draining:
            raise busy(503, "draining", "the server is about to end; ask another one", 5)
        if count > self.room:
            message = f"{count} prompts in one request; at most {self.room} fit, send fewer"
            raise bad(message, "prompt")
        if self._active + count > self.room:
            seconds = self.retry_after(count)
            message = f"{self._active} requests are waiting or running, and no more than "
            message += f"{self.room} may; try again in {seconds} s"
            raise busy(429, "queue_full", message, seconds)

    # In the thread

    def _work(self) -> None:
        while not self._closed:
            self._wake.clear()
            self._take()
            for engine in {job.engine for job in self._jobs}:
                self._step(engine)
            self._hand_over()
            if not self._jobs:
                self._wake.wait()
        self._take()
        told: list[Told] = [(job, [], True, _ended()) for job in self._jobs]
        self._loop.call_soon_threadsafe(_hear_all, told)

    def _take(self) -> None:
        while self._inbox:
            job = self._inbox.popleft()
            self._jobs.append(job)
            try:
                job.engine.submit(job.request)
            except Exception as error:  # the thread goes on, whatever one request is
                if not isinstance(error, UrialError):
                    LOG.exception("a request could not be begun")
                    error = DeviceError(f"the request could not be begun: {error!r}")
                job.request.error = error
                job.request.finish()

    def _step(self, engine: Engine) -> None:
        try:
            engine.step()
        except Exception as error:
            LOG.exception("a step failed, and with it all requests of its model")
            own = [job.request for job in self._jobs if job.engine is engine]
            own = [request for request in own if not request.finished]
            for request in own:
                request.error = DeviceError(f"a step of the model failed: {error!r}")
                engine.cancel(request)
            try:
                engine.step()  # which lets go of them
            except Exception:
                self.failed.add(engine)
                for request in own:
                    request.finish()

    def _hand_over(self) -> None:
        told: list[Told] = []
        left, now = [], time.monotonic()
        pace = EVENT * sum(job.every == 1 for job in self._jobs)
        for job in self._jobs:
            request, events = job.request, list[StreamEvent]()
            # Looked at once, and first: another thread's step (a prefix that is pinned) may finish
            # it at any time, and what it brought until then would be left behind.
            finished = request.finished
            queue = request.events if isinstance(request, Generation) else None
            due = now - job.told >= pace
            while queue and (finished or events or (due and len(queue) >= job.every)):
                events.append(queue.popleft())
            if events or finished:
                job.told = now
                told.append((job, events, finished, request.error if finished else None))
            left += [] if finished else [job]
        self._jobs = left
        if told:
            self._loop.call_soon_threadsafe(_hear_all, told)


def _ended() -> Refusal:
    return busy(503, "draining", "the server has ended", 5)


Told = tuple[Job, list[StreamEvent], bool, BaseException | None]


def _hear_all(told: list[Told]) -> None:
    for job, events, finished, error in told:
        job.hear(events, finished, error)
