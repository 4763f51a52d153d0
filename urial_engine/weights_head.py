"""The head of a checkpoint goes out alone, as a model of no layers: every backend can open it.

Enough to compare hidden states that were computed before. A head may keep only some of its rows,
in an order of the caller's, so that two vocabularies agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .weights import EMBEDDING, FINAL_NORM, HEAD, Weights, parameter_shapes


class HeadWeights(Weights):
    """`rows`: token ids whose rows are kept, each once, in this order; None keeps all as they are.

    To a backend these are the weights of a model with a tied head, of which `config` says so.
    """

    def __init__(self, whole: Weights, rows: NDArray[np.int32] | None = None) -> None:
        count = whole.config.vocab_size
        self._rows = np.arange(count) if rows is None else rows
        self._place = np.full(count, -1)  # where each row of the checkpoint goes
        self._place[self._rows] = np.arange(len(self._rows))
        self._source = EMBEDDING if whole.tied else HEAD
        self._whole = whole
        self.checkpoint, self.dtype = whole.checkpoint, whole.dtype
        self.config = replace(whole.config, num_layers=0, vocab_size=len(self._rows))
        self.tied, self.tied_reason = True, "a head alone"
        self.shapes = parameter_shapes(self.config, tied=True)

    def read(self, name: str) -> NDArray[Any]:
        """See `Weights`."""
        if name == FINAL_NORM:
            return self.checkpoint.tensor(FINAL_NORM)
        return self.checkpoint.tensor(self._source)[self._rows]

    def load(self, take: Callable[[str, int, NDArray[Any]], None], threads: int) -> None:
        """See `Weights`. One thread does it: this is a small part of a model."""
        take(FINAL_NORM, 0, self.read(FINAL_NORM))
        for first, end in self._whole._slices(self._source):
            rows = self.checkpoint.rows(self._source, first, end)
            for to, kept in _runs(rows, self._place[first:end]):
                take(EMBEDDING, to, kept)

    def finish(self) -> None:
        """See `Weights`: nothing is left to be read."""


def _runs(rows: NDArray[Any], places: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Those of the rows that have a place, in runs whose places are beside each other."""
    kept = np.flatnonzero(places >= 0)
    breaks = np.flatnonzero((np.diff(kept) != 1) | (np.diff(places[kept]) != 1)) + 1
    for run in np.split(kept, breaks) if kept.size else []:
        yield int(places[run[0]]), rows[run[0] : run[-1] + 1]
