"""Summaries against loops over the rows, and intervals against simulations with a known truth."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from tests.shifts import made_shift
from urial_engine.errors import ParameterError
from urial_engine.report.bootstrap import Bootstrap, ratio, totals
from urial_engine.report.lexicon import Lexicon
from urial_engine.report.measures import ranges
from urial_engine.report.summary import summarize
from urial_engine.shift_data import ARRAYS, CLASSES, Answer, ShiftData

RANGES = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 8), (8, 16), (16, 32), (32, 64)]


def value_of(data: ShiftData, name: str, row: int) -> float:
    """What a measure averages, said once more."""
    rank = int(data.base_rank[row])
    if name in CLASSES:
        return float(name == ("unshifted" if rank == 1 else "marginal" if rank < 4 else "shifted"))
    if name == "mean_reciprocal_rank":
        return 1 / rank
    if name.endswith("_probability"):
        return float(np.exp(float(getattr(data, name.replace("probability", "logprob"))[row])))
    return float(getattr(data, name)[row])


def check(data: ShiftData, told: dict[str, Any], rows: list[int]) -> None:
    """The measures of these rows."""
    assert told["tokens"] == len(rows)
    assert told["median_rank"] == median(int(data.base_rank[r]) for r in rows)
    bands = {name: band for name, band in told.items() if isinstance(band, dict)}
    assert len(bands) == 11
    for name, band in bands.items():
        mean = sum(value_of(data, name, r) for r in rows) / len(rows)
        assert band["value"] == pytest.approx(mean, rel=1e-9), name
        if band["low"] is not None:
            assert band["low"] <= band["value"] <= band["high"], name


def test_measures_are_those_of_a_loop_over_the_rows() -> None:
    data = made_shift(9, 40, seed=3)
    summary = summarize(data)
    assert summary["answers"] == 9
    assert summary["empty_answers"] == 2
    assert summary["tokens"] == sum(len(a.token_ids) for a in data.answers)
    assert summary["sources"] == {"generated": 4, "text": 5}
    assert summary["datasets"] == {"(none)": 3, "lima": 3, "truthful_qa": 3}
    for c, context in enumerate(summary["contexts"]):
        rows = [r for r in range(len(data.context)) if data.context[r] == c]
        assert (context["name"], context["base"]) == (data.contexts[c].name,) * 2
        assert context["aligned"] == "chat"
        check(data, context["overall"], rows)
        assert context["overall"]["answers"] == 7
        for told, (start, end) in zip(context["by_position"], RANGES[:7], strict=False):
            own = [r for r in rows if start <= data.position[r] < end]
            assert (told["from"], told["to"]) == (start, end)
            check(data, told, own)
            assert told["answers"] == len({int(data.answer[r]) for r in own})
        assert context["by_position"][-1]["to"] == 64
        for told in context["by_dataset"]:
            named = [(a.dataset or "(none)") == told["dataset"] for a in data.answers]
            check(data, told, [r for r in rows if named[data.answer[r]]])
            assert told["answers"] == 3


def test_answers_and_groups_are_those_of_a_loop_too() -> None:
    data = made_shift(8, 30, seed=1)
    context = summarize(data)["contexts"][1]
    rows = np.flatnonzero(data.context == 1)
    for i, (answer, told) in enumerate(zip(data.answers, context["by_answer"], strict=True)):
        own = [r for r in rows if data.answer[r] == i]
        assert (told["id"], told["sample"], told["tokens"]) == (answer.id, 0, len(own))
        for name in (*CLASSES, "kl_aligned_base"):
            mean = sum(value_of(data, name, r) for r in own) / len(own) if own else None
            assert told[name] == (mean if mean is None else pytest.approx(mean, rel=1e-9))
    lexicon = Lexicon.default()
    group = [lexicon.names[g] for a in data.answers for g in lexicon.groups(a.pieces)]
    shifted = Counter(g for g, r in zip(group, rows, strict=True) if data.base_rank[r] > 3)
    assert [g["group"] for g in context["groups"]] == ["safety", "stylistic", "content"]
    for told in context["groups"]:
        name, size = told["group"], group.count(told["group"])
        assert told["tokens"] == size > 0
        assert told["share"]["value"] == pytest.approx(size / len(group))
        assert told["shifted"]["value"] == pytest.approx(shifted[name] / size)
        share = shifted[name] / shifted.total()
        assert told["share_of_shifted"]["value"] == pytest.approx(share)
    assert sum(told["share"]["value"] for told in context["groups"]) == pytest.approx(1)


def test_ranges_of_positions_grow_and_hold_every_position() -> None:
    assert ranges(-1) == []
    assert ranges(0) == [(0, 1)]
    assert ranges(4) == [*RANGES[:5]]
    assert ranges(7)[-1] == (4, 8)
    assert ranges(8)[-1] == (8, 16)
    assert ranges(63) == RANGES


def test_the_published_conventions_stand_beside_the_exact_ones() -> None:
    data = made_shift(6, 20, published=True, seed=2)
    assert data.published is not None
    rank = data.published.rank.copy()
    rank[::5] = -1
    rank[1::7], rank[2::7] = 10, 2
    kl = np.where(rank < 0, np.nan, data.published.kl).astype(np.float32)
    data = replace(data, published=data.published._replace(rank=rank, kl=kl))
    for c, context in enumerate(summarize(data)["contexts"]):
        told = context["published"]
        rows = [r for r in np.flatnonzero(data.context == c) if rank[r] >= 0]
        assert told["tokens"] == len(rows)
        assert told["without_counterpart"] == context["tokens"] - len(rows) > 0
        theirs = [0 if rank[r] == 0 else 1 if rank[r] in (1, 2) else 2 for r in rows]
        for name in ("unshifted", "marginal", "shifted", "kl_base_aligned", "base_probability"):
            ours = sum(value_of(data, name, r) for r in rows) / len(rows)
            if name in CLASSES:
                published = theirs.count(CLASSES.index(name)) / len(rows)
            else:
                column = kl if name.startswith("kl") else data.published.probability
                published = sum(float(column[r]) for r in rows) / len(rows)
            assert told["exact"][name]["value"] == pytest.approx(ours, rel=1e-9)
            assert told["published"][name]["value"] == pytest.approx(published, rel=1e-9)
            gap = pytest.approx(published - ours, rel=1e-6, abs=1e-9)
            assert told["difference"][name]["value"] == gap
        exact = [int(data.shift_class[r]) for r in rows]
        pairs = Counter(zip(exact, theirs, strict=True))
        wanted = [[pairs[i, j] for j in range(3)] for i in range(3)]
        assert told["agreement"]["counts"] == wanted
        same = sum(pairs[i, i] for i in range(3)) / len(rows)
        assert told["agreement"]["share"]["value"] == pytest.approx(same)
    assert summarize(made_shift(3, 3))["contexts"][0]["published"] is None


def simulated(random: np.random.Generator, answers: int) -> tuple[np.ndarray, np.ndarray]:
    """Shifted tokens and tokens of each answer [U, 1]: a mean of 0.2, and answers that differ."""
    size = random.integers(5, 60, answers)
    return random.binomial(size, random.beta(1, 4, answers))[:, None] * 1.0, size[:, None] * 1.0


def test_intervals_cover_the_truth_where_naive_ones_do_not() -> None:
    random = np.random.default_rng(5)
    covered = naive = wider = 0
    for trial in range(200):
        count, size = simulated(random, 60)
        (band,) = Bootstrap(60, 300, trial).bands(ratio, count, size, support=size)
        assert band["low"] is not None and band["high"] is not None and band["value"] is not None
        covered += band["low"] <= 0.2 <= band["high"]
        half = 1.96 * (band["value"] * (1 - band["value"]) / size.sum()) ** 0.5
        naive += abs(band["value"] - 0.2) <= half
        wider += band["high"] - band["low"] > 2 * half
    assert covered >= 176  # 190 are expected, and 176 is four standard errors below
    assert naive < 140
    assert wider > 190


def test_an_interval_is_that_of_answers_drawn_by_hand() -> None:
    data = made_shift(40, 30, seed=8)
    band = summarize(data, resamples=2000)["contexts"][0]["overall"]["kl_aligned_base"]
    own = [data.kl_aligned_base[(data.answer == i) & (data.context == 0)] for i in range(40)]
    random = np.random.default_rng(99)
    means = [
        np.concatenate([own[i] for i in random.integers(40, size=40)]).mean() for _ in range(2000)
    ]
    low, high = np.percentile(means, (2.5, 97.5))
    tolerance = 0.08 * (high - low)
    assert band["low"] == pytest.approx(low, abs=tolerance)
    assert band["high"] == pytest.approx(high, abs=tolerance)


def repeated(data: ShiftData, answers: list[list[Answer]]) -> ShiftData:
    """The same rows again for each of these lists of answers."""
    times = len(answers)
    arrays = {name: np.concatenate([getattr(data, name)] * times) for name in ARRAYS}
    arrays["answer"] += np.repeat(np.arange(times), len(data.answer)) * len(data.answers)
    return replace(data, answers=[a for some in answers for a in some], **arrays)


def test_samples_of_one_query_are_drawn_together() -> None:
    """Five times the same answer is no more evidence than once."""
    once = made_shift(12, 20, contexts=("only",))
    five = repeated(once, [[replace(a, sample=s) for a in once.answers] for s in range(5)])
    first, second = summarize(once), summarize(five)
    assert first["bootstrap"] == {"resamples": 1000, "confidence": 0.95, "seed": 0} | {
        "over": "answers"
    }
    assert second["bootstrap"]["over"] == "queries"
    for name, band in first["contexts"][0]["overall"].items():
        if isinstance(band, dict):
            assert second["contexts"][0]["overall"][name] == pytest.approx(band)


def bands_of(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        own = [value] if value.keys() == {"value", "low", "high"} else []
        return own + [band for one in value.values() for band in bands_of(one)]
    return [band for one in value for band in bands_of(one)] if isinstance(value, list) else []


def no_rows(data: ShiftData) -> ShiftData:
    none = data.only(0).answer[:0]
    empty = {n: getattr(data, n)[:0] for n in ("context", "position", "token_id", "base_rank")}
    return replace(data, answer=none, **empty, published=None)


def test_of_nothing_there_is_nothing_and_of_one_answer_no_interval() -> None:
    whole = made_shift(4, 9)
    without_tokens = [replace(a, token_ids=[], pieces=[], text="") for a in whole.answers]
    for answers in ([], without_tokens):
        summary = summarize(replace(no_rows(whole), answers=answers))
        assert json.loads(json.dumps(summary, allow_nan=False)) == summary
        assert summary["tokens"] == 0
        assert summary["empty_answers"] == len(answers)
        for context in summary["contexts"]:
            assert context["by_position"] == context["most_shifted"] == []
            assert context["most_shifted_words"] == []
            assert context["overall"]["median_rank"] is None
        assert all(set(band.values()) == {None} for band in bands_of(summary))
    one = summarize(made_shift(1, 9, published=True))
    assert json.loads(json.dumps(one, allow_nan=False)) == one
    found = bands_of(one)
    assert all(band["low"] is None and band["high"] is None for band in found)
    assert one["contexts"][0]["overall"]["shifted"]["value"] > 0


def test_a_single_answer_far_out_has_no_interval_there() -> None:
    data = made_shift(2, 60, seed=1)
    lengths = sorted(len(a.token_ids) for a in data.answers)
    last = summarize(data)["contexts"][0]["by_position"][-1]
    assert lengths[-2] <= 32 < lengths[-1]
    assert last["answers"] == 1
    assert last["shifted"]["low"] is None and last["shifted"]["value"] is not None


def test_an_infinite_measure_becomes_null_and_stays_json() -> None:
    data = made_shift(4, 9)
    kl = data.kl_aligned_base.copy()
    kl[0] = np.inf
    summary = summarize(replace(data, kl_aligned_base=kl))
    band = summary["contexts"][0]["overall"]["kl_aligned_base"]
    assert band == {"value": None, "low": None, "high": None}
    by_answer = summary["contexts"][0]["by_answer"]
    assert [answer["kl_aligned_base"] is None for answer in by_answer] == [True, False, False, True]
    json.dumps(summary, allow_nan=False)


def test_the_same_data_give_the_same_bytes_and_seeds_move_only_the_ends() -> None:
    data = made_shift(10, 20)
    first, again, other = (summarize(data, seed=s) for s in (0, 0, 1))
    assert json.dumps(first) == json.dumps(again) != json.dumps(other)
    values = [
        [band["value"] for band in bands_of(s["contexts"][0]["overall"])] for s in (first, other)
    ]
    assert values[0] == values[1]


def test_totals_count_and_sum_by_cluster_and_column() -> None:
    cluster, column = np.array([0, 2, 2, 2]), np.array([1, 0, 0, 1])
    assert totals(3, 2, cluster, column, None).tolist() == [[0, 1], [0, 0], [2, 1]]
    summed = totals(3, 2, cluster, column, np.array([1.5, 2, 3, 4]))
    assert summed.tolist() == [[0, 1.5], [0, 0], [5, 4]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"most": 0}, "most = 0"), ({"resamples": 0}, "resamples = 0"), ({"seed": -1}, "seed = -1")],
)
def test_parameters_that_make_no_sense_are_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        summarize(made_shift(2, 2), **wrong)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_a_thousand_answers_take_seconds_and_little_memory() -> None:
    some = made_shift(100, 850, contexts=("a", "b", "c"), top_k=1)
    data = repeated(some, [[replace(a, id=f"{i} {a.id}") for a in some.answers] for i in range(10)])
    assert data.base_rank.size > 900_000  # 1,000 answers × 300 tokens × 3 contexts
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before, started = memory("VmRSS"), time.process_time()
    summarize(data)
    assert time.process_time() - started < 20  # of all threads; on an idle machine it is 6
    assert memory("VmHWM") - before < 200e6


def memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith(name))
