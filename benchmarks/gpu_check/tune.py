"""Times attention with every tile that could stand in the table of kernels/attention/tiles.py:
`python -m benchmarks.gpu_check.tune`, on a GPU, offline. The engine itself never tries anything.

Leaves, for each head size, the tiles by their time over the best one's, a geometric mean of what
the table has to serve: reading a prompt, and decoding alone, behind a shared prefix and without.
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any, NamedTuple

from triton.runtime.errors import OutOfResources

from benchmarks.gpu_check.attention import Bench
from benchmarks.gpu_check.clock import Clock, the_gpu
from benchmarks.gpu_check.steps import TINY
from urial_engine.config import ModelConfig
from urial_engine.kernels.attention.tiles import Tile, tile

HEAD_SIZES = (64, 128, 256)
TILES = [Tile(q, w, s) for q in (16, 32, 64, 128) for w in (4, 8) for s in (1, 2, 3)]
BEST = 5  # that are shown


class Timed(NamedTuple):
    """One tile on all workloads; `mean` over the best of each."""

    tile: Tile
    seconds: tuple[float, ...]
    mean: float = math.nan


def workloads(bench: Bench, *, small: bool) -> tuple[float, ...]:
    """Seconds of each."""
    prefix, new, own, batch = (64, 5, 3, 2) if small else (1024, 512, 200, 32)
    return (
        bench.prefill(prefix, new)[0],
        bench.decode(1, prefix, own, shared=False)[0],
        bench.decode(batch, prefix, own, shared=True)[0],
        bench.decode(batch, prefix, own, shared=False)[0],
    )


def ranked(timed: list[Timed]) -> list[Timed]:
    """The best first."""
    best = [min(column) for column in zip(*(one.seconds for one in timed), strict=True)]
    means = [
        one._replace(mean=math.prod(s / b for s, b in zip(one.seconds, best, strict=True)))
        for one in timed
    ]
    return sorted(
        (one._replace(mean=one.mean ** (1 / len(best))) for one in means), key=lambda one: one.mean
    )


def measure(clock: Clock, config: ModelConfig, tiles: list[Tile]) -> tuple[list[Timed], list[Tile]]:
    """What was timed, and the tiles for which the device has not the shared memory."""
    timed, too_large = [], []
    for each in tiles:
        try:
            timed.append(Timed(each, workloads(Bench(clock, config, each), small=clock.small)))
        except OutOfResources:
            too_large.append(each)
    return ranked(timed), too_large


def lines(clock: Clock, head_dim: int, timed: list[Timed], too_large: list[Tile]) -> list[str]:
    table = tile(clock.device.architecture, head_dim, clock.dtype.itemsize, 1)
    head = ["queries, warps, stages", "mean", "prefill", "alone", "shared", "not shared"]
    out = [f"## Head size {head_dim}, sm_{clock.device.architecture}", ""]
    out += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for place, one in enumerate(timed):
        here = one.tile == table
        if place < BEST or here:
            cells = [f"{1e6 * s:,.1f} us" for s in one.seconds]
            name = f"{tuple(one.tile)}{' (the table has this)' if here else ''}"
            out.append(f"| {' | '.join([name, f'{one.mean:.3f}', *cells])} |")
    names = ", ".join(str(tuple(each)) for each in too_large)
    return [*out, "", *([f"Too large for the device: {names}.", ""] if names else [])]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interpreted", action="store_true", help="without a GPU, tiny")
    args = parser.parse_args(argv)
    clock = Clock(the_gpu(interpreted=args.interpreted), small=args.interpreted)
    sizes, tiles = ((8,), TILES[:2]) if clock.small else (HEAD_SIZES, TILES)
    shape: dict[str, Any] = TINY if clock.small else {**TINY, "num_attention_heads": 32}
    with clock.device.use():
        for head_dim in sizes:
            config = ModelConfig.from_dict({**shape, "head_dim": head_dim})
            print("\n".join(lines(clock, head_dim, *measure(clock, config, tiles))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
