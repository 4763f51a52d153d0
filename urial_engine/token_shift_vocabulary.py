"""Two models' vocabularies go in; the tokens over which they can be compared come out, or why not.

Ranks and divergences compare two distributions over one set of tokens. Models of one vocabulary
are compared over all of it, as they are. Where ids or sizes differ (tokens that were added, or
moved), a token of one is that of the other whose text in the tokenizer's file is the same; both
distributions are then those given that the token is one of the shared ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .errors import ParameterError
from .outputs import I32
from .tokenizer import Tokenizer

ENOUGH = 0.9  # of the smaller vocabulary must be shared: else an answer is cut up otherwise


@dataclass(frozen=True, slots=True)
class SharedVocabulary:
    """`base_ids[i]` and `aligned_ids[i]` are one token. `whole`: these are all tokens of both, at
    the same ids, so that heads are compared as they are."""

    base_ids: I32  # [n]
    aligned_ids: I32  # [n] rising
    whole: bool
    base_size: int  # V of each model
    aligned_size: int

    @classmethod
    def of(
        cls,
        base: Tokenizer,
        aligned: Tokenizer,
        sizes: tuple[int, int],
        same: Mapping[str, str] | None = None,
    ) -> SharedVocabulary:
        """`sizes`: V of the base and the aligned model. `same`: tokens of the aligned model that
        stand for another one of the base, such as {"<|im_end|>": "</s>"}.

        Raises `ParameterError` where less than ENOUGH of the smaller vocabulary is shared.
        """
        mine, theirs = base.tokens(), aligned.tokens()
        if sizes[0] == sizes[1] and not same and _only_renamed(mine, theirs):
            # The row of the head is what a model was trained with, whatever it is called.
            every = np.arange(sizes[0], dtype=np.int32)
            return cls(every, every, True, *sizes)
        of_base = {text: i for i, text in enumerate(mine) if text is not None}
        wanted = _names(theirs, of_base, same or {})
        pairs = [(of_base[name], i) for i, name in enumerate(wanted) if name and name in of_base]
        least = min(sum(t is not None for t in tokens) for tokens in (mine, theirs))
        if len(pairs) < ENOUGH * least:
            absent = [name for name in wanted if name and name not in of_base]
            raise ParameterError(
                f"the base model has {sizes[0]} tokens and the aligned one {sizes[1]}, and only "
                f"{len(pairs)} of them are the same text (such as {absent[:3]} are not): ranks and "
                "KL need one vocabulary; compare models that share a tokenizer"
            )
        shared = np.array(pairs, np.int32).T
        return cls(shared[0], shared[1], False, *sizes)

    def check(self, ids: Iterable[int], base: Tokenizer, aligned: Tokenizer, what: str) -> None:
        """ParameterError where a token of an answer, `what`, is none of these, or another one of
        the base."""
        for i in sorted(set(ids)):
            if not 0 <= i < self.aligned_size:
                raise ParameterError(
                    f"{what} has token id {i}, outside the vocabulary of {self.aligned_size}"
                )
            text = aligned.token_text(i)
            self.to_base([i], f"{what} ({text!r})")
            if self.whole and (own := base.token_text(i)) != text:
                raise ParameterError(
                    f"{what}: token id {i} is {text!r} in the aligned model and {own!r} in the "
                    "base model; a token shift needs two models of one vocabulary"
                )

    def to_base(self, ids: Sequence[int], what: str = "an answer") -> list[int]:
        """Token ids of the aligned model in the base's numbers. ParameterError, which names `what`
        they are, where the base has no such token."""
        if self.whole:
            return list(ids)
        rows = np.searchsorted(self.aligned_ids, np.array(ids, np.int64))
        found = self.aligned_ids[np.minimum(rows, len(self.aligned_ids) - 1)]
        if (lacking := np.array(ids)[found != ids]).size:
            raise ParameterError(
                f"{what}: the base model has no token for id {lacking[0]} of the aligned one; say "
                "which of its tokens stands for it (map_tokens)"
            )
        return self.base_ids[rows].tolist()  # type: ignore[no-any-return]

    def to_rows(self, ids: I32) -> I32:
        """Token ids of the aligned model as rows of the shared vocabulary."""
        return ids if self.whole else np.searchsorted(self.aligned_ids, ids).astype(np.int32)


def _only_renamed(mine: list[str | None], theirs: list[str | None]) -> bool:
    """Whether ids mean the same but for a few that have names of their own on each side, as
    reserved tokens do when a model is tuned: no token stands elsewhere."""
    changed = [(a, b) for a, b in zip(mine, theirs, strict=False) if a != b]
    moved = {a for a, _ in changed if a is not None} & {b for _, b in changed if b is not None}
    return not moved and len(changed) <= (1 - ENOUGH) * min(len(mine), len(theirs))


def _names(
    theirs: list[str | None], of_base: Mapping[str, int], same: Mapping[str, str]
) -> list[str | None]:
    """What each token of the aligned model is called in the base. No two have one name."""
    for token, name in same.items():
        if token not in theirs or name not in of_base:
            lacking = "aligned" if token not in theirs else "base"
            raise ParameterError(
                f"map_tokens {token!r} = {name!r}: the {lacking} model has no such token"
            )
    taken = set(same.values())
    return [same.get(t, None if t in taken else t) if t else None for t in theirs]
