"""Answers go out: as one JSON, or as events while they are made. A client that leaves ends them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing, suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ..errors import DeviceError
from .refusal import Refusal, refusal_of

LOG = logging.getLogger(__name__)
TEXT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
DONE = b"data: [DONE]\n\n"


def to_json(value: Any) -> bytes:
    """What cannot stand in UTF-8, half of a character in a client's own text, is replaced."""
    return TEXT.encode(value).encode(errors="replace")


def json_in_parts(value: Any) -> bytes:
    """The same in small steps: while one call makes it all, no other thread does anything."""
    return "".join(TEXT.iterencode(value)).encode(errors="replace")


def event(value: Any) -> bytes:
    return b"data: %b\n\n" % to_json(value)


class Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return content if isinstance(content, bytes) else to_json(content)


class Events(Response):
    """Server-sent events: `first`, then others as they are made. `failed` gives errors a form."""

    media_type = "text/event-stream"

    def __init__(
        self,
        first: bytes,
        events: AsyncGenerator[bytes, None],
        failed: Callable[[Refusal], Mapping[str, Any]],
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first = first
        self._events = events
        self._failed = failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            with suppress(Gone):
                await until_gone(self._send_all(send), receive)

    async def _send_all(self, send: Send) -> None:
        def part(data: bytes, *, more: bool = True) -> Message:
            return {"type": "http.response.body", "body": data, "more_body": more}

        try:
            await send(part(self._first))
            async for data in self._events:
                await send(part(data))
        except Exception as error:
            await send(part(event(self._failed(told(error)))))
        await send(part(b"", more=False))


class Gone(Exception):
    """The client has left; nobody reads the answer."""


async def until_gone(work: Coroutine[Any, Any, Any], receive: Receive) -> Any:
    """The result of `work`, which is cancelled where the client leaves: then Gone."""
    task = asyncio.ensure_future(work)
    listener = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({task, listener}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Gone
    finally:
        for one in (task, listener):
            one.cancel()
        await asyncio.gather(task, listener, return_exceptions=True)


async def whole(request: Request, work: Coroutine[Any, Any, Any]) -> Response:
    """One JSON."""
    try:
        return Json(await until_gone(work, request.receive))
    except Gone:
        return Response(status_code=499)


async def stream(
    request: Request,
    events: AsyncGenerator[bytes, None],
    failed: Callable[[Refusal], Mapping[str, Any]],
) -> Response:
    """Events, the first of them made before the answer begins: what is wrong until then has a
    status of its own."""
    try:
        first = await until_gone(anext(events, b""), request.receive)
    except Gone:
        return Response(status_code=499)
    except asyncio.CancelledError:
        await events.aclose()
        raise
    return Events(first, events, failed)


def told(error: BaseException) -> Refusal:
    """What a client is told; what nobody foresaw is in the log."""
    refusal = refusal_of(error)
    if refusal.status == 500 and not isinstance(error, (Refusal, DeviceError)):  # they are logged
        LOG.error("a request failed", exc_info=error)
    return refusal


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
