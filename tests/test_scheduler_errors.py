"""What a scheduler refuses, and that a bad or cancelled request takes only itself along."""

from __future__ import annotations

import pytest

from tests.fakes import (
    BAD_IN_HEAD,
    BAD_IN_LAYER,
    check_books,
)
from tests.schedules import Bench, alone, completions, generation, greedy, sampled, told
from urial_engine.errors import CapacityError, NumericsError
from urial_engine.scheduler_requests import Generation, Request, Scored


def test_a_request_that_can_never_run_is_refused_with_the_numbers() -> None:
    bench = Bench(blocks=5)
    with pytest.raises(CapacityError, match=r"prompts\[3\]: 10 prompt tokens and room for 11 more"):
        bench.scheduler.submit(generation([2] * 10, greedy(12), label="prompts[3]"))
    with pytest.raises(CapacityError, match="need 6 cache blocks of 4 tokens, and at most 5 of"):
        bench.scheduler.submit(generation([2] * 10, greedy(12)))
    bench.run(generation([2] * 10, greedy(11)))


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
    assert all(BAD_IN_LAYER not in segment.tokens for segment in bench.cache.segments())
    again = generation([2, 3, 2, 3, 2, 2, 2, 2], greedy())
    bench.run(again)
    assert told(completions(again)[0]) == alone(again.ids, again.params)


def test_what_a_bad_request_leaves_is_not_kept() -> None:
    """A call that failed may have written to its blocks, so none of them serves another."""
    bench = Bench(chunk=2)
    bench.run(Request("it", [2, 3, 2, BAD_IN_LAYER], 0, keep=True))
    assert not list(bench.cache.segments())


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
        generation(ids, greedy(prompt_logprobs=0), label="f"),
    ]
    bench.run(*work)
    found = {
        r.label: (r.error.layer, r.error.row) for r in work if isinstance(r.error, NumericsError)
    }
    assert found == dict.fromkeys("bdf", (None, 2))
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
    check_books(bench.cache)
    assert bench.cache.available == bench.cache.blocks
    lengths = [[len(output.token_ids) for output in completions(request)] for request in work]
    assert lengths == [[3], [3, 2], [0]], "the last one never left the queue"
    for request in work[:2]:
        for index, output in enumerate(completions(request)):
            assert output.finish_reason == "abort"
            ids = alone(request.ids, request.params, index=index)[1]
            assert output.token_ids == ids[: len(output.token_ids)]
    bench.run(generation([2] * 6, greedy()))
