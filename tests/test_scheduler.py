"""Continuous batching on the watchful fake: no schedule changes an answer.

Every answer is compared with what one text gives alone, computed without cache or batch.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes import (
    VOCAB,
    FakeTokenizer,
    hidden_of,
    logits_of,
)
from tests.schedules import Bench, alone, completions, generation, greedy, sampled, told
from urial_engine.backends.base import HeadScores
from urial_engine.kernels import rank
from urial_engine.sampling import SamplingParams
from urial_engine.scheduler_requests import Request, Scored

PROMPTS = st.lists(st.integers(2, 4), min_size=1, max_size=20)  # few tokens: much is shared
PARAMS = st.builds(
    SamplingParams,
    n=st.integers(1, 3),
    temperature=st.sampled_from([0.7, 1.5]),
    top_k=st.sampled_from([0, 5]),
    top_p=st.sampled_from([1.0, 0.8]),
    min_p=st.sampled_from([0.0, 0.05]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    repetition_penalty_scope=st.sampled_from(["all", "output"]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    max_tokens=st.integers(1, 12),
    min_tokens=st.integers(0, 1),
    stop=st.lists(st.text("abxy", min_size=1, max_size=4), max_size=2),
    stop_token_ids=st.lists(st.integers(2, 8), max_size=2),
    ignore_eos=st.booleans(),
    logprobs=st.sampled_from([None, 2]),
    prompt_logprobs=st.sampled_from([None, 1]),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    work=st.lists(st.tuples(PROMPTS, PARAMS), min_size=1, max_size=8),
    blocks=st.integers(12, 40),
    max_batch=st.integers(1, 6),
    chunk=st.sampled_from([1, 3, 7, 1 << 20]),
)
def test_no_schedule_changes_an_answer(
    work: list[tuple[list[int], SamplingParams]], blocks: int, max_batch: int, chunk: int
) -> None:
    bench = Bench(blocks=blocks, max_batch=max_batch, chunk=chunk)
    requests = [generation(ids, params, seed=i) for i, (ids, params) in enumerate(work)]
    bench.run(*requests)
    for seed, (request, (ids, params)) in enumerate(zip(requests, work, strict=True)):
        for index, output in enumerate(completions(request)):
            assert told(output) == alone(ids, params, seed=seed, index=index)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    work=st.lists(st.tuples(PROMPTS, st.integers(0, 19), st.integers(0, 3)), max_size=6),
    chunk=st.sampled_from([1, 3, 7, 1 << 20]),
)
def test_scores_and_hidden_states_come_from_the_rows_that_were_asked_for(
    work: list[tuple[list[int], int, int]], chunk: int
) -> None:
    bench = Bench(chunk=chunk)
    scored, kept = [], []
    for ids, first, top_k in work:
        first = min(first, len(ids) - 1)
        targets = [*ids[first + 1 :], 9]
        scored.append(Request("it", ids, first, scored=Scored(targets, top_k)))
        kept.append(Request("it", ids, first, keep=True))
    bench.run(*scored, *kept)
    for request, other in zip(scored, kept, strict=True):
        ids, rows = request.ids, range(request.rows_from, len(request.ids))
        hidden = np.stack([hidden_of(ids[: row + 1]) for row in rows])
        assert np.array_equal(np.concatenate(other.kept or []), hidden)
        assert request.scored is not None
        z = bench.backend.logits(hidden)
        truth = rank.reference(z, np.array(request.scored.targets), request.scored.top_k)
        scores = request.scored.joined()
        assert isinstance(scores, HeadScores)
        for name, expected in truth._asdict().items():
            assert np.array_equal(getattr(scores, name), expected), name


def test_samples_share_their_prompt_and_it_is_read_once() -> None:
    bench = Bench(chunk=100)
    request = generation([2] * 17, sampled(4, n=5))
    bench.run(request)
    assert bench.backend.reads == [17, 1 + 4, 5, 5, 4], "but for its last token"
    assert len({tuple(output.token_ids) for output in completions(request)}) > 1


def test_more_samples_than_fit_run_one_after_the_other() -> None:
    bench = Bench(max_batch=2, chunk=100)
    request = generation([2] * 9, sampled(3, n=5))
    bench.run(request)
    assert max(bench.backend.reads[1:]) == 2
    assert sum(bench.backend.reads) == 9 + 2 + 4 * (1 + 2)
    bench = Bench(blocks=5, chunk=100)  # three for the prompt, two for one tail
    request = generation([2] * 9, sampled(6, n=3))
    bench.run(request)
    assert max(bench.backend.reads[1:]) == 1
    outputs = [told(output) for output in completions(request)]
    assert outputs == [alone([2] * 9, request.params, index=i) for i in range(3)]


def test_what_several_prompts_share_is_read_once() -> None:
    bench = Bench(chunk=100)
    shared = [2] * 40
    bench.run(*(generation([*shared, 3, token], greedy(2)) for token in range(4, 9)))
    assert bench.backend.reads == [42, 1 + 4, 4], "then only what differs"


def test_a_finished_text_is_continued_without_reading_it_again() -> None:
    bench = Bench(chunk=100)
    first = generation([2] * 10, greedy(5))
    bench.run(first)
    (output,) = completions(first)
    bench.backend.reads.clear()
    turn = [2] * 10 + output.token_ids + [3, 3]
    second = generation(turn, greedy(1))
    bench.run(second)
    assert second.cached == 10 + 4
    assert sum(bench.backend.reads) == len(turn) - 14
    assert told(completions(second)[0]) == alone(turn, second.params)


def test_no_step_reads_more_of_prompts_than_a_chunk() -> None:
    bench = Bench(chunk=4)
    work = [generation([t] * 9, greedy(1)) for t in (2, 3, 4)]
    bench.run(*work)
    assert bench.backend.reads == [4, 4, 4, 4, 4, 4, 3]


def test_a_finished_sample_makes_room_for_the_next_request() -> None:
    bench = Bench(max_batch=2, chunk=100)
    params = sampled(9, n=2, stop_token_ids=range(2, 8))

    def apart(seed: int) -> bool:
        """Whether the samples of this seed end at different times."""
        first, second = (len(alone([2], params, seed=seed, index=i)[1]) for i in range(2))
        return abs(first - second) > 2

    several = generation([2], params, seed=next(filter(apart, range(100))))
    bench.run(several, other := generation([3], greedy(4)))
    assert other.started is not None
    assert several.ended is not None
    assert other.submitted + other.started < several.submitted + several.ended


def test_a_full_cache_makes_requests_wait_for_their_turn() -> None:
    bench = Bench(blocks=6, chunk=100)
    work = [generation([t] * 9, greedy(8)) for t in (2, 3, 4)]  # four blocks each
    bench.run(*work)
    for request in work:
        assert told(completions(request)[0]) == alone(request.ids, request.params)


def test_logprobs_are_the_models_own_with_the_chosen_token_first() -> None:
    bench = Bench()
    request = generation([2, 3], sampled(8, logprobs=3, repetition_penalty=5.0), seed=3)
    bench.run(request)
    (output,) = completions(request)
    assert output.logprobs is not None
    total = 0.0
    for place, (token, entry) in enumerate(zip(output.token_ids, output.logprobs, strict=True)):
        z = logits_of(hidden_of([2, 3, *output.token_ids[:place]]))
        truth = rank.reference(z[None], np.array([token]), 3)
        top = truth.top_ids[0].tolist()
        assert list(entry) == [token, *(t for t in top if t != token)]
        assert entry[token].rank == truth.rank[0]
        assert entry[token].logprob == pytest.approx(truth.logprob[0])
        assert [entry[t].logprob for t in top] == pytest.approx(truth.top_logprobs[0].tolist())
        assert entry[token].decoded_token == FakeTokenizer.words[token]
        total += entry[token].logprob
    assert output.cumulative_logprob == pytest.approx(total)


def test_as_many_logprobs_as_each_asks_for() -> None:
    bench = Bench()
    work = [generation([2, t], greedy(3, logprobs=k)) for t, k in ((3, None), (4, 0), (5, 5))]
    bench.run(*work)
    none, zero, five = (completions(request)[0].logprobs for request in work)
    assert none is None
    assert zero is not None
    assert [len(entry) for entry in zero] == [1, 1, 1]
    assert five is not None
    assert all(len(entry) in (5, 6) for entry in five)


def test_no_repetition_penalty_for_the_engines_prefix_if_told_so() -> None:
    """Scope "no_prefix" gives what "all" gives to a text whose prefix holds no other tokens."""
    strong = {"repetition_penalty": 100.0, "repetition_penalty_scope": "no_prefix"}
    ids = [*range(2, VOCAB - 2), 2, 3]
    outputs = []
    for prefix in (0, len(ids) - 2):
        request = generation(ids, greedy(1, **strong), prefix=prefix)
        Bench().run(request)
        outputs.append(completions(request)[0].token_ids)
    everything = generation(ids, greedy(1, repetition_penalty=100.0))
    Bench().run(everything)
    assert outputs[0] == completions(everything)[0].token_ids != outputs[1]
