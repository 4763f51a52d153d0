"""What a backend must do. The engine, the scheduler and the token shift know this page and nothing
below it.

Letters: B sequences, T rows (new tokens) of a call, M rows given to the head, C hidden size, V
vocabulary.

A backend owns the weights and a pool of KV-cache blocks of `block_size` tokens, all layers of a
token in the same block. The caller owns the meaning of the blocks: which sequence reads which
physical block at which absolute block index (`Batch.block_tables`). Two sequences that name the
same physical block at the same index share it, and attention reads it once for both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..config import ModelConfig

I32 = NDArray[np.int32]
F32 = NDArray[np.float32]


# Hidden states [T, C] where their backend holds them: an array, or rows on a device. Above the
# backends they have a length, and rows of them are chosen by a slice or a list.
Hidden: TypeAlias = Any


class Batch(NamedTuple):
    """One forward call: T new tokens of B sequences. Their keys and values are written to the
    cache before attention reads it.

    Rows of one sequence are adjacent and in rising position; sequences that share blocks stand
    beside each other (speed only). Everything before a row's position must already be in the cache
    or earlier in the same call.
    """

    token_ids: I32  # [T]
    positions: I32  # [T] absolute, counted from 0
    sequences: I32  # [T] row of block_tables, non-decreasing
    # [B, blocks] physical block at each absolute block index; entries past the last position are
    # not read
    block_tables: I32


class SampleBatch(NamedTuple):
    """How to choose the next token of each of M rows. See `SamplingParams` for the meaning of each
    field.

    The order of operations: banned tokens to -inf, repetition, presence and frequency penalties,
    temperature, top-k, top-p, min-p, then one draw. `penalty_*` and `banned_*` are ragged: row i
    owns entries offsets[i] .. offsets[i + 1].
    """

    temperature: F32  # [M], 0 = greedy: the largest logit, the smallest id among equals
    top_k: I32  # [M], 0 = all
    top_p: F32  # [M], 1 = all
    min_p: F32  # [M], 0 = all
    repetition_penalty: F32  # [M], 1 = off; divides positive logits, multiplies negative ones
    presence_penalty: F32  # [M]
    frequency_penalty: F32  # [M]
    seed: NDArray[np.uint64]  # [M]
    sample: NDArray[np.uint32]  # [M] index among the n samples of a request
    position: NDArray[np.uint32]  # [M] absolute position of the token to be chosen
    penalty_offsets: I32  # [M + 1]
    penalty_ids: I32  # distinct ids within a row
    penalty_repeats: NDArray[np.uint8]  # 1 where the repetition penalty applies to this id
    penalty_counts: I32  # how often the id stands in the output (presence and frequency penalties)
    banned_offsets: I32  # [M + 1]
    banned_ids: I32
    top_logprobs: int = 0  # how many of the most likely tokens to report, the same for all rows


class Sampled(NamedTuple):
    """The chosen tokens. Log-probabilities are those of the raw model (before penalties and
    temperature), in nats."""

    token_ids: I32  # [M]
    logprob: F32  # [M]
    rank: I32  # [M] 1 + how many raw logits are larger
    top_ids: I32  # [M, k] by falling raw logit, then rising id
    top_logprobs: F32  # [M, k]


class HeadScores(NamedTuple):
    """What one head says of a given token at each of M rows.

    rank = 1 + #{v != y : z_v > z_y}, ties = #{v != y : z_v = z_y}, both exact on the fp32 logits
    z; y is excluded by index.
    """

    rank: I32  # [M]
    ties: I32  # [M]
    logprob: F32  # [M] nats
    entropy: F32  # [M] nats
    top_ids: I32  # [M, k] by falling logit, then rising id
    top_logprobs: F32  # [M, k]


class HeadComparison(NamedTuple):
    """Two heads on the same tokens: KL divergences over the full vocabulary, in nats."""

    base: HeadScores
    aligned: HeadScores
    kl_aligned_base: F32  # [M]
    kl_base_aligned: F32  # [M]


class Backend(Protocol):
    """Implemented by `reference` (numpy, fp64), `cpu` (C++) and `cuda` (torch, Triton, CUDA).

    Where a value is not finite a `NumericsError` names the layer and the row of the call: raised by
    `forward`, or, where that does not wait for its device, by `check` and by the exits."""

    name: str  # "cpu"
    build: str  # identity of the code: bits made by another build may differ; in the fingerprint
    variant: str  # what else changes the bits: the instruction set or the architecture; likewise
    dtype: str  # "bfloat16" | "float16" | "float32" | "float64" of weights and cache
    threads: int
    # To which the exits round hidden states before anything else: kept so, they give the same bits.
    hidden_dtype: str
    config: ModelConfig
    block_size: int  # tokens a block
    block_bytes: int  # bytes a block, all layers, keys and values
    weight_bytes: int
    max_top_k: int  # how many of the likeliest tokens it can report

    def cache_room(self, max_batch: int, context: int, chunk: int) -> int:
        """Bytes that the pool of blocks may take where the caller does not say how many: what runs
        beside it are `max_batch` sequences of up to `context` tokens, and `chunk` rows of prompts.
        """

    def allocate(self, blocks: int) -> None:
        """Reserve the pool of KV-cache blocks; replaces an earlier pool. Blocks start out
        zeroed, and what is not finite is never written to one: so what an earlier user left in a
        block counts for nothing where a later one is masked (0 * stale = 0)."""

    def forward(self, batch: Batch) -> Hidden:
        """All layers and the final norm -> hidden states [T, C]. Writes the T tokens' keys and
        values to the cache."""

    def check(self, hidden: Hidden) -> None:
        """NumericsError where a row is not finite and `forward` did not know yet. The exits say so
        too, of the rows that they are given."""

    def to_host(self, hidden: Hidden) -> F32:
        """A copy of hidden states [M, C] that every exit takes as well as the original."""

    def logits(self, hidden: Hidden) -> F32:
        """[M, C] -> [M, V], fp32. For callers who need them all; nothing in generate or score
        does."""

    def next_tokens(self, hidden: Hidden, how: SampleBatch) -> Sampled:
        """The head's exit for generation: [M, C] -> one token a row."""

    def score(self, hidden: Hidden, targets: I32, top_k: int) -> HeadScores:
        """The head's exit for scoring: vocabulary tiles in cache, never [M, V]."""

    def compare(
        self, hidden: Hidden, targets: I32, top_k: int, aligned: Backend, aligned_hidden: Hidden
    ) -> HeadComparison:
        """Score both heads and stream both KL divergences over the same tiles. `self` is the
        base."""

    def copy_block(self, source: int, target: int) -> None:
        """Copy a whole block within the pool."""

    def read_block(self, block: int) -> NDArray[np.uint8]:
        """[block_bytes] copy of a block, for the prefix file."""

    def write_block(self, block: int, data: NDArray[np.uint8]) -> None:
        """The inverse of `read_block`."""

    def close(self) -> None:
        """Free threads, weights and pool."""
