"""Times the head's scores against torch's materialised logits, in time and in memory."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.gpu_check.clock import Clock, Limits
from benchmarks.gpu_check.report import Row
from urial_engine.backends.cuda_forward import FINITE, Rows
from urial_engine.backends.cuda_head import Head
from urial_engine.backends.cuda_score import score
from urial_engine.backends.cuda_weights import HEAD_TILE

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
    shapes = [(5, 300, 16)] if clock.small else [
        *((t, v, 4096) for v in (32000, 128256) for t in (256, 2048, 8192))
    ]  # fmt: skip
    return [row for shape in shapes for row in _compare(clock, limits, *shape)]


def _compare(clock: Clock, limits: Limits, count: int, vocab: int, size: int) -> list[Row]:
    device = clock.device
    rounded = -(-vocab // HEAD_TILE) * HEAD_TILE
    weight, x = clock.random(rounded, size, scale=size**-0.5), clock.random(count, size)
    weight[vocab:] = 0
    head = Head(weight, vocab, device, invariant=False)
    bad = torch.full((count,), FINITE, dtype=torch.int32, device=device.torch)
    hidden = Rows(x, bad)
    targets = np.random.default_rng(0).integers(vocab, size=count).astype(np.int32)
    ids = torch.from_numpy(targets).long().to(device.torch)

    def ours() -> object:
        return score(head, hidden, targets, TOP_K)

    def theirs() -> object:
        return materialised(x, weight[:vocab], ids)

    seconds, held = clock.wall(ours), clock.peak_bytes(ours)
    share = 2.0 * count * vocab * size / seconds / limits.products
    what = f"{count} positions, {vocab} tokens"
    mine = Row("score", what, seconds, products=share, bytes=held, tokens=count / seconds)
    try:
        other, needed = clock.seconds(theirs), clock.peak_bytes(theirs)
    except torch.OutOfMemoryError:
        return [mine]
    less = (needed or 0) / max(held or 1, 1)
    compared = Row(
        "score",
        f"{what}: torch's logits",
        other,
        times=other / seconds,
        bytes=needed,
        floor="we are at least as fast, in a tenth of the memory",
        reached=clock.small or (other >= seconds and less >= 10),
    )
    return [mine, compared]
