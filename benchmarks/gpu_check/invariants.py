"""Two roads to the same numbers, on a small model of random weights: which of the design's
invariants hold exactly on this device, and which within what.

With a library's matrix products only the difference is said. With those of a fixed order
(`invariant=True`) no bit may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_check.clock import Clock
from benchmarks.gpu_check.report import Row
from benchmarks.gpu_check.steps import BLOCK, TINY, RandomWeights
from urial_engine.backends.base import F32, I32, Batch, HeadScores, Hidden
from urial_engine.backends.cuda import CudaBackend
from urial_engine.config import ModelConfig
from urial_engine.kernels.rank import Scores, reference
from urial_engine.weights import HEAD, Weights

PART = "invariant"
TOP_K = 10
CHUNK = 7  # tokens: whole tiles and blocks lie between
SMALL = {
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
Spans = list[tuple[int, int, int]]  # sequence, first position, end


class Texts(NamedTuple):
    """B texts of S tokens, whose first P are the same in all of them."""

    B: int
    P: int
    S: int


class TiedWeights(RandomWeights):
    """Every second token has the logit of the one before."""

    def load(self, take: Callable[[str, int, NDArray[Any]], None], threads: int) -> None:
        def tied(name: str, first: int, rows: NDArray[Any]) -> None:
            if name == HEAD:
                rows = rows.copy()
                rows[1::2] = rows[: len(rows) // 2 * 2 : 2]
            take(name, first, rows)

        super().load(tied, threads)


class Roads:
    """Texts, and ways to read them to the logits of what follows their prefix, [B, S - P, V]."""

    def __init__(self, backend: CudaBackend, texts: Texts) -> None:
        self.backend, self.texts = backend, texts
        b, p, s = texts
        self.ids = np.random.default_rng(0).integers(backend.config.vocab_size, size=(b, s))
        self.ids[:, :p] = self.ids[0, :p]
        blocks = -(-s // BLOCK)
        self.apart = np.arange(b * blocks, dtype=np.int32).reshape(b, blocks)
        self.shared = self.apart.copy()
        self.shared[:, : p // BLOCK] = self.shared[0, : p // BLOCK]

    def empty(self) -> None:
        """Nothing is in the cache."""
        self.backend.allocate(self.apart.size)

    def forward(self, spans: Spans, tables: I32) -> Hidden:
        """One call, [T, C]."""
        rows = [end - first for _, first, end in spans]
        positions = np.concatenate([np.arange(*span[1:], dtype=np.int32) for span in spans])
        chosen = np.array([sequence for sequence, _, _ in spans])
        sequences = np.repeat(np.arange(len(spans), dtype=np.int32), rows)
        ids = self.ids[np.repeat(chosen, rows), positions].astype(np.int32)
        return self.backend.forward(Batch(ids, positions, sequences, tables[chosen]))

    def read(self, calls: list[Spans], tables: I32) -> F32:
        """Logits by all calls in turn; NaN where none of them came by."""
        b, p, s = self.texts
        z = np.full((b, s - p, self.backend.config.vocab_size), np.nan, np.float32)
        for spans in calls:
            hidden = self.forward(spans, tables)
            at = [(text, i - p) for text, first, end in spans for i in range(first, end)]
            rows = [row for row, (_, place) in enumerate(at) if place >= 0]
            if rows:
                sequences, places = np.array(at)[rows].T
                z[sequences, places] = self.backend.logits(hidden[rows])
        return z

    def from_nothing(self, calls: list[Spans]) -> F32:
        self.empty()
        return self.read(calls, self.apart)

    def to_the_end(self, first: int, texts: Iterable[int]) -> list[Spans]:
        """From a position on to the last but one; the last is a step of decoding."""
        end = self.texts.S
        return [[(i, first, end - 1) for i in texts], [(i, end - 1, end) for i in texts]]

    def in_chunks(self, size: int, begin: int = 0) -> F32:
        """The first text: `begin` tokens, then as many at a time. [S - P, V]"""
        starts = [0] * (begin > 0) + [*range(begin, self.texts.S, size)]
        ends = [*starts[1:], self.texts.S]
        z = self.from_nothing([[(0, *span)] for span in zip(starts, ends, strict=True)])
        return np.asarray(z[0])

    def batches(self) -> tuple[F32, F32]:
        """Two texts alone, and among all."""
        b, some = self.texts.B, sorted({self.texts.B // 2, self.texts.B - 1})
        alone = [self.from_nothing(self.to_the_end(0, [i]))[i] for i in some]
        return np.stack(alone), self.from_nothing(self.to_the_end(0, range(b)))[some]

    def prefixes(self) -> tuple[F32, F32, F32]:
        """All texts behind one prefix that was just computed; behind a copy each; and behind its
        bytes in a new pool, where it stays."""
        b, p, _ = self.texts
        blocks, rest = p // BLOCK, self.to_the_end(p, range(b))
        self.empty()
        self.forward([(0, 0, p)], self.shared)
        kept = [self.backend.read_block(int(block)) for block in self.shared[0, :blocks]]
        computed = self.read(rest, self.shared)
        for table in self.apart[1:]:
            for source, target in zip(self.apart[0, :blocks], table, strict=False):
                self.backend.copy_block(int(source), int(target))
        copied = self.read(rest, self.apart)
        self.empty()
        for block, data in zip(self.shared[0], kept, strict=False):
            self.backend.write_block(int(block), data)
        return computed, copied, self.read(rest, self.shared)

    def scores(self) -> tuple[HeadScores, Scores]:
        """Of all tokens behind the prefix in the cache: the fused score, and what logits say."""
        b, p, s = self.texts
        hidden = self.forward([(i, p, s) for i in range(b)], self.shared)
        targets = np.roll(self.ids[:, p:], -1, axis=1).reshape(-1).astype(np.int32)
        z = self.backend.logits(hidden).astype(np.float64)
        return self.backend.score(hidden, targets, TOP_K), reference(z, targets, TOP_K)


def rows(clock: Clock) -> Iterator[Row]:
    texts = behind = Texts(32, 128, 200)
    if clock.small:
        texts, behind = Texts(2, 16, 20), Texts(2, BLOCK, BLOCK + 2)
    config = ModelConfig.from_dict(TINY if clock.small else {**TINY, **SMALL})
    for invariant in (True,) if clock.small else (False, True):
        weights = cast(Weights, TiedWeights(config))
        backend = CudaBackend(weights, clock.device, invariant=invariant)
        roads = Roads(backend, texts)
        whole = roads.in_chunks(texts.S)
        single = roads.in_chunks(1, begin=texts.P if clock.small else 0)
        alone, together, chunks = *roads.batches(), roads.in_chunks(CHUNK)
        roads = Roads(backend, behind)
        computed, copied, restored = roads.prefixes()
        for what, a, b in (
            (f"alone / in a batch of {texts.B}", alone, together),
            (f"one prefill / in chunks of {CHUNK}", whole, chunks),
            ("one prefill / token by token", whole, single),
            ("prefix shared by the batch / a copy each", computed, copied),
            ("prefix computed / restored", computed, restored),
        ):
            yield compared(what, a, b, invariant=invariant)
        yield same_scores(*roads.scores(), invariant=invariant)
        backend.close()


def compared(what: str, a: F32, b: F32, *, invariant: bool) -> Row:
    """Logits of both roads, bit for bit. What no call came by is not the same."""
    difference, size = float(np.abs(a - b).max()), float(np.abs(a).max())
    same = a.tobytes() == b.tobytes() and bool(np.isfinite(a).all())
    found = "exact" if same else f"{difference:.1e} of up to {size:.1f}"
    return _judged(what, found, difference, invariant=invariant)


def same_scores(ours: HeadScores, truth: Scores, *, invariant: bool) -> Row:
    """Ranks, ties and likeliest tokens have to be the same. Log-probabilities are summed in another
    order in any case."""
    other = (ours.rank != truth.rank) | (ours.ties != truth.ties)
    other |= (ours.top_ids != truth.top_ids).any(axis=1)
    found = "exact" if not other.any() else f"{other.sum()} of {len(other)} positions are others"
    near = float(np.abs(ours.logprob - truth.logprob).max())
    found += f"; log-probabilities within {near:.1e}"
    difference = float(np.abs(ours.rank - truth.rank).max())
    what = "fused score / rank and top-k of logits"
    return _judged(what, found, difference, invariant=invariant)


def _judged(what: str, found: str, difference: float, *, invariant: bool) -> Row:
    part = f"{PART}, fixed order" if invariant else f"{PART}, library"
    floor, exact = "exact" if invariant else "", found.startswith("exact")
    reached = exact or not invariant
    return Row(part, what, found=found, difference=difference, floor=floor, reached=reached)
