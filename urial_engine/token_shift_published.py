"""The conventions of the published analysis code, so that a run can tell what they change.

Enters: what two models hold likely at each position. Leaves: rank, probability and KL as AlignTDS
counts them (github.com/Re-Align/AlignTDS: src/logit_analysis.py, src/compute_dist_diff.py), and the
figures that the paper reports (arXiv 2312.01552, section 2). Nothing here runs a model.

What is computed here differs from ours in three ways (docs/token-shift.md has all six): the token
judged is the aligned model's first choice, not the answer's; a token is the string that its id
alone decodes to, so ids whose strings are equal are one token; and probabilities are shares of the
thirty likeliest tokens, not of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ParameterError
from .outputs import F32, I32
from .shift_data import CLASSES, Published
from .tokenizer import Tokenizer

KEPT = 30  # the likeliest tokens of a position that the published code stores
JUDGED = 10  # and those of them that rank and KL look at

# (base, aligned): shares of the classes, in the order of CLASSES.
PUBLISHED_RATIOS: Mapping[tuple[str, str], tuple[float, float, float]] = {
    ("Llama-2-7b-hf", "Llama-2-7b-chat-hf"): (0.777, 0.145, 0.078),
    ("Llama-2-7b-hf", "vicuna-7b-v1.5"): (0.824, 0.128, 0.048),
    ("Mistral-7B-v0.1", "Mistral-7B-Instruct-v0.1"): (0.822, 0.125, 0.052),
}


def published_pair(base: str, aligned: str) -> dict[str, Any] | None:
    """What the paper reports of these two models, as shares (0 to 1); None where it has not run
    them. Models are known by the last part of a hub id or a folder's path, in any case."""
    asked = _model(base), _model(aligned)
    for pair, shares in PUBLISHED_RATIOS.items():
        if asked == tuple(map(_model, pair)):
            names = dict(zip(("base", "aligned"), pair, strict=True))
            return {
                **names,
                **dict(zip(CLASSES, shares, strict=True)),
                "source": "arXiv 2312.01552",
            }
    return None


def _model(name: str) -> str:
    return PurePath(name).name.casefold()


def published_context(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a prompt's text. BOS goes before it even where the text, as chat templates write
    it, has one already: then there are two."""
    before = tokenizer.encode_prompt("")
    behind = tokenizer.encode("")[len(before) :]
    return [*before, *tokenizer.encode(text, add_special_tokens=False), *behind]


def published_answer(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of an answer, from its text alone.

    The aligned model is given those of the answer's text, the base model those of what they decode
    to: `published_answer(base, published_text(aligned, published_answer(aligned, text)))`.
    """
    return tokenizer.encode(text, add_special_tokens=False)


def published_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """What ids decode to, special tokens included; of one id the string that tokens are matched by.
    A tokenizer of SentencePiece takes the leading space off it."""
    return tokenizer.decode(ids, skip_special_tokens=False)


def align_published(token_ids: Sequence[int], published_ids: Sequence[int]) -> int:
    """At how many leading positions the two tokenisations of an answer agree."""
    same = (a == b for a, b in zip(token_ids, published_ids, strict=False))
    return sum(takewhile(bool, same))


def published_measures(
    base_top_ids: I32,
    base_top_logprobs: F32,
    aligned_top_ids: I32,
    aligned_top_logprobs: F32,
    base_text: Callable[[int], str],
    aligned_text: Callable[[int], str],
) -> Published:
    """Rank, probability and KL of N positions in the published code's conventions.

    The arrays are [N, k] by falling logit; of more than 30 columns the first 30 count, fewer are a
    smaller vocabulary. `base_text` and `aligned_text` give the string of one id. Where a list has a
    string twice, its first place counts. Raises `ParameterError` for arrays that do not belong
    together.
    """
    _check_shapes(base_top_ids, base_top_logprobs, aligned_top_ids, aligned_top_logprobs)
    codes: dict[str, int] = {}
    base = _codes(base_top_ids[:, :KEPT], base_text, codes)  # [N, k]
    aligned = _codes(aligned_top_ids[:, :KEPT], aligned_text, codes)  # [N, k]
    base_weights = _weights(base_top_logprobs[:, :KEPT])
    chosen = base == aligned[:, :1]  # [N, k] where the base has the aligned model's first choice
    place = chosen.argmax(axis=1)  # [N]
    found = chosen.any(axis=1)
    probability = np.where(found, base_weights[np.arange(len(place)), place], 0)
    kl = _kl(base, base_weights, aligned, _weights(aligned_top_logprobs[:, :KEPT]))
    rank = np.where(found & (place < JUDGED), place, JUDGED)
    return Published(rank.astype(np.int32), probability.astype(np.float32), kl.astype(np.float32))


def _kl(
    base: I32, base_weights: NDArray[np.float64], aligned: I32, aligned_weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[N] over the strings that both tens have."""
    kl = np.zeros(len(base))
    base, aligned = base[:, :JUDGED], aligned[:, :JUDGED]
    for j in range(base.shape[1]):
        match = aligned == base[:, j : j + 1]  # [N, 10]
        repeated = (base[:, :j] == base[:, j : j + 1]).any(axis=1)
        rows = np.flatnonzero(match.any(axis=1) & ~repeated)
        p, q = base_weights[rows, j], aligned_weights[rows, match[rows].argmax(axis=1)]
        held = (p > 0) & (q > 0)  # a weight can be too small for a float
        kl[rows[held]] += p[held] * np.log(p[held] / q[held])
    return kl


def _codes(ids: I32, text: Callable[[int], str], codes: dict[str, int]) -> I32:
    """[N, k] numbers that are equal where the strings of the ids are; `codes` is added to."""
    table = np.zeros(ids.max(initial=-1) + 1, np.int32)
    for i in np.flatnonzero(np.bincount(ids.ravel())).tolist():
        table[i] = codes.setdefault(text(i), len(codes))
    return table[ids]


def _weights(logprobs: F32) -> NDArray[np.float64]:
    """[N, k] probabilities as shares of those that are kept."""
    weights = np.exp(logprobs.astype(np.float64))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _check_shapes(*arrays: NDArray[Any]) -> None:
    base_ids, base, aligned_ids, aligned = (a.shape for a in arrays)
    together = base_ids == base and aligned_ids == aligned and base[:1] == aligned[:1]
    if not together or min(len(base), len(aligned)) != 2 or 0 in (base[1], aligned[1]):
        raise ParameterError(
            f"ids and log-probabilities of shapes {base_ids} and {base} (base), {aligned_ids} and"
            f" {aligned} (aligned): each model needs [N, k] of both, with one N and k of at least 1"
        )
