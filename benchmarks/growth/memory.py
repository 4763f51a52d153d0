"""The memory of one workload, in a process of its own: `python -m benchmarks.growth.memory NAME`.

Leaves the most that was resident while the engine was opened and while it worked, beside what its
weights and the used blocks of its cache take, as one line of JSON. All of it in bytes.
"""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

from benchmarks.bench_generate import greedy
from benchmarks.bench_token_shift import peak, reset_peak
from benchmarks.workload import Workload, arguments, read_arguments
from urial_engine import Engine

LIMIT = 150_000_000  # beside weights and used blocks


def prefill(engine: Engine, texts: Workload) -> None:
    engine.generate(texts.prompt.text, greedy(1))


def ttft(engine: Engine, texts: Workload) -> None:
    engine.generate(texts.suffixes(2)[0], greedy(1))


def decode_1(engine: Engine, texts: Workload) -> None:
    engine.generate(texts.suffixes(3)[0], greedy(1 + texts.new))


def urial_32(engine: Engine, texts: Workload) -> None:
    engine.generate(texts.suffixes(4), greedy(texts.new_batch))


def score(engine: Engine, texts: Workload) -> None:
    answer = engine.tokenizer.encode(texts.prompt.text)[: texts.answer_tokens]
    engine.score(texts.suffixes(6)[: texts.scored], [answer] * texts.scored)


WORKLOADS = {f.__name__: f for f in (prefill, ttft, decode_1, urial_32, score)}


def measure(name: str, args: Any) -> dict[str, Any]:
    """Everything, as it is written to JSON."""
    texts = Workload.load(args.data, small=args.small)
    imported = peak()
    with Engine(
        args.model,
        prefix=None if name == "prefill" else texts.prompt.text,
        dtype=args.dtype,
        threads=args.threads,
        isa=args.isa,
    ) as engine:
        opening = Phase(peak(), used_blocks(engine))
        if reset_peak() is None:
            raise SystemExit("memory is measured on Linux only")
        WORKLOADS[name](engine, texts)
        working = Phase(peak(), used_blocks(engine))
        return {
            "imported": imported,
            "weights": engine.info["weight_bytes"],
            "opening": opening._asdict(),
            "working": working._asdict(),
        }


class Phase(NamedTuple):
    """Of the process: from its start until the engine is open, or from there on."""

    peak: int
    cache: int  # in used blocks at the end of the phase


def used_blocks(engine: Engine) -> int:
    blocks = sum(len(segment.blocks) for segment in engine._scheduler._cache.segments())
    return blocks * engine.backend.block_bytes


def excess(found: dict[str, Any], phase: str) -> int:
    """Bytes at the peak of a phase, "opening" or "working", beside weights and used blocks."""
    return int(found[phase]["peak"] - found["weights"] - found[phase]["cache"])


def main(argv: list[str]) -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--workload", required=True, choices=WORKLOADS)
    args = read_arguments(parser, argv)
    print(json.dumps(measure(args.workload, args)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
