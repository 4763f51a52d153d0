"""Comparisons against loops over the pairs, and what cannot be paired."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.shifts import made_shift
from urial_engine.errors import ParameterError
from urial_engine.report.compare import compare_contexts, compare_runs
from urial_engine.report.summary import summarize
from urial_engine.shift_data import ARRAYS, Context, ShiftData


def again(data: ShiftData, seed: int, **changes: Any) -> ShiftData:
    """The same answers measured by other models."""
    random = np.random.default_rng(seed)
    n = len(data.answer)
    rank = np.where(random.random(n) < 0.3, random.geometric(0.2, n), 1).astype(np.int32)
    kl = random.exponential(2.0, n).astype(np.float32)
    return replace(data, base_rank=rank, kl_aligned_base=kl, **changes)


def reversed_answers(data: ShiftData) -> ShiftData:
    """The same run with its answers, and their rows, the other way round."""
    last = len(data.answers) - 1
    order = np.argsort(last - data.answer, kind="stable")
    arrays = {name: getattr(data, name)[order] for name in ARRAYS}
    arrays["answer"] = last - arrays["answer"]
    return replace(data, answers=data.answers[::-1], **arrays)


def without(data: ShiftData, answer: int) -> ShiftData:
    rows = data.answer != answer
    arrays = {name: getattr(data, name)[rows] for name in ARRAYS}
    arrays["answer"] = arrays["answer"] - (arrays["answer"] > answer)
    kept = [a for i, a in enumerate(data.answers) if i != answer]
    return replace(data, answers=kept, **arrays)


def test_differences_are_those_of_the_two_summaries() -> None:
    a = made_shift(9, 40, seed=1)
    b = again(a, seed=7)
    told = compare_runs(a, reversed_answers(b), names=("old", "new"))
    json.dumps(told, allow_nan=False)
    assert told["names"] == ["old", "new"]
    assert told["paired_answers"] == 7
    reasons = {"only in old": 0, "only in new": 0, "other tokens": 0, "no tokens": 2}
    assert told["left_out"] == reasons
    sides = zip(summarize(a)["contexts"], summarize(b)["contexts"], strict=True)
    for context, (one, two) in zip(told["contexts"], sides, strict=True):
        assert context["name"] == one["name"]
        assert context["tokens"] == one["tokens"]
        check(context["overall"], one["overall"], two["overall"])
        assert len(context["by_position"]) == len(one["by_position"])
        for place, first, second in zip(
            context["by_position"], one["by_position"], two["by_position"], strict=True
        ):
            assert (place["from"], place["to"]) == (first["from"], first["to"])
            check(place, first, second)


def check(told: dict[str, Any], one: dict[str, Any], two: dict[str, Any]) -> None:
    assert (told["tokens"], told["answers"]) == (one["tokens"], one["answers"])
    middle = told["median_rank"]
    assert (middle["a"], middle["b"]) == (one["median_rank"], two["median_rank"])
    assert middle["value"] == middle["b"] - middle["a"]
    names = [name for name, value in one.items() if isinstance(value, dict)]
    assert len(names) == 11 and told.keys() >= set(names)
    for name in names:
        value = told[name]
        assert value["a"] == pytest.approx(one[name]["value"], rel=1e-9)
        assert value["b"] == pytest.approx(two[name]["value"], rel=1e-9)
        assert value["value"] == pytest.approx(value["b"] - value["a"], abs=1e-9)
        if value["low"] is not None:
            assert value["low"] - 1e-9 <= value["value"] <= value["high"] + 1e-9


def test_what_both_sides_share_does_not_widen_an_interval() -> None:
    a = made_shift(30, 40, seed=2)
    shifted_by = (a.kl_aligned_base + 0.25).astype(np.float32)
    (first, _) = compare_runs(a, replace(a, kl_aligned_base=shifted_by))["contexts"]
    band = first["overall"]["kl_aligned_base"]
    own = summarize(a)["contexts"][0]["overall"]["kl_aligned_base"]
    assert own["high"] - own["low"] > 0.1
    assert band["low"] == pytest.approx(0.25, abs=1e-6) == band["high"]
    assert first["overall"]["shifted"]["low"] == first["overall"]["shifted"]["high"] == 0
    assert first["more_shifted"] == first["less_shifted"] == []


def test_classes_and_tokens_that_changed_are_those_of_a_loop() -> None:
    a = made_shift(12, 60, seed=4, contexts=("only",))
    b = again(a, seed=5, contexts=(Context("another name", "other", "chat"),))
    (told,) = compare_runs(a, b, most=1000)["contexts"]
    assert (told["name"], told["b"]["name"]) == ("only", "another name")
    changes = [[0] * 3 for _ in range(3)]
    change: dict[int, list[int]] = {}
    for token, first, second in zip(a.token_id, a.shift_class, b.shift_class, strict=True):
        changes[first][second] += 1
        gained_lost = change.setdefault(int(token), [0, 0, 0])
        gained_lost[0] += first != 2 and second == 2
        gained_lost[1] += first == 2 and second != 2
        gained_lost[2] += 1
    assert told["class_changes"] == changes
    for side, sign in (("more_shifted", 1), ("less_shifted", -1)):
        wanted = {t: c for t, c in change.items() if (c[0] - c[1]) * sign > 0}
        assert wanted
        found = {t["token_id"]: [t["gained"], t["lost"], t["occurrences"]] for t in told[side]}
        assert found == wanted
        net = [abs(t["gained"] - t["lost"]) for t in told[side]]
        assert net == sorted(net, reverse=True)
        for t in told[side]:
            assert t["token"] == a.vocabulary[t["token_id"]]
            ratio = (t["gained"] - t["lost"]) / t["occurrences"]
            assert t["change"]["value"] == pytest.approx(ratio)
    shorter = compare_runs(a, b, most=2)["contexts"][0]
    assert shorter["more_shifted"] == told["more_shifted"][:2]


def test_only_the_same_probes_are_paired() -> None:
    a = made_shift(9, 30, seed=6)
    b = again(a, seed=8)
    changed = [0, 1]  # another sample, other tokens
    answers = [replace(x, sample=1) if i == changed[0] else x for i, x in enumerate(b.answers)]
    answers[1] = replace(answers[1], token_ids=[*answers[1].token_ids[:-1], 399])
    told = compare_runs(without(a, 8), replace(b, answers=answers))
    reasons = {"only in a": 1, "only in b": 2, "other tokens": 1, "no tokens": 2}
    assert told["left_out"] == reasons
    assert told["paired_answers"] == 4
    kept = [2, 4, 5, 6]
    for side, data in (("a", a), ("b", b)):
        rows = np.isin(data.answer, kept) & (data.context == 1)
        mean = float(data.kl_aligned_base[rows].astype(float).mean())
        assert told["contexts"][1]["overall"]["kl_aligned_base"][side] == pytest.approx(mean)


def test_contexts_of_one_run_are_paired_by_construction() -> None:
    data = made_shift(9, 40, seed=9, contexts=("raw", "k1", "k3"))
    told = compare_contexts(data, "k1", "raw")
    one, two = data.only("k1"), data.only("raw")
    renamed = replace(two, contexts=one.contexts)
    pair = compare_runs(one, renamed, names=("k1", "raw"))
    assert told["names"] == ["k1", "raw"]
    assert told["contexts"][0]["overall"] == pair["contexts"][0]["overall"]
    assert told["contexts"][0]["by_position"] == pair["contexts"][0]["by_position"]
    assert told["contexts"][0]["b"] == {"name": "raw", "base": "raw", "aligned": "chat"}
    assert told["contexts"][0]["overall"]["shifted"]["value"] > 0  # a later context shifts less


def test_common_contexts_are_compared_and_others_left_out() -> None:
    a = made_shift(5, 9, contexts=("raw", "k1", "k3"))
    b = made_shift(5, 9, contexts=("k3", "zero-shot", "raw"))
    told = compare_runs(a, b)["contexts"]
    assert [(c["name"], c["a"]["name"], c["b"]["name"]) for c in told] == [
        ("raw", "raw", "raw"),
        ("k3", "k3", "k3"),
    ]
    first = b.kl_aligned_base[b.context == 2].astype(float).mean()
    assert told[0]["overall"]["kl_aligned_base"]["b"] == pytest.approx(first)


def test_one_pair_has_no_interval() -> None:
    a = made_shift(1, 9)
    band = compare_runs(a, again(a, 1))["contexts"][0]["overall"]["shifted"]
    assert band["value"] is not None
    assert band["low"] is band["high"] is None


def test_what_cannot_be_paired_is_refused() -> None:
    a = made_shift(4, 9)
    with pytest.raises(ParameterError, match="no context can be paired: a has zero-shot, urial"):
        compare_runs(a, made_shift(4, 9, contexts=("raw", "k1")))
    with pytest.raises(ParameterError, match="no context can be paired"):
        compare_runs(a, made_shift(4, 9, contexts=("raw",)))
    other = replace(a, answers=[replace(x, id=f"x {x.id}") for x in a.answers])
    with pytest.raises(ParameterError, match=r"no answer can be paired: 4 only in a, 4 only in b"):
        compare_runs(a, other)
    with pytest.raises(ParameterError, match="1 other tokens, 0 no tokens"):
        compare_runs(made_shift(1, 9), made_shift(1, 9, seed=1))
    empty = replace(a, answers=[], **{n: getattr(a, n)[:0] for n in ARRAYS})
    with pytest.raises(ParameterError, match="no answer can be paired: 0 only in a, 0 only in b"):
        compare_runs(empty, empty)
    with pytest.raises(ParameterError, match="no context 'k9'; there are zero-shot, urial"):
        compare_contexts(a, "urial", "k9")
