"""Times the head's scores against torch's materialised logits, in time and in memory. Both are
timed on the device, and both on the clock."""

from __future__ import annotations

import itertools
from typing import Any, cast

import numpy as np
import torch

from benchmarks.gpu_check.clock import Clock, Limits
from benchmarks.gpu_check.report import Row
from benchmarks.gpu_check.steps import BLOCK, TINY, RandomWeights
from urial_engine.backends.base import Batch, Hidden
from urial_engine.backends.cuda import CudaBackend
from urial_engine.config import ModelConfig
from urial_engine.weights import Weights

TOP_K = 10


def materialised(
    x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """The same numbers from `[M, V]`, as one would write it in torch."""
    z = (x @ weight.T).float()
    logp = torch.log_softmax(z, dim=-1)
    own = z.gather(1, targets[:, None])
    rank, ties = (z > own).sum(dim=1) + 1, (z == own).sum(dim=1) - 1
    entropy = -(logp.exp() * logp).sum(dim=1)
    top = logp.topk(TOP_K)
    return rank, ties, logp.gather(1, targets[:, None]), entropy, top.values, top.indices


def rows(clock: Clock, limits: Limits) -> list[Row]:
    found, size = [], {"hidden_size": 4096, "num_attention_heads": 32}
    shapes = itertools.product((32000, 128256), (256, 2048, 8192))
    if clock.small:
        size, shapes = {}, itertools.product((300,), (5,))
    for vocab, count in shapes:
        shape = {"vocab_size": vocab, "max_position_embeddings": count, **size}
        config = ModelConfig.from_dict({**TINY, **shape})
        # One for each count: what it has recorded for another is memory that it holds.
        backend = CudaBackend(cast(Weights, RandomWeights(config)), clock.device)
        backend.allocate(-(-count // BLOCK))
        found += _compare(clock, limits, backend, count)
        backend.close()
    return found


def states(backend: CudaBackend, count: int) -> Hidden:
    """Of some text, where the backend holds them."""
    positions = np.arange(count, dtype=np.int32)
    table = np.arange(-(-count // BLOCK), dtype=np.int32)[None]
    ids = positions % backend.config.vocab_size
    return backend.forward(Batch(ids, positions, np.zeros_like(positions), table))


def _compare(clock: Clock, limits: Limits, backend: CudaBackend, count: int) -> list[Row]:
    vocab, size = backend.config.vocab_size, backend.config.hidden_size
    hidden = states(backend, count)
    targets = np.random.default_rng(0).integers(vocab, size=count).astype(np.int32)
    x, weight = clock.random(count, size), clock.random(vocab, size, scale=size**-0.5)
    ids = torch.from_numpy(targets).long().to(clock.device.torch)

    def ours() -> object:
        return backend.score(hidden, targets, TOP_K)

    def theirs() -> object:
        return materialised(x, weight, ids)

    backend.score(hidden[:1], targets[:1], 0)  # libraries take what they keep for good
    held = clock.peak_bytes(ours)  # first: a recorded call holds its memory from then on
    seconds, wall = clock.seconds(ours), clock.wall(ours)
    share = 2.0 * count * vocab * size / seconds / limits.products
    what = f"{count} positions, {vocab} tokens"
    cost: dict[str, Any] = {"bytes": held, "wall": wall, "tokens": count / seconds}
    try:
        other, other_wall = clock.seconds(theirs), clock.wall(theirs)
        needed = clock.peak_bytes(theirs)
    except torch.OutOfMemoryError:
        said = "has no room on this device"
        mine = Row("score", what, seconds, products=share, **cost)
        return [mine, Row("score", f"{what}, torch's logits", found=said)]
    leaner = None if held is None or needed is None else needed / max(held, 1)
    compared: dict[str, Any] = {"times": other / seconds, "leaner": leaner, **cost}
    mine = Row("score", what, seconds, products=share, **compared)
    said = "" if leaner is None else f"{leaner:.1f} x our memory"
    their_cost: dict[str, Any] = {"bytes": needed, "wall": other_wall, "tokens": count / other}
    return [mine, Row("score", f"{what}, torch's logits", other, found=said, **their_cost)]
