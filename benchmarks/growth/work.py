"""What a point should cost: a model, sizes and a few prices go in; seconds and bytes come out.

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

from benchmarks.growth.point import BF16_BYTES, BLOCK, Sizes
from benchmarks.meter import layer_weights
from urial_engine.config import ModelConfig

PANEL = 32  # columns of the head that are read for the logit of a given token
# A sequence's ids, prefix included, are listed by the caller, its request and itself: pointers.
LISTED_BYTES = 3 * 8
F32_BYTES = 4


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
    def of(cls, seconds: Mapping[str, float], model: ModelConfig, sizes: Sizes) -> Prices:
        """From the calls that `prices` in point.py has timed."""
        pair = (seconds["deep_chunk"] - seconds["chunk"]) / (sizes.query * sizes.depth)
        byte = seconds["row"] / (BF16_BYTES * layer_weights(model))
        own_column = BF16_BYTES * model.hidden_size * PANEL * byte
        return cls(
            byte=byte,
            token=(seconds["chunk"] - pair * below(sizes.query)) / sizes.query,
            pair=pair,
            key=(seconds["deep_rows"] - seconds["rows"]) / (sizes.writers * sizes.depth),
            entry=(seconds["score"] / sizes.query - own_column) / model.vocab_size,
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

    model: ModelConfig
    sizes: Sizes
    prices: Prices

    def step(self, sequences: int, own: int, shared: int = 0, vocabulary: int = 0) -> Cost:
        """The next token of sequences that share some tokens and have `own` ones each.

        Reading the weights hides the arithmetic of few rows; that of many hides the reading. To
        choose a token is as much work as to score one.
        """
        p, entries = self.prices, vocabulary or self.model.vocab_size
        layers = max(self._reading, sequences * p.token)
        keys = max(p.key, sequences * p.pair) * whole(shared) + sequences * p.key * whole(own)
        return Cost(layers + keys, entries * max(self._column, sequences * p.entry))

    def text(self, tokens: int, before: int = 0, scored: int = 0, vocabulary: int = 0) -> Cost:
        """Tokens of one text, read behind others; some of them scored, or else one chosen. A
        scored token meets its own column of the head once more, before all the others."""
        p, entries = self.prices, vocabulary or self.model.vocab_size
        pairs = below(tokens) + tokens * before
        head = scored * (PANEL * self._column + entries * p.entry) or entries * self._column
        return Cost(tokens * p.token + pairs * p.pair, head)

    @property
    def _reading(self) -> float:
        """Seconds for the weights of all layers."""
        return BF16_BYTES * layer_weights(self.model) * self.prices.byte

    @property
    def _column(self) -> float:
        """Seconds for one of the head's."""
        return BF16_BYTES * self.model.hidden_size * self.prices.byte

    @property
    def _own(self) -> int:
        """Tokens that a sequence has of its own in the middle of its timed steps."""
        return self.sizes.own + self.sizes.new // 2

    # Seconds

    def batch_step(self, count: int) -> Cost:
        return self.step(count, self._own, self.sizes.prefix)

    def is_arithmetic(self, count: int) -> bool:
        """Whether a step of so many takes longer to compute than its weights take to read."""
        return count * self.prices.token > self._reading

    def is_read_in_full_steps(self, tokens: int) -> bool:
        """Whether a text is read in several steps, each as large as steps become."""
        return tokens > self.sizes.query

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
        return self.text(self.sizes.query, scored=self.sizes.query, vocabulary=entries)

    # Bytes

    @property
    def _key_bytes(self) -> int:
        """Keys and values of one token, padded as the cache has them."""
        size = -(-self.model.head_dim // PANEL) * PANEL
        return self.model.num_layers * self.model.num_kv_heads * 2 * size * BF16_BYTES

    def batch_bytes(self, count: int) -> float:
        own, new = self.sizes.own, self.sizes.new
        return count * (whole(own + new - 1) * self._key_bytes + LISTED_BYTES * self.sizes.prefix)

    def prefix_bytes(self, prefix: int) -> float:
        """Its blocks, the rotary tables up to it, and the lists of those that share it."""
        tables = F32_BYTES * self.model.head_dim * prefix
        return (
            whole(prefix) * self._key_bytes + tables + self.sizes.together * LISTED_BYTES * prefix
        )

    def generated_bytes(self, new: int) -> float:
        return self.sizes.writers * whole(self.sizes.own + new - 1) * self._key_bytes

    def scored_bytes(self, tokens: int) -> float:
        """None: what scoring needs does not depend on how much is scored."""
        return 0.0

    def vocabulary_bytes(self, entries: int) -> float:
        return BF16_BYTES * self.model.hidden_size * entries
