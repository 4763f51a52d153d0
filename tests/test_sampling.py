"""What may be asked of a generation, and how a sample's tokens become text and penalties."""

from __future__ import annotations

import dataclasses
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import FakeTokenizer
from urial_engine.errors import ParameterError
from urial_engine.sampling import SEEDS, SamplingParams
from urial_engine.scheduler_batch import SampleBatches
from urial_engine.scheduler_samples import Penalties, Sample
from urial_engine.stop import StopMatcher

NAN, INF = float("nan"), float("inf")
BAD = {
    "n": (0, -1, 1.5, True, "2", None),
    "temperature": (-0.1, 101, NAN, INF, "0", None, True, 1e-9),
    "top_p": (-0.1, 0, 1.1, NAN, None),
    "top_k": (-2, 0.5, 1 << 31, None),
    "min_p": (-0.1, 1.1, NAN),
    "repetition_penalty": (0, -1, 0.001, 1000, NAN, INF),
    "repetition_penalty_scope": ("prompt", "", None),
    "presence_penalty": (-101, NAN, "1"),
    "frequency_penalty": (101, INF),
    "max_tokens": (0, -1, 1.0, True, "16"),
    "min_tokens": (-1, 17, None),
    "stop": ("", ["a", ""], [1], 5),
    "stop_token_ids": ([-1], [1.5], ["1"], 7),
    "include_stop_str_in_output": (1, None),
    "ignore_eos": (0, "yes"),
    "seed": (-1, 1 << 64, 1.0, True),
    "logprobs": (-1, True, 0.5),
    "prompt_logprobs": (-1, True),
}


def test_the_default_is_greedy() -> None:
    params = SamplingParams()
    assert (params.temperature, params.n, params.max_tokens, params.seed) == (0, 1, 16, None)


def test_every_field_has_bad_values() -> None:
    assert set(BAD) == {field.name for field in dataclasses.fields(SamplingParams)}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in BAD.items() for v in values])
def test_a_bad_value_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ParameterError, match=name):
        SamplingParams(**{name: value})


def test_max_tokens_of_0_says_what_is_allowed() -> None:
    with pytest.raises(ParameterError, match="max_tokens=0: must be at least 1"):
        SamplingParams(max_tokens=0)


def test_greedy_samples_would_all_be_equal() -> None:
    with pytest.raises(ParameterError, match="n=3: greedy samples are all equal"):
        SamplingParams(n=3)
    assert SamplingParams(n=3, temperature=0.5).n == 3


def test_an_unknown_parameter_is_named_with_those_that_exist() -> None:
    with pytest.raises(ParameterError, match=r"'temprature'; there are n, temperature, .*seed"):
        SamplingParams.from_dict({"temprature": 0.5, "n": 1})
    assert SamplingParams.from_dict({"top_k": 5}) == SamplingParams(top_k=5)


def test_values_are_brought_to_one_form() -> None:
    params = SamplingParams(
        top_k=-1, stop="# Query", stop_token_ids=[np.int64(3)], seed=np.uint8(7)
    )
    assert (params.top_k, params.stop, params.stop_token_ids, params.seed) == (
        0,
        ("# Query",),
        (3,),
        7,
    )
    assert type(params.seed) is int
    assert SamplingParams(stop=["a", "b"]).stop_strings == ("a", "b")
    assert SamplingParams(stop=None) == SamplingParams()
    assert SamplingParams(temperature=np.float32(0.5)) == SamplingParams(temperature=0.5)
    assert hash(SamplingParams(stop=["a"])) == hash(SamplingParams(stop="a"))
    assert SamplingParams(seed=(1 << 64) - 1, max_tokens=None).max_tokens is None


# One sample


def test_a_stop_string_may_be_long() -> None:
    """All that it begins with would be a terabyte."""
    matcher = StopMatcher(("x" * 2_000_000,), include=False)
    assert [matcher.push(piece) for piece in ("yx", "xx", "y")] == ["y", "", "xxxy"]


def sample(params: SamplingParams, prompt: list[int], **fields: Any) -> Sample:
    settings: dict[str, Any] = {
        "prefix": 0,
        "seed": 5,
        "max_tokens": params.max_tokens,
        "eos": frozenset({1}),
        "tokenizer": FakeTokenizer(),
        "stream": True,
        **fields,
    }
    return Sample(0, params, prompt=prompt, **settings)


def feed(one: Sample, ids: list[int]) -> list[str]:
    """Accept ids until the sample ends -> the text that comes with each."""
    texts = []
    for token in ids:
        texts.append(one.accept(token, -0.5, None))
        if one.finish_reason:
            break
    return texts


def test_eos_ends_without_a_reason_and_a_stop_token_with_its_id() -> None:
    words = FakeTokenizer.words
    one = sample(SamplingParams(), [5])
    feed(one, [2, 1, 3])
    assert dataclasses.astuple(one.output()) == (0, words[2], [2, 1], "stop", None, -1.0, None)
    one = sample(SamplingParams(stop_token_ids=[7]), [5])
    feed(one, [2, 7, 3])
    assert dataclasses.astuple(one.output()) == (0, words[2], [2, 7], "stop", 7, -1.0, None)
    one = sample(SamplingParams(stop_token_ids=[7], include_stop_str_in_output=True), [5])
    feed(one, [2, 7, 3])
    assert one.output().text == words[2] + words[7]
    one = sample(SamplingParams(ignore_eos=True, max_tokens=3), [5])
    feed(one, [2, 1, 3])
    assert (one.output().finish_reason, one.output().token_ids) == ("length", [2, 1, 3])


def test_a_stop_string_across_tokens_keeps_the_token_that_completed_it() -> None:
    assert [FakeTokenizer.words[i] for i in (2, 3, 4)] == ["cab"[:1] + "ab"[:1], "aab", "bxa"]
    one = sample(SamplingParams(stop=["aaa"]), [5])
    texts = feed(one, [4, 2, 3, 4])
    output = one.output()
    assert (output.text, output.token_ids) == ("bxac", [4, 2, 3])
    assert (output.finish_reason, output.stop_reason) == ("stop", "aaa")
    assert "".join(texts) == output.text
    one = sample(SamplingParams(stop=["aaa"], include_stop_str_in_output=True), [5])
    feed(one, [4, 2, 3, 4])
    assert one.output().text == "bxacaaa"


def test_before_min_tokens_nothing_ends_it() -> None:
    params = SamplingParams(min_tokens=3, stop=["c"], stop_token_ids=[7], max_tokens=9)
    one = sample(params, [5])
    for token in (2, 2, 2):
        assert one.banned.tolist() == [1, 7]
        feed(one, [token])
    assert one.banned.tolist() == []
    assert one.finish_reason is None, "a stop string of the first min_tokens tokens is text"
    feed(one, [2])
    assert (one.stop_reason, len(one.token_ids)) == ("c", 4)


def test_the_text_ends_with_what_the_detokenizer_held_back() -> None:
    def stream(**_: bool) -> Any:
        return SimpleNamespace(push=lambda token: "ab", finish=lambda: "?")

    tokenizer: Any = SimpleNamespace(stream=stream)
    one = sample(SamplingParams(max_tokens=2), [5], tokenizer=tokenizer)
    assert feed(one, [7, 7]) == ["ab", "ab?"]
    one = sample(SamplingParams(stop="b?"), [5], tokenizer=tokenizer)
    assert feed(one, [7, 1]) == ["a", ""]
    assert one.stop_reason == "b?"


def test_an_aborted_sample_keeps_the_text_that_was_held_back() -> None:
    one = sample(SamplingParams(stop=["caX"]), [5])
    assert feed(one, [2]) == [""]
    one.abort()
    assert (one.output().text, one.output().finish_reason) == ("ca", "abort")


@pytest.mark.parametrize("ids", [[2, 3, 4, 2], [4, 1], [2, 7, 3], [2]])
def test_text_that_nobody_waits_for_is_made_in_the_end(ids: list[int]) -> None:
    params = SamplingParams(max_tokens=4, stop_token_ids=[7])
    eager, lazy = (sample(params, [5], stream=stream) for stream in (True, False))
    assert set(feed(lazy, ids)) == {""} != set(feed(eager, ids))
    for one in (one for one in (eager, lazy) if one.finish_reason is None):
        one.abort()
    assert lazy.output() == eager.output() == lazy.output()


# What the head is told


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 20)),
    st.lists(st.integers(0, 200), max_size=150),
)
def test_penalties_count_as_a_counter_does(seen: list[int], output: list[int]) -> None:
    penalties = Penalties(seen)
    for token in output:
        penalties.add(token)
    assert len(set(penalties.ids.tolist())) == len(penalties.ids)
    counted = dict(zip(penalties.ids.tolist(), penalties.counts.tolist(), strict=True))
    assert counted == {**dict.fromkeys(seen, 0), **Counter(output)}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"repetition_penalty": 1.2}, {3: 0, 4: 0, 5: 0, 8: 2, 9: 1}),
        (
            {"repetition_penalty": 1.2, "repetition_penalty_scope": "no_prefix"},
            {4: 0, 5: 0, 8: 2, 9: 1},
        ),
        ({"repetition_penalty": 1.2, "repetition_penalty_scope": "output"}, {8: 2, 9: 1}),
        ({"presence_penalty": 0.5}, {8: 2, 9: 1}),
        ({"frequency_penalty": 0.5}, {8: 2, 9: 1}),
        ({}, {}),
    ],
)
def test_which_tokens_penalties_look_at(fields: dict[str, Any], expected: dict[int, int]) -> None:
    one = sample(SamplingParams(**fields), [3, 4, 5, 4], prefix=1)
    feed(one, [8, 9, 8])
    how = SampleBatches().next([one], [7])
    assert dict(zip(how.penalty_ids.tolist(), how.penalty_counts.tolist(), strict=True)) == expected
    assert how.penalty_repeats.tolist() == [1] * len(expected)


def test_a_batch_says_each_thing_of_its_own_row() -> None:
    rows = [
        sample(SamplingParams(temperature=0.5, top_k=3, logprobs=2, seed=5), [3, 4]),
        sample(SamplingParams(repetition_penalty=1.5, min_tokens=2, stop_token_ids=[9]), [6, 6, 7]),
        sample(SamplingParams(top_p=0.25, min_p=0.125, presence_penalty=1), [8], seed=SEEDS - 1),
    ]
    feed(rows[2], [2, 3])
    how = SampleBatches().next(rows, [2, 3, 3])
    assert how.temperature.tolist() == [0.5, 0, 0]
    assert (how.top_k.tolist(), how.top_p.tolist()) == ([3, 0, 0], [1, 1, 0.25])
    assert how.min_p.tolist() == [0, 0, 0.125]
    assert how.seed.tolist() == [5, 5, (1 << 64) - 1]
    assert how.position.tolist() == [2, 3, 3]
    assert (how.penalty_offsets.tolist(), how.penalty_ids.tolist()) == ([0, 0, 2, 4], [6, 7, 2, 3])
    assert (how.banned_offsets.tolist(), how.banned_ids.tolist()) == ([0, 0, 2, 2], [1, 9])
    assert how.top_logprobs == 2
    kinds = {array.dtype.name for array in how[:-1]}
    assert kinds == {"float32", "int32", "uint64", "uint32", "uint8"}
