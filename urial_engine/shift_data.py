"""A token shift as it is held in memory: who answered what, and a row a token with its measures.

Plain arrays, which the reports read and `token_shift` fills. Nothing here runs a model.
Letters: N rows, k of the top-k.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import ParameterError
from .outputs import F32, I32

# By rank under the base model (arXiv 2312.01552): 1, then 2 and 3, then everything above.
CLASSES = ("unshifted", "marginal", "shifted")

Id = str | int
S = TypeVar("S", bound="ShiftData")


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, with everything that was fed to the two models. Ids are the ground truth, texts
    are for people.

    `id` and `sample` together name it: `sample` counts the answers that one query was given, from
    0. `source` says where its ids come from: "generated" by the aligned model, "token_ids" that
    were given, or "text", which the aligned tokenizer has split.
    """

    id: Id
    query: str
    text: str
    token_ids: list[int]  # [T], of the aligned model's vocabulary
    pieces: list[str]  # [T] the text token by token; a character of several comes with the last
    source: str
    aligned_context_ids: dict[str, list[int]]  # by the name of the prompt: what stood before it
    base_context_ids: dict[str, list[int]]
    finish_reason: str | None = None  # of a generated one
    dataset: str | None = None
    generator: str | None = None  # who wrote it, where its file says so
    sample: int = 0


def shift_class(rank: I32) -> NDArray[np.int8]:
    """Index into CLASSES: rank 1 unshifted, 2 and 3 marginal, above shifted."""
    return np.digitize(rank, (2, 4)).astype(np.int8)


class Context(NamedTuple):
    """One column of a run: the base model under one prompt, against the aligned one under another.

    `base` and `aligned` are names of prompts, keys of an answer's context ids.
    """

    name: str
    base: str
    aligned: str


class Published(NamedTuple):
    """The same positions in the conventions of the published analysis code. -1 and NaN where that
    code, which tokenises the answer's text again, has no such position."""

    rank: I32  # [N] from 0, of the aligned model's first choice; 10 where not among the base's ten
    probability: F32  # [N] the base's, renormalised over its thirty likeliest
    kl: F32  # [N] KL(base || aligned) over what both tens share, nats


@dataclass(frozen=True, slots=True)
class ShiftData:
    """Rows stand by answer, then context, then position: each answer has its tokens once for each
    of the contexts. Log-probabilities, entropies and KL are in nats, over the whole vocabulary that
    the two models share."""

    answers: list[Answer]
    contexts: tuple[Context, ...]
    answer: I32  # [N] index into `answers`
    context: I32  # [N] index into `contexts`
    position: I32  # [N] from 0
    token_id: I32  # [N]
    base_rank: I32  # [N] 1 = the base model's first choice
    base_ties: I32  # [N]
    base_logprob: F32  # [N]
    base_entropy: F32  # [N]
    base_top_ids: I32  # [N, k] by falling logit, then rising id
    base_top_logprobs: F32  # [N, k]
    aligned_rank: I32  # [N]
    aligned_ties: I32  # [N]
    aligned_logprob: F32  # [N]
    aligned_entropy: F32  # [N]
    aligned_top_ids: I32  # [N, k]
    aligned_top_logprobs: F32  # [N, k]
    kl_aligned_base: F32  # [N] KL(aligned || base)
    kl_base_aligned: F32  # [N]
    vocabulary: dict[int, str] = field(repr=False)  # the text of every id above, for people
    published: Published | None = None

    @property
    def shift_class(self) -> NDArray[np.int8]:
        """[N] index into CLASSES."""
        return shift_class(self.base_rank)

    @property
    def token(self) -> list[str]:
        """[N] the text of each token."""
        return [self.vocabulary[i] for i in self.token_id.tolist()]

    def only(self: S, context: str | int) -> S:
        """The rows of one context, by its name or its number."""
        names = [c.name for c in self.contexts]
        if isinstance(context, str):
            if context not in names:
                raise ParameterError(f"no context {context!r}; there are {', '.join(names)}")
            context = names.index(context)
        rows = self.context == context
        one = {name: getattr(self, name)[rows] for name in ARRAYS}
        one["context"] = np.zeros_like(one["context"])
        published = self.published and Published(*(a[rows] for a in self.published))
        return replace(self, contexts=(self.contexts[context],), published=published, **one)


ARRAYS = [f.name for f in fields(ShiftData) if f.type in ("I32", "F32")]
