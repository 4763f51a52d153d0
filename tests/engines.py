"""A fixture that opens engines on the tiny model, and what tests look at in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures import TinyModel
from urial_engine.engine import Engine
from urial_engine.outputs import RequestOutput
from urial_engine.sampling import SamplingParams

PREFIX = "Be brief. " * 12  # more than one block of tokens
EIGHT = SamplingParams(max_tokens=8, ignore_eos=True)
Open = Callable[..., Engine]


@pytest.fixture
def open_engine(tiny_model: TinyModel) -> Iterator[Open]:
    """Engine(...) on the tiny model; closed in the end."""
    opened: list[Engine] = []

    def make(*, model: Path | None = None, **fields: Any) -> Engine:
        settings = {"device": "reference", "kv_cache_gib": 0.02, **fields}
        opened.append(Engine(model or tiny_model(), **settings))
        return opened[-1]

    yield make
    for engine in opened:
        engine.close()


def ids_of(output: RequestOutput, sample: int = 0) -> list[int]:
    return output.outputs[sample].token_ids


def blocks_in_use(engine: Engine) -> int:
    """Beside the pinned prefix."""
    cache = engine._scheduler._cache
    pinned = sum(len(s.blocks) for s in cache.segments() if s.pinned)
    return cache.blocks - cache.available - pinned
