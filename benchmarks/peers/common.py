"""What the peers share: the workload, the clock, the report. Standard library only.

All figures are taken alike. An engine is given texts and tokenises them while the clock runs, as
its caller would wait for it; only the answer whose tokens are scored is tokenised before. Whatever
an engine compiles or allocates at first use, it has done before the clock starts: each kind of work
runs once on the queries of another run number.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Texts:
    """The workload as race.py writes it."""

    prefix: str
    runs: list[list[str]]  # what follows the prefix: one text a query, for each run number
    answer: str  # its first `answer_tokens` tokens are scored
    new: int
    new_batch: int
    scored: int
    answer_tokens: int
    threads: int
    cache_tokens: int  # room that an engine with a cache of fixed size is given

    def suffixes(self, run: int) -> list[str]:
        return self.runs[run]

    def whole(self, run: int) -> list[str]:
        """The queries of a run, each after the prefix."""
        return [self.prefix + suffix for suffix in self.runs[run]]


def arguments() -> tuple[Texts, str]:
    """The workload and the model's path, from the command line."""
    workload, model = sys.argv[1:]
    return Texts(**json.loads(Path(workload).read_text(encoding="utf-8"))), model


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What `call` returns, and its seconds."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


@dataclass(frozen=True)
class Steps:
    """Greedy tokens of one query, and the moment at which each was there."""

    tokens: list[int]
    moments: list[float]

    @classmethod
    def take(cls, tokens: Iterable[int]) -> Steps:
        pairs = [(token, time.perf_counter()) for token in tokens]
        return cls([token for token, _ in pairs], [moment for _, moment in pairs])

    @property
    def rate(self) -> float:
        """Tokens a second after the first."""
        return (len(self.moments) - 1) / (self.moments[-1] - self.moments[0])


def peak_memory(process: str = "self") -> int:
    """Bytes that a process and all below it held at most; an engine may work in a child of it."""
    folder = Path("/proc", process)
    lines = (folder / "status").read_text().splitlines()
    own = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
    children = [n for f in folder.glob("task/*/children") for n in f.read_text().split()]
    return own + sum(map(peak_memory, children))


def report(
    name: str, distribution: str, prefix_tokens: int, tokens: list[int], **figures: float
) -> None:
    """The line that race.py reads. `tokens` are the greedy ones of run 3's first query, by which it
    sees that all engines compute the same; `figures` have workload.py's names and units."""
    found = {
        "peer": f"{name} {version(distribution)}",
        "prefix_tokens": prefix_tokens,
        "tokens": tokens,
        "peak_MB": round(peak_memory() / 1e6, 1),
        **{figure: round(value, 2) for figure, value in figures.items()},
    }
    print(json.dumps(found), flush=True)
