"""One point of a growth curve, in a process of its own: `python -m benchmarks.growth.point …`.

Enters a model, an experiment and the value of the parameter that grows in it; leaves seconds by the
name of what was timed, and the memory, as one line of JSON. No text is read twice, so the cache
helps only where an experiment says so.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.bench_generate import greedy, timed
from benchmarks.bench_token_shift import peak, reset_peak, touch_cache
from benchmarks.limits import Limits
from urial_engine import Engine
from urial_engine.backends.base import Batch
from urial_engine.backends.cpu import CpuBackend
from urial_engine.config import ModelConfig

BF16_BYTES, GIB = 2, 1 << 30
BLOCK = CpuBackend.block_size
# The parts of a step: the layers in one call, the head in another, and what is left is Python.
PARTS = {"forward": "layers", "next_tokens": "head", "score": "head"}
Call = Callable[[], object]
Seconds = dict[str, float]  # "all" of it, and what of it was spent in each part


@dataclass(frozen=True, slots=True)
class Sizes:
    """What stands still while one parameter grows, in tokens where nothing else is said."""

    prefix: int = 1024  # shared by all sequences
    own: int = 16  # of each sequence, after the prefix
    query: int = 512  # a long query, which fills a step
    new: int = 24  # generated, where a step is timed
    together: int = 32  # sequences that share a growing prefix
    writers: int = 8  # sequences that generate a growing number of tokens
    depth: int = 4096  # keys before a row, where the price of a key is measured
    many: int = 128  # sequences at most
    repeats: int = 7  # of a call that has a price
    context: int = 8192 + BLOCK  # that a cache touched beforehand holds
    limit: float = 0.3  # seconds for each limit of the machine


FULL = Sizes()
SMALL = Sizes(64, 8, 64, 4, 2, 2, 128, 8, 1, 256, 0.01)


class Lab:
    """An engine, texts that it has not seen, and a stopwatch for each part of its steps."""

    def __init__(self, engine: Engine, sizes: Sizes) -> None:
        self.engine, self.sizes = engine, sizes
        self.random = np.random.default_rng(0)
        self._spent = {"layers": 0.0, "head": 0.0}
        for name, part in PARTS.items():
            setattr(engine.backend, name, self._noting(part, getattr(engine.backend, name)))

    def _noting(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            result, seconds = timed(lambda: call(*arguments))
            self._spent[part] += seconds
            return result

        return noted

    def time(self) -> Seconds:
        return {"all": time.perf_counter(), **self._spent}

    def timed(self, call: Call) -> Seconds:
        start = self.time()
        call()
        return since(start, self.time())

    def ids(self, count: int) -> list[int]:
        """Token ids no two runs of which are alike."""
        return self.random.integers(3, self.engine.config.vocab_size, count).tolist()

    def read(self, ids: list[int]) -> Seconds:
        """Until the first token after these."""
        return self.timed(lambda: self.engine.generate([ids], greedy(1)))

    def score(self, count: int) -> Seconds:
        """Of that many tokens of one text."""
        first, rest = self.ids(1), self.ids(count)
        return self.timed(lambda: self.engine.score([first], [rest], top_k=10))

    def steps(self, prefix: list[int], sequences: int, new: int) -> list[Seconds]:
        """Of each step in which all sequences, and nothing else, advance."""
        texts = [prefix + self.ids(self.sizes.own) for _ in range(sequences)]
        requests = [self.engine.generation(ids, greedy(new), "a text") for ids in texts]
        stamps: list[tuple[list[int], Seconds]] = []

        def note() -> None:
            made = [len(request.samples[0].token_ids) for request in requests]
            stamps.append((made, self.time()))

        self.engine.run(requests, note)
        pairs = pairwise(stamps)
        return [
            since(start, end)
            for (before, start), (after, end) in pairs
            if min(before) > 0 and sum(after) - sum(before) == sequences
        ]

    def step(self, prefix: list[int], sequences: int) -> Seconds:
        """The one in the middle."""
        steps = sorted(self.steps(prefix, sequences, self.sizes.new), key=lambda step: step["all"])
        return steps[len(steps) // 2]


def since(start: Seconds, end: Seconds) -> Seconds:
    return {name: end[name] - start[name] for name in start}


Found = dict[str, Seconds]


def batch(lab: Lab, count: int) -> Found:
    """`count` sequences behind one prefix."""
    prefix = lab.ids(lab.sizes.prefix)
    lab.read(prefix)
    return {"step": lab.step(prefix, count)}


def prefix(lab: Lab, tokens: int) -> Found:
    """A prefix is read; a long query after it; and sequences that share it are continued."""
    ids = lab.ids(tokens)
    found = {"prefill": lab.read(ids)} if ids else {}
    found["first"] = lab.read(ids + lab.ids(lab.sizes.query))
    return {**found, "step": lab.step(ids, lab.sizes.together)}


def generated(lab: Lab, tokens: int) -> Found:
    """A few sequences without a prefix grow until each has `tokens` new ones."""
    steps = lab.steps([], lab.sizes.writers, tokens)
    return {"generate": {name: sum(step[name] for step in steps) for name in steps[0]}}


def scored(lab: Lab, tokens: int) -> Found:
    """One text, all of it scored."""
    return {"score": lab.score(tokens)}


def vocabulary(lab: Lab, _: int) -> Found:
    """The model is what grows."""
    return {"step": lab.step([], 1), "score": lab.score(lab.sizes.query)}


def threads(lab: Lab, _: int) -> Found:
    """Reading, one sequence, many, scoring: the engine is what grows."""
    ids = lab.ids(lab.sizes.prefix)
    return {
        "prefill": lab.read(ids),
        "step": lab.step(ids, 1),
        "batch": lab.step(ids, lab.sizes.many),
        "score": lab.score(lab.sizes.query),
    }


def limits(lab: Lab, count: int) -> Found:
    """Of the machine: for a byte that is read and for an operation."""
    info, seconds = lab.engine.info, lab.sizes.limit
    isa, dtype, size = str(info["isa"]), str(info["dtype"]), int(str(info["weight_bytes"]))
    found = Limits.measure(isa, dtype, count, size, seconds=seconds)
    return {"byte": {"all": 1 / found.read}, "operation": {"all": 1 / found.arithmetic}}


def prices(lab: Lab, _: int) -> Found:
    """Single calls of the backend, from which work.py takes what a unit of work costs."""
    backend, sizes, config = lab.engine.backend, lab.sizes, lab.engine.config
    noise = lab.random.standard_normal(backend.block_bytes // BF16_BYTES, np.float32)
    block = noise.astype(ml_dtypes.bfloat16).view(np.uint8)
    for i in range(sizes.writers * (sizes.depth // BLOCK + 1)):  # reading what is not there is fast
        backend.write_block(i, block)

    def forward(rows: int, depth: int, texts: int = 1) -> Call:
        """So many rows of each text behind `depth` keys of its own."""
        blocks = -(-(depth + rows) // BLOCK)
        call = Batch(
            token_ids=np.array(lab.ids(rows * texts), np.int32),
            positions=np.tile(np.arange(depth, depth + rows, dtype=np.int32), texts),
            sequences=np.repeat(np.arange(texts, dtype=np.int32), rows),
            block_tables=np.arange(texts * blocks, dtype=np.int32).reshape(texts, blocks),
        )
        return lambda: backend.forward(call)

    hidden = lab.random.standard_normal((sizes.query, config.hidden_size), np.float32)
    targets = np.array(lab.ids(sizes.query), np.int32)
    calls: dict[str, Call] = {
        "row": forward(1, 0),
        "rows": forward(1, 0, sizes.writers),
        "deep_rows": forward(1, sizes.depth, sizes.writers),
        "chunk": forward(sizes.query, 0),
        "deep_chunk": forward(sizes.query, sizes.depth),
        "score": lambda: backend.score(hidden, targets, 10),
    }
    # In turn, as in a step: no call finds what it reads in a cache because it has just read it.
    took = [{name: timed(call)[1] for name, call in calls.items()} for _ in range(sizes.repeats)]
    return {name: {"all": median(each[name] for each in took)} for name in calls}


GROWING = (batch, prefix, generated, scored, vocabulary, threads)
EXPERIMENTS = {f.__name__: f for f in (*GROWING, prices, limits)}


def measure(model: str, name: str, value: int, *, count: int, isa: str, sizes: Sizes) -> object:
    """Seconds and resident bytes of one point, as they are written to JSON."""
    touched = name == "scored"  # its cache is resident beforehand: what grows is the scoring's own
    with Engine(
        model,
        threads=count,
        isa=isa,
        max_batch=sizes.many,
        kv_cache_gib=cache_gib(model, sizes) if touched else None,
    ) as engine:
        if touched:
            touch_cache(engine)
        before = reset_peak()
        if before is None:
            raise SystemExit("memory is measured on Linux only")
        lab = Lab(engine, sizes)
        lab.read(lab.ids(sizes.query))  # what is done once in a process is done before
        found = EXPERIMENTS[name](lab, value)
        told = {key: engine.info[key] for key in ("isa", "dtype", "weight_bytes")}
        return {"seconds": found, "bytes": {"before": before, "peak": peak()}, "engine": told}


def cache_gib(model: str, sizes: Sizes) -> float:
    """A cache that holds the longest text and no more."""
    config = ModelConfig.load(Path(model))
    token = config.num_layers * config.num_kv_heads * config.head_dim * 2 * BF16_BYTES
    return sizes.context * token / GIB


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("value", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args(argv)
    sizes = SMALL if args.small else FULL
    found = measure(
        args.model, args.experiment, args.value, count=args.threads, isa=args.isa, sizes=sizes
    )
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
