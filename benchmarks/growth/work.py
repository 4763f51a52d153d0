"""What a point should cost: a shape, sizes and a few prices go in; seconds and bytes come out.

The work is counted from the shapes: every weight is read once a step however many rows there are,
each row passes every weight, each query meets each key before it, and each scored or chosen token
meets the whole vocabulary. A price is what one unit of that costs this engine on this machine,
measured on single calls of the backend in the same minutes (`prices` in point.py). So a curve that
is steeper than expected holds work that nobody counted, or work that costs more the more there is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.growth.models import BF16_BYTES, BLOCK, Shape
from benchmarks.growth.point import Sizes

F32_BYTES = 4
PANEL = 32  # columns of the head that are read for the logit of a given token
SAMPLED_TOGETHER = 32  # rows whose logits stand in memory while their tokens are chosen
# A sequence's ids, prefix included, are listed by the caller, its request and itself: pointers.
LISTED_BYTES = 3 * 8


class Cost(NamedTuple):
    """Seconds in the two parts of a step that work is counted in. Python should cost none."""

    layers: float
    head: float

    @property
    def all(self) -> float:
        return self.layers + self.head


@dataclass(frozen=True, slots=True)
class Prices:
    """Seconds of one unit each."""

    byte: float  # of the layers' weights, read for a single row
    token: float  # through the layers, among many, without its attention
    pair: float  # of a query and a key, where many queries of a text are read together
    key: float  # that a single query meets
    entry: float  # of the vocabulary, that a scored token meets

    @classmethod
    def of(cls, seconds: Mapping[str, float], shape: Shape, sizes: Sizes) -> Prices:
        """From the calls that `prices` in point.py has timed."""
        pair = (seconds["deep_chunk"] - seconds["chunk"]) / (sizes.query * sizes.depth)
        byte = seconds["row"] / (BF16_BYTES * shape.layer_weights)
        own = BF16_BYTES * shape.hidden * PANEL * byte
        return cls(
            byte=byte,
            token=(seconds["chunk"] - pair * below(sizes.query)) / sizes.query,
            pair=pair,
            key=(seconds["deep_rows"] - seconds["rows"]) / (sizes.writers * sizes.depth),
            entry=(seconds["score"] / sizes.query - own) / shape.vocabulary,
        )


def below(count: int) -> float:
    """Pairs of a query and a key in a text of that many tokens."""
    return count * (count + 1) / 2


def whole(tokens: int) -> int:
    """Tokens of the blocks that hold so many: a block is reduced whole."""
    return -(-tokens // BLOCK) * BLOCK


@dataclass(frozen=True, slots=True)
class Expected:
    """The cost of each experiment of point.py, and the bytes that it adds to a process at most,
    but for what stands still."""

    shape: Shape
    sizes: Sizes
    prices: Prices

    def step(self, sequences: int, own: int, shared: int = 0, vocabulary: int = 0) -> Cost:
        """The next token of sequences that share some tokens and have `own` ones each.

        Reading the weights hides the arithmetic of few rows; that of many hides the reading. To
        choose a token is as much work as to score one.
        """
        p, shape = self.prices, self.shape
        entries = vocabulary or shape.vocabulary
        reading = BF16_BYTES * shape.layer_weights * p.byte
        reading_head = BF16_BYTES * shape.hidden * entries * p.byte
        keys = max(p.key, sequences * p.pair) * whole(shared) + sequences * p.key * whole(own)
        return Cost(
            max(reading, sequences * p.token) + keys,
            max(reading_head, sequences * entries * p.entry),
        )

    def text(self, tokens: int, before: int = 0, scored: int = 0, vocabulary: int = 0) -> Cost:
        """Tokens of one text, read behind others; some of them scored, or else one chosen. A
        scored token meets its own column of the head once more, before all the others."""
        p, entries = self.prices, vocabulary or self.shape.vocabulary
        pairs = below(tokens) + tokens * before
        column = BF16_BYTES * self.shape.hidden * p.byte
        head = scored * (PANEL * column + entries * p.entry) if scored else entries * column
        return Cost(tokens * p.token + pairs * p.pair, head)

    def is_arithmetic(self, sequences: int) -> bool:
        """Whether a step of so many takes longer to compute than its weights take to read."""
        reading = BF16_BYTES * self.shape.layer_weights * self.prices.byte
        return sequences * self.prices.token > reading

    def batch_step(self, count: int) -> Cost:
        return self.step(count, self._own, self.sizes.prefix)

    def prefill(self, prefix: int) -> Cost:
        return self.text(prefix)

    def first(self, prefix: int) -> Cost:
        return self.text(self.sizes.query, prefix)

    def prefix_step(self, prefix: int) -> Cost:
        return self.step(self.sizes.together, self._own, prefix)

    def generate(self, new: int) -> Cost:
        own, writers = self.sizes.own, self.sizes.writers
        steps = [self.step(writers, own + made) for made in range(1, new)]
        return Cost(sum(step.layers for step in steps), sum(step.head for step in steps))

    def score(self, tokens: int) -> Cost:
        return self.text(tokens, scored=tokens)

    def vocabulary_step(self, entries: int) -> Cost:
        return self.step(1, self._own, vocabulary=entries)

    def vocabulary_score(self, entries: int) -> Cost:
        tokens = self.sizes.query
        return self.text(tokens, scored=tokens, vocabulary=entries)

    @property
    def _own(self) -> int:
        """Tokens that a sequence has of its own in the middle of its timed steps."""
        return self.sizes.own + self.sizes.new // 2

    def batch_bytes(self, count: int) -> float:
        """Blocks of each sequence, logits of those whose tokens are chosen together, and
        activations: while the last texts are read, the first sequences advance already."""
        own, chunk = self.sizes.own, self.sizes.query
        rows = chunk + max(count - chunk // own, 0)
        logits = F32_BYTES * self.shape.vocabulary * min(count, SAMPLED_TOGETHER)
        blocks = whole(own + self.sizes.new - 1) * self.shape.key_bytes
        listed = LISTED_BYTES * (self.sizes.prefix + own)
        return count * (blocks + listed) + logits + rows * self._row_bytes

    def prefix_bytes(self, prefix: int) -> float:
        listed = self.sizes.together * LISTED_BYTES * prefix
        return whole(prefix) * self.shape.key_bytes + listed

    def generated_bytes(self, new: int) -> float:
        tokens = whole(self.sizes.own + new - 1)
        return self.sizes.writers * tokens * self.shape.key_bytes

    def scored_bytes(self, tokens: int) -> float:
        """None: what scoring needs does not depend on how much is scored."""
        return 0.0

    def vocabulary_bytes(self, entries: int) -> float:
        return BF16_BYTES * self.shape.hidden * entries

    @property
    def _row_bytes(self) -> int:
        """Activations of a row: the residual stream, q, k and v, and the hidden state in fp32; the
        normed row, queries, attended values and gated ones in the weights' dtype."""
        s = self.shape
        full = 3 * s.hidden + 2 * s.kv_heads * s.head_dim
        return F32_BYTES * full + BF16_BYTES * (3 * s.hidden + s.feed_forward)
