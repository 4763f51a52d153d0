"""Opens models and listens: options go in; it comes back when the server has ended."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from ..engine import Engine
from ..prompt import UrialPrompt
from .app import create_app
from .metrics import Metrics
from .models import CHAT, Models, Served
from .protocol import Protocol
from .state import Limits, State
from .worker import Worker

LOG = logging.getLogger(__name__)
TOLD = 2.0  # seconds in which clients must have taken that their requests have ended
SWITCH = 0.0005  # seconds that a thread may keep Python from the others: a step waits for it


@dataclass(frozen=True, slots=True)
class Options:
    host: str
    port: int
    limits: Limits
    max_queue: int
    drain_seconds: float
    key: str | None
    origins: Sequence[str]
    log_prompts: bool
    prefix_dir: Path | None


def on_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


Ready = Callable[[str], None]  # is told the address


async def serve(
    engines: Mapping[str, Engine],
    prompts: Mapping[str, UrialPrompt],
    pinned: Sequence[str],
    options: Options,
    ready: Ready,
) -> None:
    """Until SIGTERM or Ctrl-C. `pinned`: the prompts that are computed before anything is served;
    so is the one that chat reads on a model without a template."""
    sys.setswitchinterval(SWITCH)
    if options.log_prompts:
        logging.basicConfig(format="%(message)s")
        logging.getLogger(__package__).setLevel(logging.INFO)
    served = [Served(name, engine) for name, engine in engines.items()]
    models = Models(served, prompts, options.prefix_dir)
    room = options.max_queue + sum(engine.max_batch for engine in engines.values())
    worker = Worker(room)
    _let_steps_finish()
    metrics = Metrics()
    metrics.watch(lambda: {one.name: one.engine.load for one in served}, lambda: worker.active)
    state = State(models, worker, options.limits, metrics, options.log_prompts)
    try:
        for one in served:
            usual = models.usual_form(one)
            for name in dict.fromkeys([*pinned, *([] if usual == CHAT else [usual])]):
                await models.pin(one, name)
        gc.collect()
        gc.freeze()  # what is there stays: to look through it again would hold up all clients
        await _Server(state, options, ready).serve()
    finally:
        await worker.close()


def _let_steps_finish() -> None:
    """Where no core is free the loop waits for its turn, some milliseconds: whoever stops one
    thread of a step stops them all. So do the threads that it begins from now on."""
    if hasattr(os, "SCHED_BATCH"):  # Linux
        with suppress(OSError):  # some containers allow none to choose
            if os.sched_getscheduler(0) == os.SCHED_OTHER:  # nobody has chosen
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


class _Server(uvicorn.Server):
    """Ends in two steps: what runs is finished while nothing new is taken, then it closes."""

    def __init__(self, state: State, options: Options, ready: Ready) -> None:
        local = options.key is None and on_loopback(options.host)
        app = create_app(state, key=options.key, origins=options.origins, local=local)
        where: dict[str, Any] = {"host": options.host, "port": options.port}
        quiet: dict[str, Any] = {"log_level": "error", "lifespan": "off"}  # clients err
        # A client that is told to come again in some seconds finds its connection open.
        kinds: dict[str, Any] = {"http": Protocol, "ws": "none", "timeout_keep_alive": 75}
        super().__init__(
            uvicorn.Config(app, **where, **quiet, **kinds, timeout_graceful_shutdown=5)
        )
        self._state = state
        self._seconds = options.drain_seconds
        self._ready = ready
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        for server in self.servers if self.started else ():
            host, port = server.sockets[0].getsockname()[:2]
            self._ready(f"http://{host}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._draining is None:
            self._state.worker.draining = True
            self._draining = asyncio.get_event_loop().create_task(self._drain())
        else:  # a second time: at once
            self.should_exit = self.force_exit = True

    async def _drain(self) -> None:
        if not await self._state.worker.drain(self._seconds):
            LOG.warning("%d requests were not finished in time", self._state.worker.active)
            await self._state.worker.close()  # they are told
            await self._state.worker.drain(TOLD)
        self.should_exit = True
