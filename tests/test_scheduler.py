"""Continuous batching on the watchful fake: no schedule changes an answer, nothing is left behind.

Every answer is compared with what one text gives alone, computed here without cache or batch.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import (
    BAD_IN_HEAD,
    BAD_IN_LAYER,
    VOCAB,
    FakeBackend,
    FakeTokenizer,
    hidden_of,
    logits_of,
)
from tests.test_sampling import cut
from urial_engine.backends.base import HeadScores
from urial_engine.errors import CapacityError, NumericsError
from urial_engine.kernels import rank
from urial_engine.kernels import sample as sampler
from urial_engine.kv_cache import KVCache
from urial_engine.outputs import CompletionOutput
from urial_engine.sampling import SamplingParams
from urial_engine.scheduler import Scheduler
from urial_engine.scheduler_requests import Generation, Request, Scored
from urial_engine.scheduler_samples import Sample

EOS = frozenset({1})
TOKENIZER: Any = FakeTokenizer()


class Bench:
    """A scheduler on a fake backend, and requests for it."""

    def __init__(self, *, blocks: int = 64, max_batch: int = 8, chunk: int = 16) -> None:
        self.backend = FakeBackend()
        self.backend.allocate(blocks)
        self.cache = KVCache(self.backend, blocks)
        self.scheduler = Scheduler(
            self.backend, self.cache, TOKENIZER, max_batch=max_batch, chunk=chunk
        )

    def run(self, *requests: Request) -> None:
        for request in requests:
            self.scheduler.submit(request)
        for _ in range(3000):
            if all(request.finished for request in requests):
                break
            self.scheduler.step()
        assert all(request.finished for request in requests), "it stands still"
        assert self.cache.available == self.cache.blocks, "blocks are still held or promised"


def generation(
    ids: list[int], params: SamplingParams, *, seed: int = 0, prefix: int = 0, label: str = "it"
) -> Generation:
    max_tokens = params.max_tokens or 0
    samples = [
        Sample(
            index,
            params,
            prompt=ids,
            prefix=prefix,
            seed=seed,
            max_tokens=max_tokens,
            eos=frozenset() if params.ignore_eos else EOS,
            tokenizer=TOKENIZER,
        )
        for index in range(params.n)
    ]
    return Generation(label, ids, samples, max_tokens=max_tokens, prefix=prefix)


def completions(request: Generation) -> list[CompletionOutput]:
    assert request.error is None
    return [sample.output() for sample in request.samples]


def alone(ids: list[int], p: SamplingParams, *, seed: int = 0, index: int = 0) -> tuple[Any, ...]:
    """(text, token ids, finish reason, stop reason) by the definitions, nothing shared."""
    output: list[int] = []
    ends = {*([] if p.ignore_eos else EOS), *p.stop_token_ids}
    while True:
        seen = set(output) | (set(ids) if p.repetition_penalty_scope == "all" else set())
        counts = Counter(output)
        token = sampler.reference(
            logits_of(hidden_of(ids + output)),
            sampler.uniform(seed, index, len(ids) + len(output)),
            temperature=p.temperature,
            top_k=p.top_k,
            top_p=p.top_p,
            min_p=p.min_p,
            repetition_penalty=p.repetition_penalty,
            presence_penalty=p.presence_penalty,
            frequency_penalty=p.frequency_penalty,
            penalty_ids=sorted(seen),
            penalty_repeats=[1] * len(seen),
            penalty_counts=[counts[t] for t in sorted(seen)],
            banned_ids=sorted(ends) if len(output) < p.min_tokens else [],
        )
        output.append(token)
        words = ["" if t in ends else FakeTokenizer.words[t] for t in output]
        free = "".join(words[: p.min_tokens])  # no stop string is looked for in it
        text, stop = cut("".join(words[p.min_tokens :]), p.stop_strings, False)
        if stop is not None:
            return free + text, output, "stop", stop
        if token in ends:
            return free + text, output, "stop", None if token in EOS and not p.ignore_eos else token
        if len(output) == p.max_tokens:
            return free + text, output, "length", None


def told(output: CompletionOutput) -> tuple[Any, ...]:
    return output.text, output.token_ids, output.finish_reason, output.stop_reason


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


@settings(max_examples=150, deadline=None)
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


@settings(max_examples=60, deadline=None)
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


def greedy(tokens: int = 6, **fields: Any) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, ignore_eos=True, **fields)


def sampled(tokens: int = 6, **fields: Any) -> SamplingParams:
    return greedy(tokens, temperature=1.0, **fields)


def test_samples_share_their_prompt_and_it_is_read_once() -> None:
    bench = Bench(chunk=100)
    request = generation([2] * 17, sampled(4, n=5))
    bench.run(request)
    assert bench.backend.reads == [17, 5, 5, 5], "the last token is never read"
    assert len({tuple(output.token_ids) for output in completions(request)}) > 1


def test_more_samples_than_fit_run_one_after_the_other() -> None:
    bench = Bench(max_batch=2, chunk=100)
    request = generation([2] * 9, sampled(3, n=5))
    bench.run(request)
    assert max(bench.backend.reads[1:]) == 2
    assert sum(bench.backend.reads) == 9 + 5 * 2
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


def test_decoding_goes_on_while_a_long_prompt_is_read() -> None:
    bench = Bench(chunk=4)
    short, long = generation([2], greedy(20)), generation([3] * 30, greedy(2))
    bench.run(short, long)
    assert bench.backend.reads[:4] == [4, 5, 5, 5]
    assert told(completions(long)[0]) == alone([3] * 30, long.params)


def test_a_request_that_can_never_run_is_refused_with_the_numbers() -> None:
    bench = Bench(blocks=5)
    with pytest.raises(CapacityError, match=r"prompts\[3\]: 10 prompt tokens and room for 11 more"):
        bench.scheduler.submit(generation([2] * 10, greedy(12), label="prompts[3]"))
    with pytest.raises(CapacityError, match="need 6 cache blocks of 4 tokens, and at most 5 of"):
        bench.scheduler.submit(generation([2] * 10, greedy(12)))
    bench.run(generation([2] * 10, greedy(11)))


def test_a_full_cache_makes_requests_wait_for_their_turn() -> None:
    bench = Bench(blocks=6, chunk=100)
    work = [generation([t] * 9, greedy(8)) for t in (2, 3, 4)]  # four blocks each
    bench.run(*work)
    for request in work:
        assert told(completions(request)[0]) == alone(request.ids, request.params)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_a_bad_value_in_a_layer_ends_its_own_request_only(chunk: int) -> None:
    bench = Bench(chunk=chunk)
    bad_ids = [2, 3, 2, 3, 2, BAD_IN_LAYER, 3]
    work = [
        generation([2, 3, 2, 3, 2, 4], greedy()),
        generation(bad_ids, greedy(), label="prompts[1]"),
        generation([2, 3, 2, 3, 2, 5], sampled(n=2)),
    ]
    bench.run(*work)
    error = work[1].error
    assert isinstance(error, NumericsError)
    assert (error.layer, error.row) == (0, 5)
    assert str(error).startswith("prompts[1]: layer 0 gives a value that is not finite at position")
    for request in (work[0], work[2]):
        for index, output in enumerate(completions(request)):
            assert told(output) == alone(request.ids, request.params, index=index)
    again = generation([2, 3, 2, 3, 2, 2, 2, 2], greedy())
    bench.run(again)
    assert told(completions(again)[0]) == alone(again.ids, again.params)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_a_bad_value_in_the_head_ends_its_own_request_only(chunk: int) -> None:
    bench = Bench(chunk=chunk)
    ids = [2, 3, BAD_IN_HEAD, 3, 2]
    work: list[Request] = [
        Request("a", [2, 3, 4, 3, 2], 1, scored=Scored([4, 3, 2, 9], 1)),
        Request("b", ids, 1, scored=Scored([BAD_IN_HEAD, 3, 2, 9], 1)),
        Request("c", ids, 3, scored=Scored([2, 9], 1)),
        generation(ids[:3], greedy(), label="d"),
        generation(ids, greedy(), label="e"),
    ]
    bench.run(*work)
    found = {
        r.label: (r.error.layer, r.error.row) for r in work if isinstance(r.error, NumericsError)
    }
    assert found == {"b": (None, 2), "d": (None, 2)}
    for request in (work[0], work[2]):
        assert request.scored is not None
        assert len(request.scored.joined().rank) == len(request.scored.targets)
    assert isinstance(work[4], Generation)
    assert told(completions(work[4])[0]) == alone(ids, work[4].params)


def test_a_cancelled_request_ends_where_it_is_and_gives_everything_back() -> None:
    bench = Bench(max_batch=3, chunk=100)
    work = [generation([t] * 6, sampled(9, n=n)) for t, n in ((2, 1), (3, 2), (4, 1))]
    for request in work:
        bench.scheduler.submit(request)
    for _ in range(3):
        bench.scheduler.step()
    for request in work:
        bench.scheduler.cancel(request)
    bench.scheduler.drop_cancelled()
    assert bench.cache.available == bench.cache.blocks
    lengths = [[len(output.token_ids) for output in completions(request)] for request in work]
    assert lengths == [[3], [3, 3], [0]], "the last one never left the queue"
    for request in work[:2]:
        for index, output in enumerate(completions(request)):
            assert output.finish_reason == "abort"
            assert output.token_ids == alone(request.ids, request.params, index=index)[1][:3]
    bench.run(generation([2] * 6, greedy()))


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
