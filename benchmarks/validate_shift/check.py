"""What a token shift must find in a planted style: plain arrays go in, figures and verdicts leave.

The thresholds were fixed with seed 0 before any other seed was run; what was mended since is told
in docs/token-shift-validation.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Set
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer[Any]]
OWN, FIRST, REST = 0, 1, 2  # a token that is the model's own, the first of a phrase, a later one
POSITIONS = (0, 4, 8, 16, 32, 64, 128)  # from, to
EARLY = 8  # positions: an opening and the beginning of what follows
LISTED = 12


class Measured(NamedTuple):
    """The held-out answers, a row a token."""

    answer: Ints  # [N] which answer
    position: Ints  # [N] from 0
    token_id: Ints  # [N]
    base_rank: Ints  # [N] 1 = the base's own choice
    planted: Ints  # [N] OWN, FIRST or REST


class Check(NamedTuple):
    name: str
    value: float | None  # None: nothing to judge, which is no success
    sign: str
    threshold: float

    @property
    def passed(self) -> bool:
        if self.value is None:
            return False
        return self.value >= self.threshold if self.sign == ">=" else self.value <= self.threshold


def most_shifted(measured: Measured) -> list[tuple[int, int]]:
    """(token id, how often its rank was above 3), by falling count, then rising id."""
    counts = Counter(measured.token_id[measured.base_rank > 3].tolist())
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def figures(
    measured: Measured, firsts: Set[int], words: Set[int], marks: Set[int]
) -> dict[str, Any]:
    """`firsts`: the ids that begin a phrase. `words` and `marks`: the phrases' ids, and those of
    them that are punctuation, which have no place in the head of the list that words are sought in.
    Shares are between 0 and 1, None where there is nothing to take a share of."""
    m, own = measured, measured.planted == OWN
    shifted, first = m.base_rank > 3, m.base_rank == 1
    middle = ~in_the_closing(measured)
    late = own & (progress_in_answer(measured) >= 2 / 3)
    early = own & (progress_in_answer(measured) < 1 / 3)
    listed = most_shifted(measured)
    leading = set([token for token, _ in listed if token not in marks][: len(words)])
    answers = np.unique(m.answer)
    complete = [firsts <= set(m.token_id[(m.answer == a) & ~own].tolist()) for a in answers]
    return {
        "answers": len(answers),
        "tokens": len(m.answer),
        "own_tokens": int(own.sum()),
        "complete": share(np.array(complete, bool)),
        "firsts_shifted": share(shifted[m.planted == FIRST]),
        "precision": len(leading & words) / len(words),
        "recall": len(leading & firsts) / len(firsts),
        "own_unshifted": share(first[own]),
        "own_marginal": share((~first & ~shifted)[own]),
        "own_shifted": share(shifted[own]),
        "shifted_early": share(shifted[middle & (m.position < EARLY)]),
        "shifted_later": share(shifted[middle & (m.position >= EARLY)]),
        "own_changed_early": share(~first[early]),
        "own_changed_late": share(~first[late]),
        "by_position": list(_by_position(measured)),
        "most_shifted": listed[:LISTED],
    }


def control_figures(measured: Measured) -> dict[str, Any]:
    """Of the base against itself: what is of rank 1, and how many phrases it says by itself."""
    phrases = int(np.sum(measured.planted == FIRST))
    return {"unshifted": share(measured.base_rank == 1), "phrases": phrases}


def checks(found: dict[str, Any], control: dict[str, Any], exact: dict[str, float]) -> list[Check]:
    """`found`: `figures` of the tuned model. `control`: `control_figures` of the base. `exact`:
    `exact.differences` of the two."""
    fade = quotient(found, "shifted_later", "shifted_early")
    own_fade = quotient(found, "own_changed_late", "own_changed_early")
    return [
        Check("answers with the whole style", found["complete"], ">=", 0.8),
        Check("planted phrases in the base's own answers", control["phrases"], "<=", 0),
        Check("base against itself: unshifted", control["unshifted"], ">=", 1.0),
        Check("first tokens of phrases: shifted", found["firsts_shifted"], ">=", 0.9),
        Check("head of the most shifted list: planted", found["precision"], ">=", 0.8),
        Check("first tokens in the head of the list", found["recall"], ">=", 1.0),
        Check("not planted: unshifted", found["own_unshifted"], ">=", 0.8),
        Check("shifted: later positions over the first 8", fade, "<=", 0.5),
        Check("not planted and not the base's choice: last third over first", own_fade, "<=", 1.0),
        Check("ranks and ties that differ from full logits", exact["ranks"], "<=", 0),
        Check("KL off full fp64 logits, nats", exact["kl"], "<=", 1e-5),
    ]


def share(chosen: NDArray[np.bool_]) -> float | None:
    return float(chosen.mean()) if chosen.size else None


def quotient(found: dict[str, Any], above: str, below: str) -> float | None:
    """None where a share is missing or there is nothing to divide by."""
    return found[above] / found[below] if found[below] and found[above] is not None else None


def in_the_closing(m: Measured) -> NDArray[np.bool_]:
    """[N] the planted tokens with which an answer ends."""
    closing = np.zeros(len(m.answer), bool)
    for a in np.unique(m.answer):
        rows = np.flatnonzero(m.answer == a)
        tail = np.logical_and.accumulate(m.planted[rows][::-1] != OWN)[::-1]
        closing[rows] = tail
    return closing


def progress_in_answer(m: Measured) -> NDArray[np.float64]:
    """[N] position over the answer's length, from 0 to below 1."""
    answers, which = np.unique(m.answer, return_inverse=True)
    return m.position / np.bincount(which, minlength=len(answers))[which]


def _by_position(m: Measured) -> Iterator[dict[str, Any]]:
    own = m.planted == OWN
    for start, end in zip(POSITIONS, (*POSITIONS[1:], None), strict=True):
        here = (m.position >= start) & (m.position < (np.inf if end is None else end))
        shifted = m.base_rank > 3
        yield {
            "from": start,
            "to": end,
            "tokens": int(here.sum()),
            "shifted": share(shifted[here]),
            "own_tokens": int((here & own).sum()),
            "own_shifted": share(shifted[here & own]),
            "own_unshifted": share(m.base_rank[here & own] == 1),
        }
