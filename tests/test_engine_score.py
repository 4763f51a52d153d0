"""Streams, scores, hidden states and comparisons of an engine."""

from __future__ import annotations

import numpy as np
import pytest

from tests import engines
from tests.engines import EIGHT, PREFIX, Open, blocks_in_use, ids_of
from urial_engine.errors import (
    ParameterError,
    PromptError,
    UrialError,
)
from urial_engine.head import compare_heads
from urial_engine.sampling import SamplingParams

open_engine = engines.open_engine  # the fixture


def test_the_events_of_a_stream_join_to_the_output(open_engine: Open) -> None:
    engine = open_engine(prefix=PREFIX)
    params = SamplingParams(temperature=1.0, n=2, max_tokens=9, logprobs=1, seed=4, stop="e")
    (output,) = engine.generate("Why?", params)
    events = list(engine.stream("Why?", params))
    for index, sample in enumerate(output.outputs):
        own = [event for event in events if event.index == index]
        assert "".join(event.text for event in own) == sample.text
        assert [token for event in own for token in event.token_ids] == sample.token_ids
        assert [event.logprobs for event in own] == sample.logprobs
        assert [event.finished for event in own] == [False] * (len(own) - 1) + [True]
        assert (own[-1].finish_reason, own[-1].stop_reason) == (
            sample.finish_reason,
            sample.stop_reason,
        )
    assert {event.seed for event in events} == {4}


def test_closing_a_stream_frees_its_work(open_engine: Open) -> None:
    engine = open_engine(prefix=PREFIX)
    stream = engine.stream("Why?", SamplingParams(max_tokens=50, ignore_eos=True))
    assert blocks_in_use(engine) == 0, "nothing begins before the first event is asked for"
    first = [next(stream).token_ids[0] for _ in range(3)]
    assert blocks_in_use(engine) > 0
    assert first == ids_of(engine.generate("Why?", EIGHT)[0])[:3], "beside a stream"
    stream.close()  # type: ignore[attr-defined]
    assert blocks_in_use(engine) == 0


def test_a_stream_refuses_before_it_begins(open_engine: Open) -> None:
    engine = open_engine(max_model_len=100, kv_cache_gib=0.001)
    with pytest.raises(PromptError):
        engine.stream([])
    with pytest.raises(ParameterError, match="stop_token_ids=\\[320\\]: the vocabulary has 320"):
        engine.stream("a", SamplingParams(stop_token_ids=[5, 320]))
    engine.close()
    with pytest.raises(UrialError, match="closed"):
        engine.stream("a")


def test_scores_are_those_of_materialised_logits(open_engine: Open) -> None:
    engine = open_engine(prefix=PREFIX)
    pairs = [([1, 70, 80], [90, 91, 92]), ([1, 70], [80, 90])]
    results = engine.score([p for p, _ in pairs], [c for _, c in pairs], top_k=4)
    for (prompt, continuation), scores in zip(pairs, results, strict=True):
        (hidden,) = engine.hidden_states([prompt + continuation[:-1]], [len(prompt) - 1])
        z = engine.backend.logits(hidden)
        assert scores.token_ids.tolist() == continuation
        for row, token in enumerate(continuation):
            assert scores.rank[row] == 1 + (z[row] > z[row, token]).sum()
            assert scores.top_ids[row].tolist() == np.argsort(-z[row], kind="stable")[:4].tolist()
            p = np.exp(z[row].astype(np.float64))
            assert scores.logprob[row] == pytest.approx(np.log(p[token] / p.sum()), abs=1e-5)


def test_texts_are_tokenised_as_one_to_be_scored(open_engine: Open) -> None:
    engine = open_engine(prefix="say ")
    encode = engine.tokenizer.encode
    (scores,) = engine.score("x", "ab cd")
    assert scores.token_ids.tolist() == encode("say xab cd")[len(encode("say x")) :]
    (merged,) = engine.score("!", "! no")
    assert merged.token_ids.tolist() == encode("! no")[2:], "what merges with the prompt is its own"
    (by_itself,) = engine.score([encode("say x")], "ab")
    assert by_itself.token_ids.tolist() == encode("ab", add_special_tokens=False)
    (ids,) = engine.score("x", [67, 68])
    assert ids.token_ids.tolist() == [67, 68], "ids are never tokenised again"
    both = engine.score(["x", "y"], [[67], [68, 69]])
    assert [len(one.rank) for one in both] == [1, 2]


def test_what_cannot_be_scored(open_engine: Open) -> None:
    engine = open_engine(max_model_len=20)
    with pytest.raises(PromptError, match=r"prompts\[0\]: the continuation is empty"):
        engine.score("a", "")
    with pytest.raises(PromptError, match=r"prompts\[1\]: the continuation is empty"):
        engine.score(["a", "b"], [[5], []])
    with pytest.raises(PromptError, match="the prompt is empty"):
        engine.score([[]], [[5]])
    with pytest.raises(PromptError, match="2 prompts, 1 continuations: not pairs"):
        engine.score(["a", "b"], ["c"])
    with pytest.raises(
        PromptError, match=r"prompts\[0\] is too long: 21 tokens in a context of 20"
    ):
        engine.score([[5] * 20], [[6]])
    assert len(engine.score([[5] * 10], [[6] * 10])[0].rank) == 10
    with pytest.raises(ParameterError, match="top_k=321: must be between 0 and"):
        engine.score("a", "b", top_k=321)


def test_hidden_states_from_a_position_on(open_engine: Open) -> None:
    engine = open_engine()
    whole, tail = engine.hidden_states([[1, 70, 80, 90]] * 2, [0, 3])
    assert whole.shape == (4, 32)
    np.testing.assert_allclose(tail, whole[3:], rtol=1e-9)
    with pytest.raises(PromptError, match=r"ids_list\[0\]: position 2 is not in a text of 2"):
        engine.hidden_states([[1, 70]], [2])


def test_two_heads_are_compared_under_both_locks(open_engine: Open) -> None:
    base, aligned = open_engine(), open_engine()
    (hidden,) = base.hidden_states([[1, 70, 80]], [0])
    targets = np.array([70, 80, 90], np.int32)
    compared = compare_heads(base, hidden, targets, 2, aligned, hidden)
    np.testing.assert_allclose(compared.kl_aligned_base, 0, atol=1e-6)
    same = compare_heads(base, hidden, targets, 2, base, hidden)
    assert np.array_equal(same.base.rank, compared.base.rank)
    aligned.close()
    with pytest.raises(UrialError, match="closed"):
        compare_heads(base, hidden, targets, 2, aligned, hidden)
