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
        if os.getpid() != self._process:
            raise UrialError(
                "this engine was opened in another process, and its threads stayed there; "
                "open one in each process"
            )
        with self._lock:
            if self._closed:
                raise UrialError("this engine is closed; open another one")
            yield

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
            while todo:
                self._step_for(todo[-1])
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
            while request.events or not request.finished:
                while request.events:
                    yield request.events.popleft()
                if not request.finished:
                    self._step_for(request)
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

    def close(self, free: Callable[[], None]) -> None:
        """Call `free` when nobody works, once."""
        with self._lock:
            if not self._closed:
                self._closed = True
                free()

    def _step_for(self, request: Request) -> None:
        with self.exclusive():
            if not request.finished:  # another caller's step may have finished it
                with _interrupts_held_back():
                    self._scheduler.step()


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C is raised at the end. A second one strikes at once.

    Where another handler than Python's own is set it stays: whoever set it knows better. Threads
    other than the main one never see Ctrl-C.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    pressed: list[int] = []

    def press(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, press)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if pressed:
        raise KeyboardInterrupt
