"""Drives the scheduler for callers in several threads: requests go in and come out finished.

Whoever waits for a request makes the steps; a step advances the requests of all. One lock stands
before the scheduler and the backend, and Ctrl-C is held back until a step is over, so that no
caller ever finds them between two states.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from .errors import UrialError
from .outputs import StreamEvent
from .scheduler import Scheduler
from .scheduler_requests import Generation, Request


class Runner:
    """`exclusive` is the lock, for who calls the backend beside the scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._lock = threading.Lock()
        self._closed = False
        self._process = os.getpid()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Nobody else works meanwhile. UrialError after `close`, and in a forked process."""
        self._check_process()
        with self._lock:
            self._check_open()
            yield

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise UrialError(
                "this engine was opened in another process, and its threads stayed there; "
                "open one in each process"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise UrialError("this engine is closed; open another one")

    def run(
        self, requests: Sequence[Request], after_step: Callable[[], None] | None = None
    ) -> None:
        """Until all are finished. Then the first error among them is raised.

        Whatever else ends it, such as Ctrl-C, leaves nothing of them behind in the scheduler.
        """
        todo = list(reversed(requests))
        try:
            with self.exclusive():
                for request in requests:
                    self._scheduler.submit(request)
            with _interrupts_held_back() as holder:
                while todo:
                    holder.work(self._step_for, todo[-1])
                    while todo and todo[-1].finished:
                        todo.pop()
                    if after_step is not None:
                        after_step()
        finally:
            for request in reversed(
                todo
            ):  # in the order of the queue, where each is then the first
                self._scheduler.cancel(request)
            with self._lock:
                self._scheduler.drop_cancelled()
        for request in requests:
            if request.error is not None:
                raise request.error

    def events(self, request: Generation) -> Iterator[StreamEvent]:
        """Submits it at the first `next`. A generator that is closed early drops the request."""
        assert request.events is not None
        with self.exclusive():
            self._scheduler.submit(request)
        try:
            with _interrupts_held_back() as holder:
                while request.events or not request.finished:
                    while request.events:
                        yield request.events.popleft()
                    if not request.finished:
                        holder.work(self._step_for, request)
            if request.error is not None:
                raise request.error
        finally:
            self._scheduler.cancel(request)
            # Not waiting: a forgotten generator may be collected in the middle of a step. Then the
            # next step drops it.
            if self._lock.acquire(blocking=False):
                try:
                    self._scheduler.drop_cancelled()
                finally:
                    self._lock.release()

    def submit(self, request: Request) -> None:
        """For who makes the steps by himself, with `step`."""
        with self.exclusive():
            self._scheduler.submit(request)

    def step(self) -> bool:
        """One step for all that was submitted; False where nothing is left to do."""
        with self.exclusive():
            self._scheduler.step()
            return any(self._scheduler.load)

    def cancel(self, request: Request) -> None:
        """It ends with what it has, at the next step. Any thread, at any time."""
        self._scheduler.cancel(request)

    def close(self, free: Callable[[], None]) -> None:
        """Call `free` when nobody works, once."""
        with self._lock:
            if not self._closed:
                self._closed = True
                free()

    def _step_for(self, request: Request) -> None:
        self._check_process()
        with self._lock:
            self._check_open()
            if not request.finished:  # another caller's step may have finished it
                self._scheduler.step()


class _Holder:
    """A handler of Ctrl-C that lets a step come to its end first. A second one strikes at once.

    It stays in place for a whole call: to set a handler takes longer than a small step may.
    """

    def __init__(self) -> None:
        self.calls = 0  # that rely on it
        self._working = self._pressed = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._pressed or not self._working:
            signal.default_int_handler(number, frame)
        self._pressed = True

    def work(self, step_for: Callable[[Request], None], request: Request) -> None:
        """KeyboardInterrupt afterwards, where one was asked for meanwhile."""
        self._working = True
        try:
            step_for(request)
        finally:
            pressed, self._working, self._pressed = self._pressed, False, False
        if pressed:
            raise KeyboardInterrupt


@contextmanager
def _interrupts_held_back() -> Iterator[_Holder]:
    """While the holder that it yields works.

    Where another handler than Python's own is set it stays: whoever set it knows better. Threads
    other than the main one never see Ctrl-C.
    """
    found = signal.getsignal(signal.SIGINT) if _is_main_thread() else None
    holder = found if isinstance(found, _Holder) else _Holder()
    if found is signal.default_int_handler:
        signal.signal(signal.SIGINT, holder)
    holder.calls += 1
    try:
        yield holder
    finally:
        holder.calls -= 1
        # A forgotten generator may end in another thread, which cannot set a handler. Then this one
        # stays, and as nobody works it does what Python's own does.
        last = not holder.calls and _is_main_thread()
        if last and signal.getsignal(signal.SIGINT) is holder:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
