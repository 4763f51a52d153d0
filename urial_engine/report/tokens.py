"""Tokens or words with their classes go in; those that are shifted more than others come out."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..shift_data import Answer
from .bootstrap import F64, Band, Bootstrap, Ints, totals

CANDIDATES = 8  # times as many as are asked for get an interval
COLUMNS = 64  # candidates at a time: bounds the memory, changes no result
# In a shadow of the text: w for what a word is made of, S and s for a token such as </s>.
WORD = re.compile(r"Ss*|w+(?:['-]w+)*")
SPECIAL = re.compile(r"<[^\s<>]+>")


def most_shifted(
    boot: Bootstrap, item: Ints, shifted: NDArray[np.bool_], cluster: Ints, most: int
) -> list[tuple[int, dict[str, Any]]]:
    """At most `most` of the items that are shifted at least once: (item, its numbers).

    `item` [n] what stands at each place, a number; `shifted` [n]; `cluster` [n] of the bootstrap.
    `ratio` is the share of an item's occurrences that are shifted; `lift` its share of all shifted
    places over its share of all places: 1 where it is shifted as often as others are.

    The order is by count · ln(lift), which is the item's term in the KL divergence of what stands
    at shifted places from what stands anywhere, times the number of shifted places. The lift in it
    is the lower end of the interval, and at least 1: a word that is only frequent weighs nothing,
    however often it is shifted, and neither does what was seen once or in one answer, since nothing
    says how far to trust it. Those that weigh nothing follow by the same term of the estimate,
    and those without an interval come last. Intervals are made for the `8 · most` items that lead
    by the estimate.
    """
    occurrences = np.bincount(item)
    count = np.bincount(item[shifted], minlength=len(occurrences))
    found = np.flatnonzero(count)
    share = count[found] / occurrences[found]
    weight = np.zeros(len(count))
    weight[found] = count[found] * np.log(share * (item.size / max(count.sum(), 1)))
    found = found[np.argsort(-weight[found], kind="stable")][: CANDIDATES * most]
    told = []
    for i in range(0, len(found), COLUMNS):
        some = found[i : i + COLUMNS]
        both = zip(*_ratio_and_lift(boot, some, item, shifted, cluster), strict=True)
        for key, (own, lift) in zip(some.tolist(), both, strict=True):
            sure = count[key] * math.log(max(lift["low"] or 1.0, 1.0))
            sizes = {"count": int(count[key]), "occurrences": int(occurrences[key])}
            order = (-sure, lift["low"] is None, -weight[key], key)
            told.append((order, {**sizes, "ratio": own, "lift": lift}))
    told.sort(key=lambda pair: pair[0])
    return [(order[-1], one) for order, one in told[:most]]


def _ratio_and_lift(
    boot: Bootstrap, some: Ints, item: Ints, shifted: NDArray[np.bool_], cluster: Ints
) -> tuple[list[Band], list[Band]]:
    column = np.full(int(item.max()) + 1, -1)
    column[some] = np.arange(len(some))
    column = column[item]  # [n] -1 for all others
    own = column >= 0

    def total(rows: NDArray[np.bool_], columns: Ints, width: int) -> F64:
        return totals(boot.clusters, width, cluster[rows], columns[rows], None)

    everywhere = np.zeros_like(column)
    occurrences = total(own, column, len(some))
    count = total(own & shifted, column, len(some))
    places, all_shifted = total(everywhere == 0, everywhere, 1), total(shifted, everywhere, 1)
    support = np.hstack([occurrences, occurrences])
    both = boot.bands(_both, count, occurrences, all_shifted, places, support=support)
    return both[: len(some)], both[len(some) :]


def _both(count: F64, occurrences: F64, all_shifted: F64, places: F64) -> F64:
    """The ratios, then the lifts."""
    own = count / occurrences
    return np.concatenate([own, own / (all_shifted / places)], axis=-1)


class Spelled(NamedTuple):
    """An answer's text and the tokens that it is made of.

    A token without text is the beginning of a character that a later token completes. It belongs
    with that token, and the first of them is where the choice was made.
    """

    text: str
    first_of_character: list[int]
    first_of_token: list[int]


def spell(pieces: Sequence[str]) -> Spelled:
    characters: list[int] = []
    tokens: list[int] = []
    first = 0
    for i, piece in enumerate(pieces):
        tokens.append(first)
        if piece:
            characters += [first] * len(piece)
            first = i + 1
    return Spelled("".join(pieces), characters, tokens)


def words(pieces: Sequence[str]) -> Iterator[tuple[str, int]]:
    """(word, its first token) for the words of an answer's tokens.

    A word is a run of letters, marks and digits, with apostrophes and hyphens inside: white space
    and punctuation end it wherever tokens do. It is case-folded. A token such as `</s>` is a word.
    """
    spelled = spell(pieces)
    kinds = str.maketrans({c: _kind(c) for c in set(spelled.text)})
    shadow = "".join(
        "S".ljust(len(piece), "s") if SPECIAL.fullmatch(piece) else piece.translate(kinds)
        for piece in pieces
    )
    for match in WORD.finditer(shadow):
        word = spelled.text[match.start() : match.end()].replace("’", "'")
        yield word.casefold(), spelled.first_of_character[match.start()]


def _kind(character: str) -> str:
    if unicodedata.category(character)[0] in "LMN" or character in "\u200c\u200d":
        return "w"  # the two joiners shape letters inside words of many scripts
    return {"’": "'", "'": "'", "-": "-"}.get(character, " ")


class Words(NamedTuple):
    """The words of all answers: W of them, of which `names` holds each once."""

    names: list[str]
    word: Ints  # [W] index into `names`
    row: Ints  # [W] of its first token, counted over the tokens of all answers


def all_words(answers: Sequence[Answer]) -> Words:
    names: dict[str, int] = {}
    word: list[int] = []
    row: list[int] = []
    start = 0
    for answer in answers:
        for name, first in words(answer.pieces):
            word.append(names.setdefault(name, len(names)))
            row.append(start + first)
        start += len(answer.token_ids)
    return Words(list(names), np.array(word, np.int64), np.array(row, np.int64))
