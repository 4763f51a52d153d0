"""The token ids of a call's prompts go in; what they all begin with stays in the engine's cache."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from ...engine import Engine
from ...engine_prefix import Prefix
from ...errors import UrialError
from ...kv_cache import common_run

LOG = logging.getLogger(__name__)
LEAST_BLOCKS = 2  # a shorter beginning is hardly constant: a BOS, a system prompt's first words


class ConstantPrefix:
    """Finds it, and keeps it until the prompts of a call have another one.

    It is pinned so that calls apart in time compute it once, whatever runs between them. Nothing
    but time depends on it: where it cannot be pinned, prompts share it while they run together.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pinned: Prefix | None = None
        self._lock = threading.RLock()  # threads may share an LLM
        self._last: Sequence[int] = ()  # a prompt that comes alone is held against this one

    def follow(self, prompts: Sequence[Sequence[int]]) -> None:
        """These run next. Keep the whole blocks that they have in common, if they are enough."""
        if not prompts:
            return
        first, *others = prompts
        run = min(common_run(first, other) for other in others or [self._last])
        self._last = first
        block, kept = self._engine.backend.block_size, self._pinned
        ids = list(first[: run - run % block])
        if len(ids) < LEAST_BLOCKS * block or ids == (kept.ids if kept else []):
            return
        with self._lock:
            self.drop()
            try:
                self._pinned = self._engine.pin(ids)
            except UrialError as error:  # one that is not about memory comes again with its prompt
                LOG.info("the prompts' common prefix of %d tokens is not kept: %s", len(ids), error)
            else:
                LOG.info("the prompts' common prefix of %d tokens is kept", len(ids))

    def drop(self) -> bool:
        """Free what is kept. Was there anything?"""
        with self._lock:
            found, self._pinned = self._pinned, None
            if found is not None:
                self._engine.unpin(found)
            return found is not None
