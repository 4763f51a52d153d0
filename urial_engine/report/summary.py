"""A `ShiftData` goes in; the summary of it, ready for JSON, comes out.

Every estimate is a band, `{"value", "low", "high"}`: the value over all tokens together with the
interval of `bootstrap`. None stands for what cannot be estimated.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ParameterError
from ..shift_data import CLASSES, Published, ShiftData
from .bootstrap import CONFIDENCE, F64, Band, Bootstrap, Ints, number, ratio, totals
from .lexicon import Lexicon
from .measures import Rows, bands, clusters, counts, measures, ranges, which_range
from .tokens import Words, all_words, most_shifted

NO_DATASET = "(none)"
SHIFTED = CLASSES.index("shifted")


class _Text(NamedTuple):
    """What is the same in every context. Letters: T tokens of all answers, in order."""

    cluster: Ints  # [A]
    groups: tuple[str, ...]
    group: NDArray[np.int8]  # [T] index into `groups`
    words: Words


def summarize(
    data: ShiftData,
    *,
    most: int = 50,
    resamples: int = 1000,
    seed: int = 0,
    lexicon: Lexicon | None = None,
) -> dict[str, Any]:
    """Class ratios and other measures in total, by position, data set and answer; the tokens and
    words that are shifted most, at most `most` of each (order: `tokens.most_shifted`); the groups
    of the lexicon; and, where the run has them, the published code's conventions beside the exact.

    Answers to one query are drawn together by the bootstrap, so with several samples a query its
    `over` is "queries".
    """
    if most < 1:
        raise ParameterError(f"most = {most} must be at least 1")
    lexicon = lexicon or Lexicon.default()
    cluster = clusters(data.answers)
    boot = Bootstrap(int(cluster.max(initial=-1)) + 1, resamples, seed)
    groups = [lexicon.groups(a.pieces) for a in data.answers]
    group = np.concatenate([*groups, np.zeros(0, np.int8)])
    text = _Text(cluster, lexicon.names, group, all_words(data.answers))
    return {
        "answers": len(data.answers),
        "empty_answers": sum(not a.token_ids for a in data.answers),
        "tokens": len(text.group),
        "sources": dict(sorted(Counter(a.source for a in data.answers).items())),
        "datasets": dict(sorted(Counter(_datasets(data)).items())),
        "bootstrap": described(boot, resamples, seed, len(data.answers)),
        "most": most,
        "lexicon": lexicon.about,
        "contexts": [_context(data, i, boot, text, most) for i in range(len(data.contexts))],
        "published_ratios": None,
        "diversity": None,
    }


def described(boot: Bootstrap, resamples: int, seed: int, answers: int) -> dict[str, Any]:
    """How the intervals were made."""
    over = "answers" if boot.clusters == answers else "queries"
    return {"resamples": resamples, "confidence": CONFIDENCE, "seed": seed, "over": over}


def _datasets(data: ShiftData) -> list[str]:
    return [a.dataset or NO_DATASET for a in data.answers]


def _context(
    data: ShiftData, index: int, boot: Bootstrap, text: _Text, most: int
) -> dict[str, Any]:
    at = np.flatnonzero(data.context == index)  # [T] all tokens, in the answers' order
    rows = Rows.of(data, at, text.cluster)
    assert len(at) == len(text.group), "a context holds each answer's tokens once"
    shifted, word = rows.shift_class == SHIFTED, text.words
    tokens = most_shifted(boot, rows.token_id, shifted, rows.cluster, most)
    words = most_shifted(boot, word.word, shifted[word.row], rows.cluster[word.row], most)
    return {
        **data.contexts[index]._asdict(),
        "tokens": len(at),
        "overall": measures(boot, rows, np.zeros_like(at), 1)[0],
        "by_position": by_position(boot, rows),
        "by_dataset": _by_dataset(boot, rows, data),
        "by_answer": _by_answer(rows, data),
        "most_shifted": [
            {"token": data.vocabulary[key], "token_id": key, **one} for key, one in tokens
        ],
        "most_shifted_words": [{"word": word.names[key], **one} for key, one in words],
        "groups": _groups(boot, rows, text),
        "published": data.published and _published(boot, rows, data.published, at),
    }


def by_position(boot: Bootstrap, rows: Rows) -> list[dict[str, Any]]:
    found = ranges(int(rows.position.max(initial=-1)))
    told = measures(boot, rows, which_range(rows.position, found), len(found))
    return [{"from": a, "to": b, **one} for (a, b), one in zip(found, told, strict=True)]


def _by_dataset(boot: Bootstrap, rows: Rows, data: ShiftData) -> list[dict[str, Any]]:
    """Answers without a data set are one of their own, where others have one."""
    own = _datasets(data)
    names = sorted(set(own))
    if names in ([], [NO_DATASET]):
        return []
    place = np.array([names.index(name) for name in own])[rows.answer]
    told = measures(boot, rows, place, len(names))
    # All answers of the data set, as everywhere else where they are counted: the empty ones too.
    return [
        {"dataset": name, **one, "answers": own.count(name)}
        for name, one in zip(names, told, strict=True)
    ]


def _by_answer(rows: Rows, data: ShiftData) -> list[dict[str, Any]]:
    names = (*CLASSES, "kl_aligned_base")
    size = np.bincount(rows.answer, minlength=len(data.answers))
    sums = {n: np.bincount(rows.answer, rows.values[n], minlength=len(size)) for n in names}
    return [
        {
            "id": answer.id,
            "sample": answer.sample,
            "tokens": int(size[i]),
            **{name: number(sums[name][i] / size[i]) if size[i] else None for name in names},
        }
        for i, answer in enumerate(data.answers)
    ]


def _groups(boot: Bootstrap, rows: Rows, text: _Text) -> list[dict[str, Any]]:
    shifted = rows.shift_class == SHIFTED
    shares = _shares(boot, text, rows.cluster, slice(None))
    of_shifted = _shares(boot, text, rows.cluster, shifted)
    classes = {name: rows.values[name] for name in CLASSES}
    found = bands(boot, rows.cluster, text.group, len(text.groups), classes)
    sizes = counts(rows.answer, text.group, len(text.groups))
    return [
        {
            "group": name,
            "tokens": sizes[i]["tokens"],
            "share": shares[i],
            **found[i],
            "share_of_shifted": of_shifted[i],
        }
        for i, name in enumerate(text.groups)
    ]


def _shares(
    boot: Bootstrap, text: _Text, cluster: Ints, rows: NDArray[np.bool_] | slice
) -> list[Band]:
    """The share of each group among these rows."""
    own = totals(boot.clusters, len(text.groups), cluster[rows], text.group[rows], None)
    everything: F64 = own.sum(axis=1, keepdims=True)
    support = np.broadcast_to(everything, own.shape)
    return boot.bands(ratio, own, everything, support=support)


def _published(boot: Bootstrap, rows: Rows, published: Published, at: Ints) -> dict[str, Any]:
    """The published code's figures and the exact ones, over those of the rows, which stand `at`
    these places, that both have.

    Its rank is that of the aligned model's first choice, from 0, in the base's first ten: 0 is
    unshifted, 1 and 2 marginal, the rest (10 = not among them) shifted. `difference` is published −
    exact. `agreement.counts[i][j]`: rows of exact class i and published class j.
    """
    there = np.flatnonzero(published.rank[at] >= 0)
    at = at[there]
    classes = np.digitize(published.rank[at], (1, 3))
    theirs = {name: classes == i for i, name in enumerate(CLASSES)} | {
        "kl_base_aligned": published.kl[at],
        "base_probability": published.probability[at],
    }
    ours = {name: rows.values[name][there] for name in theirs}
    pair = zip(theirs.items(), ours.values(), strict=True)
    gap = {name: a.astype(float) - b.astype(float) for (name, a), b in pair}
    exact = rows.shift_class[there].astype(np.int64)
    same = {"share": exact == classes}

    def means(values: dict[str, Any]) -> dict[str, Band]:
        return bands(boot, rows.cluster[there], np.zeros_like(there), 1, values)[0]

    return {
        "tokens": len(there),
        "without_counterpart": len(rows.rank) - len(there),
        "published": means(theirs),
        "exact": means(ours),
        "difference": means(gap),
        "agreement": {
            "classes": list(CLASSES),
            "counts": np.bincount(3 * exact + classes, minlength=9).reshape(3, 3).tolist(),
            **means(same),
        },
    }
