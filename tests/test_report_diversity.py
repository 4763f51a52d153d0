"""How varied several answers to a query are, against definitions computed again by hand."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from urial_engine.errors import ParameterError
from urial_engine.report.diversity import DEFINITIONS, diversity, words
from urial_engine.shift_data import Answer


def answer(text: str, query: str | int = "q", tokens: int | None = None) -> Answer:
    ids = list(range(len(text) if tokens is None else tokens))
    return Answer(query, "?", text, ids, [""] * len(ids), "generated", {}, {})


def measured(*texts: str, tokens: int | None = None) -> dict[str, Any]:
    """The measures of one query."""
    found = diversity([answer(text, tokens=tokens) for text in texts], resamples=2)
    assert found is not None
    (row,) = found["by_query"]
    return {name: row[name] for name in DEFINITIONS}


def test_by_hand() -> None:
    row = measured("A red boat.", "a RED car")
    assert row["words"] == 3
    assert row["tokens"] == (11 + 9) / 2
    assert measured("A red boat.", "a RED car", tokens=4)["tokens"] == 4
    assert row["jaccard"] == 2 / 4  # a, red of a, red, boat, car
    assert row["distinct_1"] == 4 / 6
    assert row["distinct_2"] == 3 / 4  # "a red" twice
    assert row["distinct_3"] == 1
    assert row["identical"] == 0


def test_three_samples_have_three_pairs() -> None:
    row = measured("x y", "x y", "z")
    assert row["identical"] == pytest.approx(1 / 3)
    assert row["jaccard"] == pytest.approx(1 / 3)
    assert row["distinct_1"] == 3 / 5
    assert row["distinct_2"] == 1 / 2
    assert row["distinct_3"] is None


def bleu(text: str, others: list[str]) -> float:
    """Papineni et al. 2002 for texts of plain words, orders up to the text's own length."""
    split, against = text.split(), [other.split() for other in others]
    logs, zeros = 0.0, 0
    orders = min(4, len(split))
    for n in range(1, orders + 1):
        runs = Counter(tuple(split[i : i + n]) for i in range(len(split) - n + 1))
        most: Counter[tuple[str, ...]] = Counter()
        for other in against:
            most |= Counter(tuple(other[i : i + n]) for i in range(len(other) - n + 1))
        hits = (runs & most).total()
        if not hits:  # exponential smoothing: a half, a quarter, … of one hit
            zeros += 1
        logs += math.log((hits or 0.5**zeros) / runs.total())
        if n == 1 and not hits:
            return 0.0
    nearest = min((abs(len(o) - len(split)), len(o)) for o in against)[1]
    return math.exp(logs / orders + min(0.0, 1 - nearest / len(split)))


@pytest.mark.parametrize(
    "texts",
    [
        ["the cat sat on the mat", "the cat sat on a mat", "a dog stood on the long mat"],
        ["one two three four five", "five four three two one"],
        ["a b", "a b c d e f", "a"],
        ["the same few words", "the same few words"],
        ["nothing shared", "at all"],
    ],
)
def test_self_bleu(texts: list[str]) -> None:
    each = [bleu(text, texts[:i] + texts[i + 1 :]) for i, text in enumerate(texts)]
    assert measured(*texts)["self_bleu"] == pytest.approx(sum(each) / len(each), abs=1e-9)


def test_empty_answers() -> None:
    both = measured("", " \n")
    assert both == {
        "tokens": 1,
        "words": 0,
        "jaccard": 1,
        "distinct_1": None,
        "distinct_2": None,
        "distinct_3": None,
        "self_bleu": None,
        "identical": 0,
    }
    assert measured("", "")["identical"] == 1
    one = measured("", "a b c d", "a b c d")
    assert one["self_bleu"] == 1
    assert one["jaccard"] == pytest.approx(1 / 3)


def test_words() -> None:
    text = "Don\u2019t — STOP! It's nai\u0308ve; Stra\u00dfe 3.14 'quoted' \u6f22\u5b57 \u0130x"
    wanted = "don't|stop|it's|na\u00efve|strasse|3|14|quoted|\u6f22\u5b57|i\u0307x"
    assert words(text) == wanted.split("|")
    assert words("?! \n") == []
    assert words("don't cafe\u0301") == words("DON\u2019T caf\u00e9")


def test_what_is_no_set_of_samples() -> None:
    assert diversity([]) is None
    assert diversity([answer("a", 1), answer("a", "1")]) is None


def test_queries_with_one_answer_are_left_out() -> None:
    found = diversity([answer("a", 2), answer("b", "x"), answer("c", 2), answer("d", 1)])
    assert found is not None
    assert (found["queries"], found["samples"]) == (1, 2)
    assert [(row["id"], row["samples"]) for row in found["by_query"]] == [(2, 2)]
    assert found["overall"]["jaccard"] == {"value": 0, "low": None, "high": None}
    assert set(found["overall"]) == set(DEFINITIONS) < set(found["definitions"])


def test_groups_take_the_place_of_ids() -> None:
    answers = [answer("a", 1), answer("b", 2), answer("a", 3)]
    found = diversity(answers, ["x", "y", "x"])
    assert found is not None
    assert found["by_query"][0]["id"] == "x"
    assert found["by_query"][0]["identical"] == 1
    with pytest.raises(ParameterError, match="2 groups for 3 answers"):
        diversity(answers, ["x", "y"])


def test_the_mean_is_over_queries_not_over_samples() -> None:
    """And a query that a measure says nothing about does not count in it."""
    answers = [answer("a", 1)] * 5 + [answer("a", 2), answer("b", 2)] + [answer("", 3)] * 2
    found = diversity(answers)
    assert found is not None
    assert found["overall"]["identical"]["value"] == pytest.approx(2 / 3)
    assert found["overall"]["distinct_1"]["value"] == pytest.approx((1 / 5 + 1) / 2)
    assert found["overall"]["distinct_1"]["low"] is not None
    assert found["overall"]["distinct_2"] == {"value": None, "low": None, "high": None}
    one = diversity([answer("a b", 1), answer("a c", 1), *answers[5:7]])
    assert one is not None
    assert one["overall"]["distinct_2"] == {"value": 1, "low": None, "high": None}
    json.dumps(found, allow_nan=False)


def test_the_interval_covers_and_is_the_same_again() -> None:
    """Sixty queries whose two answers are equal with a probability of 0.3, forty times."""
    rng, held = np.random.default_rng(5), 0
    for trial in range(40):
        equal = rng.random(60) < 0.3
        answers = [
            answer("a" if same or not sample else "b", i)
            for i, same in enumerate(equal)
            for sample in (0, 1)
        ]
        found = diversity(answers, resamples=200, seed=trial)
        assert found is not None
        band = found["overall"]["identical"]
        assert band["value"] == pytest.approx(equal.mean())
        held += band["low"] <= 0.3 <= band["high"]
        # Twice the standard deviation of a mean of sixty, 0.06, to each side.
        assert 0.1 < band["high"] - band["low"] < 0.35
    assert held >= 34
    assert diversity(answers, resamples=200, seed=39) == found
    assert diversity(answers, resamples=200, seed=1) != found


@given(st.lists(st.text(max_size=12), min_size=2, max_size=5))
def test_any_texts(texts: list[str]) -> None:
    row = measured(*texts)
    assert row == measured(*texts)
    for name in ("jaccard", "distinct_1", "distinct_2", "distinct_3", "self_bleu", "identical"):
        assert row[name] is None or 0 <= row[name] <= 1
    backwards = measured(*texts[::-1])
    assert {n: v for n, v in row.items() if v is not None} == pytest.approx(
        {n: v for n, v in backwards.items() if v is not None}
    )


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ParameterError, match=r"pip install 'urial-engine\[analysis\]'"):
        diversity([answer("a"), answer("b")])
    assert diversity([answer("a")]) is None
