"""The engine's prefix: its token ids go in; the cache comes out with them pinned in it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from .backends.base import Backend
from .errors import CapacityError
from .kv_cache import KVCache, Segment
from .prefix_store import Fingerprint, PrefixStore, StoredPrefix

LOG = logging.getLogger(__name__)


def pin_prefix(
    ids: list[int],
    backend: Backend,
    cache: KVCache,
    compute: Callable[[], None],  # puts the keys and values of `ids` into the cache
    *,
    folder: str | Path | None,
    weights: str,  # their fingerprint
) -> dict[str, object]:
    """Restore it from `folder` where a stored one fits, else compute it and store it there.

    Returns what `Engine.info` says of it. CapacityError where the cache has no room for it and one
    block more; PrefixStoreError where it must be stored and cannot be.
    """
    need, began = cache.blocks_for(len(ids)), time.perf_counter()
    if need >= cache.blocks:
        raise CapacityError(
            f"the prefix of {len(ids)} tokens needs {need} cache blocks and a prompt at least one "
            f"more; there are {cache.blocks}: raise kv_cache_gib"
        )
    if folder is None:
        source = "computed"
        compute()
    else:
        source = _from_folder(ids, backend, cache, compute, PrefixStore(folder), weights)
    cache.pin(_segment(ids, cache))
    seconds = time.perf_counter() - began
    return {"prefix_tokens": len(ids), "prefix_source": source, "prefix_seconds": seconds}


def _from_folder(
    ids: list[int],
    backend: Backend,
    cache: KVCache,
    compute: Callable[[], None],
    store: PrefixStore,
    weights: str,
) -> str:
    fingerprint = Fingerprint.of(backend, weights, ids)
    found = store.find(fingerprint)
    if isinstance(found, StoredPrefix):
        _restore(ids, backend, cache, found)
        LOG.info("prefix of %d tokens restored from %s", len(ids), found.path)
        return "restored"
    LOG.log(logging.WARNING if found.damaged else logging.INFO, "prefix computed: %s", found.why)
    store.require_writable()
    compute()
    blocks = cache.table(_segment(ids, cache))
    path = store.save(fingerprint, ids, map(backend.read_block, blocks))
    LOG.info("prefix of %d tokens stored in %s", len(ids), path)
    return "computed"


def _restore(ids: list[int], backend: Backend, cache: KVCache, stored: StoredPrefix) -> None:
    leaf = cache.attach(ids, 0, cache.blocks_for(len(ids)))
    assert leaf is not None, "the cache is empty, and has room"
    cache.grow(leaf, len(ids))
    for block, data in zip(cache.table(leaf), stored.read_blocks(), strict=True):
        backend.write_block(block, data)
    cache.append(leaf, ids)
    cache.release(leaf)


def _segment(ids: list[int], cache: KVCache) -> Segment:
    """Where the prefix ends, once it stands in the cache."""
    segment, run = cache.match(ids, len(ids))
    assert run == len(ids) == segment.end
    return segment
