"""Totals by cluster go in; estimates with intervals from resampled clusters come out.

The tokens of an answer depend on each other, and so do the answers to one query. So what is drawn,
with replacement, is a query with all of its tokens (Efron and Tibshirani 1993, percentile method);
an estimate is a function of sums, computed again from the sums of what was drawn.
Letters: U clusters, R resamples, M estimates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from ..errors import ParameterError

F64 = NDArray[np.float64]
Ints = NDArray[np.signedinteger]

CONFIDENCE = 0.95
BLOCK = 256  # resamples that are multiplied at once: bounds the memory, changes no result


class Band(TypedDict):
    """An estimate and its interval; None is what cannot be estimated, since JSON has no NaN."""

    value: float | None
    low: float | None
    high: float | None


class Bootstrap:
    """One set of draws for all estimates of a summary, so that they can be compared pairwise."""

    def __init__(self, clusters: int, resamples: int, seed: int) -> None:
        if resamples < 1:
            raise ParameterError(f"resamples = {resamples} must be at least 1")
        if seed < 0:
            raise ParameterError(f"seed = {seed} must not be negative")
        random = np.random.default_rng(seed)
        self.clusters = clusters
        # [R, U] how often each was drawn. A byte is enough: 256 draws of one have no probability.
        self.draws = np.zeros((resamples, clusters), np.uint8)
        for row in self.draws if clusters else ():
            row[:] = np.bincount(random.integers(clusters, size=clusters), minlength=clusters)

    def bands(self, estimate: Callable[..., F64], *totals: F64, support: F64) -> list[Band]:
        """M estimates from totals [U, M] or [U, 1], of which `estimate` gets the sums.

        `support` [U, M] is above 0 where a cluster has anything to say about an estimate. With
        fewer than two such clusters there is no interval: what one answer says again and again is
        not certain. Draws that hold none of them leave an estimate undefined and do not count.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            values = estimate(*(total.sum(axis=0) for total in totals))
            drawn = estimate(*(self._sums(total) for total in totals))
        known = ((support > 0).sum(axis=0) > 1) & np.isfinite(drawn).any(axis=0)
        ends = np.full((2, len(values)), np.nan)
        outside = (1 - CONFIDENCE) / 2
        if known.any():
            ends[:, known] = np.nanquantile(drawn[:, known], (outside, 1 - outside), axis=0)
        return [
            Band(value=number(v), low=number(low), high=number(high))
            for v, low, high in zip(values, *ends, strict=True)
        ]

    def _sums(self, total: F64) -> F64:
        """[R, M] the sums over each resample."""
        starts = range(0, len(self.draws), BLOCK)
        return np.concatenate([self.draws[i : i + BLOCK].astype(float) @ total for i in starts])


def ratio(numerator: F64, denominator: F64) -> F64:
    """The estimate of a mean or a share: of all tokens together, not a mean over answers."""
    return numerator / denominator


def number(value: float) -> float | None:
    """For JSON, which has neither NaN nor infinity."""
    return float(value) if np.isfinite(value) else None


def totals(
    clusters: int, columns: int, cluster: Ints, column: Ints, values: NDArray[np.generic] | None
) -> F64:
    """[U, M] the sum of `values` [n], or the count without them, by cluster and column of each."""
    weights = None if values is None else values.astype(float)
    cells = np.bincount(
        cluster.astype(np.int64) * columns + column, weights, minlength=clusters * columns
    )
    return cells.reshape(clusters, columns).astype(float)
