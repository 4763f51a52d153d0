"""Two models' vocabularies go in; the tokens over which they can be compared come out, or why not.

Ranks and divergences compare two distributions over one set of tokens. Models of one vocabulary
are compared over all of it, as they are. Where ids or sizes differ (tokens that were added, or
moved), a token of one is that of the other whose text in the tokenizer's file is the same; both
distributions are then those given that the token is one of the shared ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
        changed = sum(a != b for a, b in zip(mine, theirs, strict=False))
        if sizes[0] == sizes[1] and not same and changed <= (1 - ENOUGH) * min(sizes):
            # A few names may differ: the row of the head is what a model was trained with.
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

    def check(self, ids: Iterable[int], base: Tokenizer, aligned: Tokenizer) -> None:
        """ParameterError where an answer's token is none of these, or another one of the base."""
        for i in sorted(set(ids)):
            if not 0 <= i < self.aligned_size:
                raise ParameterError(
                    f"answer token id {i} is outside the vocabulary of {self.aligned_size}"
                )
            text = aligned.token_text(i)
            row = int(np.searchsorted(self.aligned_ids, i))
            if row == len(self.aligned_ids) or self.aligned_ids[row] != i:
                raise ParameterError(
                    f"the base model has no token {text!r} (id {i} of the aligned one), which an "
                    "answer holds; say which of its tokens stands for it (map_tokens)"
                )
            if self.whole and (own := base.token_text(i)) != text:
                raise ParameterError(
                    f"token id {i} is {text!r} in the aligned model and {own!r} in the base model; "
                    "a token shift needs two models of one vocabulary"
                )

    def to_base(self, ids: Iterable[int]) -> list[int]:
        """Token ids of the aligned model in the base's numbers; checked before."""
        if self.whole:
            return list(ids)
        return self.base_ids[np.searchsorted(self.aligned_ids, list(ids))].tolist()  # type: ignore[no-any-return]

    def to_rows(self, ids: I32) -> I32:
        """Token ids of the aligned model as rows of the shared vocabulary."""
        return ids if self.whole else np.searchsorted(self.aligned_ids, ids).astype(np.int32)


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
