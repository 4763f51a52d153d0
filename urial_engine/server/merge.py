"""Several streams go in; one comes out, with what each gives as soon as it gives it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

T = TypeVar("T")


def merged(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """Ends when all have ended, or with the first error of one. Closed early it closes them."""
    return streams[0] if len(streams) == 1 else _merged(streams)


async def _merged(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    queue: asyncio.Queue[tuple[bool, Any]] = asyncio.Queue()

    async def drain(stream: AsyncGenerator[T, None]) -> None:
        try:
            async with aclosing(stream) as items:
                async for item in items:
                    queue.put_nowait((True, item))
            queue.put_nowait((False, None))
        except Exception as error:
            queue.put_nowait((False, error))

    tasks = [asyncio.ensure_future(drain(stream)) for stream in streams]
    try:
        left = len(tasks)
        while left:
            more, given = await queue.get()
            if more:
                yield given
            elif given is not None:
                raise given
            else:
                left -= 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
