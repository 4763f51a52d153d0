"""Times generation and scoring of a whole model: `python -m benchmarks.bench_generate [MODEL]`.

Leaves the five figures of workload.py, each with the bytes and operations a second that it stands
for and their share of what this machine can do, measured before and after in the same process.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.limits import SECONDS, Limits, machine
from benchmarks.meter import Meter, Work, layer_weights
from benchmarks.peers.common import peak_memory
from benchmarks.workload import CACHE_TOKENS, Workload, arguments, read_arguments
from urial_engine import Engine, RequestOutput, SamplingParams
from urial_engine.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement, and the work that was done in it."""

    name: str
    value: float  # in `unit`
    unit: str
    seconds: float
    work: Work

    @property
    def read(self) -> float:  # bytes a second
        return self.work.bytes / self.seconds

    @property
    def arithmetic(self) -> float:  # operations a second
        return self.work.operations / self.seconds


def rate(name: str, tokens: int, seconds: float, work: Work) -> Figure:
    return Figure(name, tokens / seconds, "tokens/s", seconds, work)


def greedy(tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, ignore_eos=True)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def check(outputs: list[RequestOutput], new: int, *, cached: range) -> None:
    """A figure is worth nothing if the work was not what its name says."""
    for output in outputs:
        made, had = output.metrics.generated_tokens, output.metrics.cached_tokens
        if made != new or had not in cached:
            raise RuntimeError(f"made {made} tokens of {new}, with {had} cached, not {cached}")


def room_gib(engine: Engine) -> float:
    """A cache of CACHE_TOKENS tokens, which is what our peers have."""
    blocks = CACHE_TOKENS // engine.backend.block_size
    return (blocks + 0.5) * engine.backend.block_bytes / 2**30


def touch(engine: Engine) -> None:
    """Writes once to every block of the cache. The system hands out a page when it is touched, in a
    virtual machine not before its host has found one: that is to be part of no figure."""
    size, vocab = engine.backend.block_size, engine.config.vocab_size
    ids = np.random.default_rng(0).integers(0, vocab, (CACHE_TOKENS // size, size))
    engine.generate(ids.tolist(), greedy(1))


def prefill(engine: Engine, texts: Workload) -> Figure:
    """The prefix read by an engine that has seen none of it, after a warm-up on another text."""
    engine.generate("warm up " + texts.prompt.text, greedy(2))
    meter = Meter(engine)
    outputs, seconds = timed(lambda: engine.generate(texts.prompt.text, greedy(1)))
    check(outputs, 1, cached=range(engine.backend.block_size))
    tokens = len(outputs[0].prompt_token_ids)
    return rate("prefill", tokens, seconds, meter.take())


def warm_figures(engine: Engine, texts: Workload) -> Iterator[Figure]:
    """All others: the prefix is in the cache, the query never was."""
    prefix = len(engine.prefix_ids)
    # The end of the prefix may be tokenised together with what follows it.
    warm = range(prefix - 2, prefix + engine.backend.block_size)
    engine.generate(texts.suffixes(1)[0], greedy(texts.new))
    meter = Meter(engine)

    outputs, seconds = timed(lambda: engine.generate(texts.suffixes(2)[0], greedy(1)))
    check(outputs, 1, cached=warm)
    yield Figure("ttft_ms", 1e3 * seconds, "ms", seconds, meter.take())

    events = engine.stream(texts.suffixes(3)[0], greedy(1 + texts.new))
    next(events)
    meter.take()
    rest, seconds = timed(lambda: list(events))
    yield rate("decode_1", len(rest), seconds, meter.take())

    outputs, seconds = timed(lambda: engine.generate(texts.suffixes(4), greedy(texts.new_batch)))
    check(outputs, texts.new_batch, cached=warm)
    tokens = sum(output.metrics.generated_tokens for output in outputs)
    yield rate("urial_32", tokens, seconds, meter.take())

    answer = engine.tokenizer.encode(texts.prompt.text)[: texts.answer_tokens]
    queries = texts.suffixes(6)[: texts.scored]
    scores, seconds = timed(lambda: engine.score(queries, [answer] * len(queries)))
    tokens = sum(len(score.rank) for score in scores)
    yield rate("score", tokens, seconds, meter.take())


def measure(args: Any) -> dict[str, Any]:
    """Everything, as it is written to JSON."""
    texts = Workload.load(args.data, small=args.small)
    seconds = 0.02 if args.small else SECONDS

    def open_engine(prefix: str | None = None, gib: float | None = None) -> Engine:
        settings = {"dtype": args.dtype, "threads": args.threads, "isa": args.isa}
        return Engine(args.model, prefix=prefix, kv_cache_gib=gib, **settings)

    def limits() -> Limits:
        size = int(info["weight_bytes"])
        return Limits.measure(info["isa"], args.dtype, args.threads, size, seconds=seconds)

    with open_engine() as engine:
        config, info, room = engine.config, engine.info, room_gib(engine)
    with open_engine(gib=room) as engine:
        touch(engine)
        figures = [prefill(engine, texts)]
    # While no engine holds memory: what the measurement takes is then no part of the peak.
    before = limits()
    engine, load_seconds = timed(lambda: open_engine(texts.prompt.text, room))
    with engine:
        touch(engine)
        figures += warm_figures(engine, texts)
        info, peak = engine.info, peak_memory()
        tokens, cache = greedy_tokens(engine, texts), cache_bytes(engine, texts)
    most = Limits.best([before, limits()])
    return {
        "peer": f"urial-engine {info['isa']}",
        **{figure.name: round(figure.value, 2) for figure in figures},
        "prefix_tokens": info["prefix_tokens"],
        "tokens": tokens,
        "peak_MB": round(peak / 1e6, 1),
        "memory": {"weights_MB": megas(int(info["weight_bytes"])), "kv_MB": megas(cache)},
        "load_seconds": round(load_seconds, 2),
        "figures": {figure.name: row(figure, most) for figure in figures},
        "limits": {"read_GBps": gigas(most.read), "GFLOPs": gigas(most.arithmetic)},
        "model": model(args.model, config, info),
        "engine": {key: info[key] for key in ("isa", "dtype", "threads", "weight_bytes")},
        "workload": {
            "texts": texts.source,
            "prefix_tokens": info["prefix_tokens"],
            "queries": len(texts.questions),
            **{key: getattr(texts, key) for key in ("new", "new_batch", "scored", "answer_tokens")},
        },
        "machine": machine(),
    }


def greedy_tokens(engine: Engine, texts: Workload) -> list[int]:
    """Those of decode_1; peers that compute the same make the same."""
    return engine.generate(texts.suffixes(3)[0], greedy(1 + texts.new))[0].outputs[0].token_ids


def cache_bytes(engine: Engine, texts: Workload) -> int:
    """Keys and values of urial_32: the prefix once, each query and what follows it."""
    prefix = len(engine.prefix_ids)
    whole = [engine.tokenizer.encode(texts.prompt.text + query) for query in texts.suffixes(4)]
    tokens = prefix + sum(len(ids) - prefix + texts.new_batch for ids in whole)
    return tokens * engine.backend.block_bytes // engine.backend.block_size


def model(path: str, config: ModelConfig, info: dict[str, Any]) -> dict[str, Any]:
    embedding = config.vocab_size * config.hidden_size
    return {
        "name": Path(path).name,
        "parameters": layer_weights(config) + embedding * (1 if info["tied"] else 2),
        "layers": config.num_layers,
        "hidden": config.hidden_size,
        "vocabulary": config.vocab_size,
    }


def gigas(value: float) -> float:
    return round(value / 1e9, 2)


def megas(value: int) -> float:
    return round(value / 1e6, 1)


def row(figure: Figure, most: Limits) -> dict[str, Any]:
    return {
        "value": round(figure.value, 2),
        "unit": figure.unit,
        "GBps": gigas(figure.read),
        "of_read": round(figure.read / most.read, 3),
        "GFLOPs": gigas(figure.arithmetic),
        "of_arithmetic": round(figure.arithmetic / most.arithmetic, 3),
        "of_roofline": round(
            figure.work.least_seconds(most.arithmetic, most.read) / figure.seconds, 3
        ),
        "in_backend": round(figure.work.seconds / figure.seconds, 3),
        **{name: value for name, value in asdict(figure.work).items() if name != "each"},
    }


def show(found: dict[str, Any]) -> None:
    engine, limits, texts = found["engine"], found["limits"], found["workload"]
    print(
        f"{found['model']['name']}, {engine['dtype']}, {engine['isa']}, {engine['threads']} threads"
        f"; {texts['texts']} texts, prefix of {texts['prefix_tokens']} tokens"
    )
    print(
        f"limits here: {limits['read_GBps']:.1f} GB/s read over {engine['weight_bytes'] / 1e6:.0f} "
        f"MB, {limits['GFLOPs']:,.0f} GFLOP/s {engine['dtype']}"
    )
    print(
        f"{'':<10}{'':>18}{'GB/s':>8}{'of limit':>10}{'GFLOP/s':>9}{'of limit':>10}{'roofline':>10}"
        f"{'native':>8}"
    )
    for name, f in found["figures"].items():
        print(
            f"{name:<10}{f['value']:>9,.1f} {f['unit']:<8}{f['GBps']:>8.1f}{f['of_read']:>10.0%}"
            f"{f['GFLOPs']:>9.1f}{f['of_arithmetic']:>10.1%}{f['of_roofline']:>10.0%}"
            f"{f['in_backend']:>8.0%}"
        )


def main(argv: list[str] | None = None) -> None:
    args = read_arguments(arguments(__doc__.splitlines()[0]), argv)
    found = measure(args)
    show(found)
    if args.json:
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
