"""Rows of a token shift go in; their measures come out, in total or by what a row belongs to.

Letters: n rows, U clusters of the bootstrap, M places that rows belong to (a range of positions, a
data set, …).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..outputs import F32, I32
from ..shift_data import CLASSES, Answer, ShiftData
from .bootstrap import F64, Band, Bootstrap, Ints, ratio, totals

SINGLE = 4  # positions before this one stand alone; from here on each range is as long as its start


@dataclass(frozen=True, slots=True)
class Rows:
    """What the summaries need of n rows. `values`: the measures that are averaged, by name."""

    answer: I32  # [n]
    cluster: Ints  # [n]
    position: I32  # [n]
    token_id: I32  # [n]
    rank: I32  # [n] the base model's, from 1
    shift_class: NDArray[np.int8]  # [n]
    values: dict[str, NDArray[np.generic]]  # [n] each

    @classmethod
    def of(cls, data: ShiftData, rows: Ints, cluster: Ints) -> Rows:
        """`rows` [n] of the data; `cluster` has an entry for each of its answers."""
        rank, classes = data.base_rank[rows], data.shift_class[rows]
        values: dict[str, NDArray[np.generic]] = {
            **{name: classes == i for i, name in enumerate(CLASSES)},
            "kl_aligned_base": data.kl_aligned_base[rows],
            "kl_base_aligned": data.kl_base_aligned[rows],
            "base_probability": _exp(data.base_logprob[rows]),
            "aligned_probability": _exp(data.aligned_logprob[rows]),
            "base_logprob": data.base_logprob[rows],
            "base_entropy": data.base_entropy[rows],
            "aligned_entropy": data.aligned_entropy[rows],
            "mean_reciprocal_rank": 1 / rank,
        }
        answer = data.answer[rows]
        return cls(
            answer, cluster[answer], data.position[rows], data.token_id[rows], rank, classes, values
        )


def clusters(answers: Sequence[Answer]) -> Ints:
    """[A] a number for each answer, the same for all answers to one query."""
    numbers = {key: i for i, key in enumerate(dict.fromkeys(a.id for a in answers))}
    return np.array([numbers[a.id] for a in answers], np.int64)


def ranges(last: int) -> list[tuple[int, int]]:
    """The ranges of positions, end exclusive, that hold everything up to `last`: 0, 1, 2, 3, then
    twice as long each time, since early positions are where the models differ most."""
    found = [(p, p + 1) for p in range(min(SINGLE, last + 1))]
    while found and found[-1][1] <= last:
        found.append((found[-1][1], 2 * found[-1][1]))
    return found


def which_range(position: Ints, found: Sequence[tuple[int, int]]) -> Ints:
    """[n] the number of the range that each position lies in."""
    return np.searchsorted([start for start, _ in found], position, side="right") - 1


def bands(
    boot: Bootstrap,
    cluster: Ints,
    place: Ints,
    places: int,
    values: Mapping[str, NDArray[np.generic]],
) -> list[dict[str, Band]]:
    """[M] the mean of each of `values` [n] over the rows of each place, by name."""
    size = totals(boot.clusters, places, cluster, place, None)
    told: list[dict[str, Band]] = [{} for _ in range(places)]
    for name, column in values.items():
        total = totals(boot.clusters, places, cluster, place, column)
        for one, band in zip(told, boot.bands(ratio, total, size, support=size), strict=True):
            one[name] = band
    return told


def measures(boot: Bootstrap, rows: Rows, place: Ints, places: int) -> list[dict[str, Any]]:
    """[M] everything about the rows of each place: counts, the bands of all values, median rank."""
    sizes = counts(rows.answer, place, places)
    medians = [_median(rows.rank[place == i]) for i in range(places)]
    found = bands(boot, rows.cluster, place, places, rows.values)
    return [
        {**size, **one, "median_rank": middle}
        for size, one, middle in zip(sizes, found, medians, strict=True)
    ]


def counts(answer: Ints, place: Ints, places: int) -> list[dict[str, int]]:
    """[M] how many rows each place has, and from how many answers."""
    tokens = np.bincount(place, minlength=places)
    pairs = np.unique(answer.astype(np.int64) * places + place)
    answers = np.bincount(pairs % places, minlength=places)
    return [
        {"tokens": t, "answers": a} for t, a in zip(tokens.tolist(), answers.tolist(), strict=True)
    ]


def _median(rank: I32) -> float | None:
    return float(np.median(rank)) if rank.size else None


def _exp(logprob: F32) -> F64:
    probability: F64 = np.exp(logprob.astype(float))
    return probability
