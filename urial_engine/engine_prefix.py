"""A prefix: its token ids go in; a cache that keeps them, from a file or computed, comes out."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .backends.base import Backend
from .engine_inputs import PromptReader
from .engine_runner import Runner
from .errors import CapacityError
from .kv_cache import KVCache, Segment
from .prefix_store import Fingerprint, PrefixStore, StoredPrefix
from .scheduler_requests import Request

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, slots=True)
class Prefix:
    """A constant beginning of prompts, whose keys and values stay in the cache until `unpin`."""

    text: str | None  # None: given as token ids, and no text continues it
    ids: list[int]
    reader: PromptReader  # of texts that continue it
    leaf: Segment
    info: Mapping[str, object]  # prefix_tokens, prefix_source, prefix_seconds


class Pinning:
    """Computes prefixes with the engine's own scheduler, or takes them from a folder."""

    def __init__(self, backend: Backend, cache: KVCache, runner: Runner, weights: str) -> None:
        """`weights`: their fingerprint."""
        self._backend = backend
        self._cache = cache
        self._runner = runner
        self._weights = weights

    def pin(
        self, ids: list[int], folder: str | Path | None, spare: int
    ) -> tuple[Segment, dict[str, object]]:
        """Where it stands from now on, and what `Prefix.info` says of it.

        CapacityError where the cache has no room for it and `spare` tokens more; PrefixStoreError
        where it must be stored and cannot be.
        """
        need, began = self._cache.blocks_for(len(ids)), time.perf_counter()
        others = self._cache.blocks_for(spare)
        if need + others > (room := self._cache.room(ids, len(ids))):
            raise CapacityError(
                f"the prefix of {len(ids)} tokens needs {need} cache blocks, and {others} must "
                f"be left for prompts; at most {room} of the {self._cache.blocks} can be free for "
                "it: raise kv_cache_gib"
            )
        if folder is None:
            leaf, source = self._compute(ids)
        else:
            leaf, source = self._from_folder(ids, PrefixStore(folder))
        seconds = time.perf_counter() - began
        info = {"prefix_tokens": len(ids), "prefix_source": source, "prefix_seconds": seconds}
        return leaf, info

    def unpin(self, leaf: Segment) -> None:
        with self._runner.exclusive():
            self._cache.unpin(leaf)

    def _compute(self, ids: list[int]) -> tuple[Segment, str]:
        request = Request("the prefix", ids, rows_from=len(ids) - 1, pin=True, urgent=True)
        self._runner.run([request])
        assert request.pinned is not None
        return request.pinned, "computed"

    def _from_folder(self, ids: list[int], store: PrefixStore) -> tuple[Segment, str]:
        fingerprint = Fingerprint.of(self._backend, self._weights, ids)
        found = store.find(fingerprint)
        if isinstance(found, StoredPrefix):
            with self._runner.exclusive():
                leaf = self._restore(ids, found)
            if leaf is not None:
                LOG.info("prefix of %d tokens restored from %s", len(ids), found.path)
                return leaf, "restored"
            LOG.info("prefix computed: its turn for cache blocks comes later than that")
            return self._compute(ids)
        LOG.log(
            logging.WARNING if found.damaged else logging.INFO, "prefix computed: %s", found.why
        )
        store.require_writable()
        leaf, source = self._compute(ids)
        try:
            with self._runner.exclusive():
                blocks = [self._backend.read_block(block) for block in self._cache.table(leaf)]
            path = store.save(fingerprint, ids, blocks)
        except BaseException:
            self.unpin(leaf)
            raise
        LOG.info("prefix of %d tokens stored in %s", len(ids), path)
        return leaf, source

    def _restore(self, ids: list[int], stored: StoredPrefix) -> Segment | None:
        """None where others hold the blocks that it needs."""
        leaf = self._cache.attach(ids, 0, self._cache.blocks_for(len(ids)))
        if leaf is None:
            return None
        self._cache.grow(leaf, len(ids))
        try:
            for block, data in zip(self._cache.table(leaf), stored.read_blocks(), strict=True):
                self._backend.write_block(block, data)
        except BaseException:
            self._cache.release(leaf, keep=False)
            raise
        self._cache.append(leaf, ids)
        self._cache.pin(leaf)
        return leaf
