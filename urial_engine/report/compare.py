"""Two runs, or two contexts of one, go in; what differs between them comes out.

Only the same probes are compared: answers of one id and sample whose token ids are equal. So each
token has a partner, a difference is a mean of differences (second − first), and its interval has
none of the variance that the two sides share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import ParameterError
from ..shift_data import CLASSES, ShiftData
from .bootstrap import Bootstrap, Ints, number, ratio, totals
from .measures import Rows, bands, clusters, counts, ranges, which_range
from .summary import SHIFTED, described


class _Pairs(NamedTuple):
    """The P answers that both have, by their place in each, and why others are left out."""

    first: Ints  # [P]
    second: Ints  # [P]
    left_out: dict[str, int]


def compare_runs(
    a: ShiftData,
    b: ShiftData,
    *,
    names: tuple[str, str] = ("a", "b"),
    most: int = 50,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Paired differences b − a in each context that both runs have by name, or in the only ones of
    both. `ParameterError` where no answer or no context can be paired.

    A difference is `{"a", "b", "value", "low", "high"}`: both sides over the paired tokens, and
    b − a as a band. The median rank has no interval. `class_changes[i][j]`: tokens of class i in a
    and j in b. `more_shifted` and `less_shifted`: tokens that are shifted in b and not in a
    (`gained`) more often than the other way round (`lost`), and the opposite; at most `most` of
    each, by gained − lost, with `change`, the difference of the token's shifted ratio.
    """
    own, other = [c.name for c in a.contexts], [c.name for c in b.contexts]
    common = [(name, name) for name in own if name in other]
    if not common and len(own) == len(other) == 1:
        common = [(own[0], other[0])]
    if not common:
        raise ParameterError(
            f"no context can be paired: {names[0]} has {', '.join(own)}, {names[1]} has "
            f"{', '.join(other)}; give two runs with a context of the same name"
        )
    places = [(own.index(first), other.index(second)) for first, second in common]
    return _compare(a, b, places, names, most, resamples, seed)


def compare_contexts(
    data: ShiftData,
    first: str,
    second: str,
    *,
    most: int = 50,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """As `compare_runs`, of two contexts of one run: what another prompt changes."""
    names = [c.name for c in data.contexts]
    for name in (first, second):
        if name not in names:
            raise ParameterError(f"no context {name!r}; there are {', '.join(names)}")
    place = (names.index(first), names.index(second))
    return _compare(data, data, [place], (first, second), most, resamples, seed)


def _compare(
    a: ShiftData,
    b: ShiftData,
    contexts: Sequence[tuple[int, int]],
    names: tuple[str, str],
    most: int,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    pairs = _pair(a, b, names)
    cluster = clusters([a.answers[i] for i in pairs.first])
    boot = Bootstrap(int(cluster.max()) + 1, resamples, seed)
    told = []
    for first, second in contexts:
        one = _rows(a, first, pairs.first, cluster)
        two = _rows(b, second, pairs.second, cluster)
        told.append(
            {
                "name": a.contexts[first].name,
                "a": a.contexts[first]._asdict(),
                "b": b.contexts[second]._asdict(),
                **_differences(boot, one, two, a.vocabulary, most),
            }
        )
    return {
        "names": list(names),
        "bootstrap": described(boot, resamples, seed, len(pairs.first)),
        "paired_answers": len(pairs.first),
        "left_out": pairs.left_out,
        "contexts": told,
    }


def _pair(a: ShiftData, b: ShiftData, names: tuple[str, str]) -> _Pairs:
    keys = {(answer.id, answer.sample): i for i, answer in enumerate(b.answers)}
    both = [
        (i, keys.pop((answer.id, answer.sample)))
        for i, answer in enumerate(a.answers)
        if (answer.id, answer.sample) in keys
    ]
    same = [(i, j) for i, j in both if a.answers[i].token_ids == b.answers[j].token_ids]
    full = [(i, j) for i, j in same if a.answers[i].token_ids]
    left_out = {
        f"only in {names[0]}": len(a.answers) - len(both),
        f"only in {names[1]}": len(keys),
        "other tokens": len(both) - len(same),
        "no tokens": len(same) - len(full),
    }
    if not full:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise ParameterError(
            f"no answer can be paired: {reasons}; give runs over the same answers (same ids, same "
            "token ids)"
        )
    first, second = np.array(full, np.int64).T
    return _Pairs(first, second, left_out)


def _rows(data: ShiftData, context: int, answers: Ints, cluster: Ints) -> Rows:
    """The rows of these answers [P], in their order."""
    place = np.full(len(data.answers), -1)
    place[answers] = np.arange(len(answers))
    own = np.flatnonzero((data.context == context) & (place[data.answer] >= 0))
    own = own[np.argsort(place[data.answer[own]], kind="stable")]
    of_answer = np.zeros(len(data.answers), np.int64)
    of_answer[answers] = cluster
    return Rows.of(data, own, of_answer)


def _differences(
    boot: Bootstrap, one: Rows, two: Rows, vocabulary: dict[int, str], most: int
) -> dict[str, Any]:
    found = ranges(int(one.position.max()))
    place = which_range(one.position, found)
    by_position = _measures(boot, one, two, place, len(found))
    changes = np.zeros((3, 3), np.int64)
    np.add.at(changes, (one.shift_class, two.shift_class), 1)
    more, less = _changed_tokens(boot, one, two, vocabulary, most)
    return {
        "tokens": len(place),
        "overall": _measures(boot, one, two, np.zeros_like(place), 1)[0],
        "by_position": [
            {"from": start, "to": end, **told}
            for (start, end), told in zip(found, by_position, strict=True)
        ],
        "classes": list(CLASSES),
        "class_changes": changes.tolist(),
        "more_shifted": more,
        "less_shifted": less,
    }


def _measures(
    boot: Bootstrap, one: Rows, two: Rows, place: Ints, places: int
) -> list[dict[str, Any]]:
    """[M] the differences of all measures over the rows of each place."""
    gap = {n: two.values[n].astype(float) - one.values[n].astype(float) for n in one.values}
    found = bands(boot, one.cluster, place, places, gap)
    told: list[dict[str, Any]] = []
    for i, sizes in enumerate(counts(one.answer, place, places)):
        rows = place == i
        a, b = (
            {n: number(v[rows].astype(float).mean()) for n, v in side.values.items()}
            for side in (one, two)
        )
        middle = {"a": float(np.median(one.rank[rows])), "b": float(np.median(two.rank[rows]))}
        told.append(
            {
                **sizes,
                **{name: {"a": a[name], "b": b[name], **band} for name, band in found[i].items()},
                "median_rank": {**middle, "value": middle["b"] - middle["a"]},
            }
        )
    return told


def _changed_tokens(
    boot: Bootstrap, one: Rows, two: Rows, vocabulary: dict[int, str], most: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Those that are shifted more often in the second than in the first, and less often."""
    was, now = one.shift_class == SHIFTED, two.shift_class == SHIFTED
    ids, token = np.unique(one.token_id, return_inverse=True)
    gained = np.bincount(token[now & ~was], minlength=len(ids))
    lost = np.bincount(token[was & ~now], minlength=len(ids))
    occurrences = np.bincount(token)
    net = gained - lost
    order = np.argsort(-abs(net), kind="stable")
    sides = [order[net[order] > 0][:most], order[net[order] < 0][:most]]
    gap = now.astype(float) - was

    def tell(some: Ints) -> list[dict[str, Any]]:
        column = np.full(len(ids), -1)
        column[some] = np.arange(len(some))
        place = column[token]
        rows = place >= 0
        size = totals(boot.clusters, len(some), one.cluster[rows], place[rows], None)
        total = totals(boot.clusters, len(some), one.cluster[rows], place[rows], gap[rows])
        return [
            {
                "token": vocabulary[int(ids[i])],
                "token_id": int(ids[i]),
                "occurrences": int(occurrences[i]),
                "gained": int(gained[i]),
                "lost": int(lost[i]),
                "change": band,
            }
            for i, band in zip(some, boot.bands(ratio, total, size, support=size), strict=True)
        ]

    return tell(sides[0]), tell(sides[1])
