"""What grows, from where to where, and which figures of it are held against which expectation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.growth.models import Settings, shape
from benchmarks.growth.work import Expected as E

MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class Experiment:
    """A parameter that grows. `beside`: what else is measured in each of its rounds."""

    name: str
    grows: str
    values: tuple[int, ...]
    small: tuple[int, ...]  # in the tests
    beside: str = "prices"

    def shape(self, value: int, small: bool) -> Settings:
        return shape(small=small, vocabulary=value if self.name == "vocabulary" else None)

    def threads(self, value: int, base: int) -> int:
        return value if self.name == "threads" else base


def doubling(first: int, last: int) -> tuple[int, ...]:
    return () if first > last else (first, *doubling(2 * first, last))


EXPERIMENTS = (
    Experiment("batch", "sequences", (1, 4, 16, 32, 64, 96, 128), (1, 2, 4)),
    Experiment("prefix", "tokens of the prefix", (0, *doubling(512, 8192)), (0, 64, 128)),
    Experiment("generated", "new tokens", doubling(32, 1024), (2, 3, 4)),
    Experiment("scored", "scored tokens", doubling(128, 8192), (8, 16, 32)),
    Experiment("vocabulary", "vocabulary", doubling(32_768, 262_144), (320, 640, 960)),
    Experiment("threads", "threads", (1, 2), (1, 2), beside="limits"),
)


def always(_: E, __: int) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Curve:
    """One figure of an experiment, against the parameter that grows in it."""

    experiment: str
    figure: str  # one of the experiment's seconds, or MEMORY
    title: str
    unit: str
    slope_unit: str
    per: str
    expected: Callable[[E, int], Any]  # a Cost, or bytes
    grows: Callable[[E, int], bool] = always  # where the slope is taken

    @property
    def name(self) -> str:
        return f"{self.experiment}.{self.figure}"


CURVES = (
    Curve(
        *("batch", "step", "a step of the batch", "ms", "us", "sequence", E.batch_step),
        grows=E.is_arithmetic,
    ),
    Curve("prefix", "prefill", "reading the prefix", "s", "us", "token", E.prefill),
    Curve("prefix", "first", "a long query after it", "ms", "us", "token", E.first),
    Curve("prefix", "step", "a step after it", "ms", "ns", "token", E.prefix_step),
    Curve("generated", "generate", "generating", "s", "ms", "token", E.generate),
    Curve("scored", "score", "scoring one text", "s", "us", "token", E.score),
    Curve("vocabulary", "step", "a step", "ms", "ns", "entry", E.vocabulary_step),
    Curve("vocabulary", "score", "scoring", "ms", "ns", "entry", E.vocabulary_score),
    Curve("batch", MEMORY, "peak", "MB", "kB", "sequence", E.batch_bytes),
    Curve("prefix", MEMORY, "peak", "MB", "B", "token", E.prefix_bytes),
    Curve("generated", MEMORY, "peak", "MB", "kB", "token", E.generated_bytes),
    Curve(
        *("scored", MEMORY, "peak beside the idle engine", "MB", "B", "token", E.scored_bytes),
        grows=E.is_read_in_full_steps,
    ),
    Curve("vocabulary", MEMORY, "peak", "MB", "B", "entry", E.vocabulary_bytes),
)
