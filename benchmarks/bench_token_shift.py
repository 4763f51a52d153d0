"""Times scoring and token shift by how much they score: `python -m benchmarks.bench_token_shift`.

Leaves, for each number of scored positions, seconds, positions a second and by how many bytes the
process grew at most meanwhile; beside it what the logits of those positions would take, if they
were held. The cache's memory is touched before and the prefix is in it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.workload import Workload, arguments, read_arguments
from urial_engine import Engine, token_shift

POSITIONS = (256, 1024, 4096)
ANSWER = 256  # positions of one answer
CACHE_GIB = 1.0
TOP_K = 10


class Task(NamedTuple):
    """Answers to be scored, each after its own query: `positions` tokens in all."""

    queries: list[str]
    answers: list[list[int]]
    positions: int

    @classmethod
    def make(cls, engine: Engine, texts: Workload, positions: int, length: int) -> Task:
        """Answers of `length` tokens, cut from the prefix; no two tasks share a query."""
        ids = engine.tokenizer.encode(texts.prompt.text)
        ids *= -(-positions // len(ids)) + 1
        starts = range(0, positions, length)
        queries = [texts.questions[i % len(texts.questions)] for i in range(len(starts))]
        return cls(
            [f"{positions}.{i}. {query}" for i, query in enumerate(queries)],
            [ids[start : min(start + length, positions)] for start in starts],
            positions,
        )

    def score(self, engine: Engine, texts: Workload) -> None:
        engine.score([texts.prompt.render(q) for q in self.queries], self.answers, top_k=TOP_K)

    def shift(self, engine: Engine, texts: Workload) -> None:
        """One engine, under the URIAL context and under its chat template, if it has one."""
        chat = "chat" if engine.tokenizer.chat_template else "Question: {query}\nAnswer:"
        token_shift(
            engine,
            engine,
            [f"Again: {query}" for query in self.queries],
            base_prompt=texts.prompt,
            aligned_prompt=chat,
            answers=self.answers,
            top_k=TOP_K,
        )


def rows(engine: Engine, texts: Workload, sizes: tuple[int, ...], length: int) -> Iterator[Any]:
    touch_cache(engine)
    Task.make(engine, texts, 1, 1).shift(engine, texts)  # a warm-up
    for positions in sizes:
        task = Task.make(engine, texts, positions, length)
        logits = 4 * positions * engine.config.vocab_size
        yield row("score", positions, partial(task.score, engine, texts), logits)
        yield row("token shift", positions, partial(task.shift, engine, texts), 2 * logits)


def touch_cache(engine: Engine) -> None:
    """Make every block of the cache resident, and leave in it what it holds."""
    for block in range(int(str(engine.info["kv_cache_blocks"]))):
        engine.backend.write_block(block, engine.backend.read_block(block))


def row(name: str, positions: int, call: Callable[[], None], logits: int) -> dict[str, Any]:
    before = reset_peak()
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    return {
        "what": name,
        "positions": positions,
        "seconds": round(seconds, 3),
        "per_second": round(positions / seconds, 1),
        "grown_MB": None if before is None else round((peak() - before) / 1e6, 1),
        "logits_MB": round(logits / 1e6, 1),
    }


def reset_peak() -> int | None:
    """Bytes that are resident now; the peak counts from here. None on another system than Linux."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return peak()


def peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def measure(args: Any) -> dict[str, Any]:
    """Everything, as it is written to JSON."""
    texts = Workload.load(args.data, small=args.small)
    sizes, length = ((8, 16), 8) if args.small else (POSITIONS, ANSWER)
    with Engine(
        args.model,
        prefix=texts.prompt,
        dtype=args.dtype,
        threads=args.threads,
        isa=args.isa,
        kv_cache_gib=CACHE_GIB,
    ) as engine:
        return {
            "model": Path(args.model).name,
            "engine": {key: engine.info[key] for key in ("isa", "dtype", "threads")},
            "texts": texts.source,
            "rows": list(rows(engine, texts, sizes, length)),
        }


def show(found: dict[str, Any]) -> None:
    engine = found["engine"]
    print(
        f"{found['model']}, {engine['dtype']}, {engine['isa']}, {engine['threads']} threads; "
        f"{found['texts']} texts, top {TOP_K}"
    )
    print(f"{'':<12}{'positions':>10}{'s':>9}{'a second':>10}{'grown MB':>10}{'logits MB':>11}")
    for r in found["rows"]:
        grown = "-" if r["grown_MB"] is None else f"{r['grown_MB']:.1f}"
        print(
            f"{r['what']:<12}{r['positions']:>10}{r['seconds']:>9.2f}{r['per_second']:>10.1f}"
            f"{grown:>10}{r['logits_MB']:>11.1f}"
        )


def main(argv: list[str] | None = None) -> None:
    args = read_arguments(arguments(__doc__.splitlines()[0]), argv)
    found = measure(args)
    show(found)
    if args.json:
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
