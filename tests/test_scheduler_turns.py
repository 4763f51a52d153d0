"""Whose turn it is: nobody stalls, nobody starves, the batch is full. Steps count, not clocks."""

from __future__ import annotations

from itertools import count

from tests.schedules import Bench, alone, completions, generation, greedy, sampled, told
from urial_engine.scheduler_requests import Generation, Request, Scored


def made(request: Request) -> int:
    """Tokens of its first sample."""
    return len(request.samples[0].token_ids)


def submit(bench: Bench, *requests: Request) -> None:
    for request in requests:
        bench.scheduler.submit(request)


def steps_until_first_token(bench: Bench, request: Request) -> int:
    for steps in count():
        if made(request):
            return steps
        bench.scheduler.step()
    raise AssertionError


def long(token: int, length: int = 120) -> Generation:
    """A prompt that shares nothing with those of other tokens."""
    return generation([token] * length, greedy(2))


def test_decoding_goes_on_while_long_prompts_are_read() -> None:
    bench = Bench(blocks=700, max_batch=8, chunk=16)
    decoding = [generation([2, t], greedy(40)) for t in range(3, 7)]
    submit(bench, *decoding)
    bench.scheduler.step()
    stream = [long(t, 400) for t in range(10, 16)]
    submit(bench, *stream)
    for before in range(1, 40):
        assert [made(request) for request in decoding] == [before] * 4
        bench.scheduler.step()
        assert bench.backend.reads[-1] == 4 + 16 // 2
    while not all(request.finished for request in stream):
        bench.scheduler.step()
    for request in (*decoding, *stream):
        assert told(completions(request)[0]) == alone(request.ids, request.params)


def test_what_is_urgent_comes_next_and_takes_no_place() -> None:
    bench = Bench(blocks=700, max_batch=2, chunk=16)
    running = [generation([2, t], greedy(40)) for t in range(3, 5)]
    waiting = [generation([2, t], greedy(3)) for t in range(5, 9)]
    submit(bench, *running, *waiting)
    bench.scheduler.step()
    looks = [
        Request("look", [2, 3, 9, t], 2, scored=Scored([t, 1], 0), urgent=True) for t in (10, 11)
    ]
    submit(bench, *looks)
    bench.scheduler.step()
    bench.scheduler.step()
    assert all(look.finished and look.error is None for look in looks)
    assert [made(request) for request in (*running, *waiting)] == [3, 3, 0, 0, 0, 0]


def test_where_nobody_decodes_a_step_reads_a_whole_chunk() -> None:
    bench = Bench(blocks=400, chunk=16)
    submit(bench, *(long(t) for t in range(10, 14)))
    for _ in range(6):
        bench.scheduler.step()
    assert bench.backend.reads == [16] * 6


def test_a_short_prompt_does_not_wait_for_the_long_ones_before_it() -> None:
    bench = Bench(blocks=400, chunk=16)
    submit(bench, *(long(t) for t in range(10, 14)), short := generation([2] * 8, greedy(2)))
    assert steps_until_first_token(bench, short) == 1
    submit(bench, other := generation([3] * 8, greedy(2)))
    assert steps_until_first_token(bench, other) <= 2, "half of a chunk, and half of that"


def test_a_long_prompt_ends_however_many_short_ones_come() -> None:
    bench = Bench(blocks=400, max_batch=4, chunk=16)
    submit(bench, first := long(10, 80))
    for step in range(80 // (16 // 4)):
        submit(bench, *(generation([20 + step % 15, t, step], greedy(1)) for t in range(2, 8)))
        bench.scheduler.step()
    assert made(first) > 0
    assert max(bench.backend.reads) == 16


def test_a_request_that_waits_for_memory_is_not_overtaken() -> None:
    bench = Bench(blocks=12, chunk=100)
    submit(bench, running := generation([2] * 20, greedy(12)))  # eight blocks
    bench.scheduler.step()
    submit(bench, large := generation([3] * 30, greedy(12)))
    small = [generation([t] * 4, greedy(4)) for t in range(10, 20)]
    submit(bench, *small)
    while not running.finished:
        bench.scheduler.step()
        assert not any(made(request) for request in (large, *small))
    bench.scheduler.step()
    assert made(large) == 1
    while not all(request.finished for request in (large, *small)):
        bench.scheduler.step()


def test_what_is_being_read_is_waited_for_and_others_pass() -> None:
    bench = Bench(blocks=100, chunk=8)
    shared = [2] * 40
    same = [generation([*shared, 3, t], greedy(3)) for t in range(4, 8)]
    submit(bench, *same, other := generation([9] * 4, greedy(3)))
    assert steps_until_first_token(bench, other) == 1
    assert [request.started is None for request in same] == [False, True, True, True]
    while not all(request.finished for request in same):
        bench.scheduler.step()
    assert [request.cached for request in same] == [0, 41, 41, 41]


def test_samples_wait_for_their_prompt_even_where_it_fills_no_block() -> None:
    bench = Bench(max_batch=8, chunk=2)
    request = generation([2, 3, 4], sampled(3, n=4))
    bench.run(request)
    assert bench.backend.reads == [2, 1, 1 + 3, 4, 3], "three tokens are in the cache: two and one"
    assert [told(output) for output in completions(request)] == [
        alone(request.ids, request.params, index=index) for index in range(4)
    ]


def test_no_more_of_the_queue_is_looked_at_than_could_run() -> None:
    bench = Bench(blocks=400, max_batch=4, chunk=8)
    looks, match = [], bench.cache.match
    bench.cache.match = lambda ids, limit: looks.append(ids) or match(ids, limit)  # type: ignore
    submit(bench, *(generation([*[2] * 60, 3 + t % 30, t], greedy(1)) for t in range(300)))
    looks.clear()
    bench.scheduler.step()
    bench.scheduler.step()
    assert len(looks) <= 2 * (4 + 1)


def test_a_batch_of_queries_is_full_after_few_steps_and_stays_so() -> None:
    """A prefix of 40 tokens is in the cache; 9 tokens follow it in each prompt, and 24 are made."""
    bench = Bench(blocks=600, max_batch=32, chunk=96)
    prefix = [5] * 40
    bench.run(generation(prefix, greedy(1)))
    bench.backend.reads.clear()
    batch = [generation([*prefix, *[6 + i % 8, 14 + i // 8] * 4, 3], greedy(24)) for i in range(32)]
    bench.run(*batch)
    reads = bench.backend.reads
    assert reads[0] == 96, "nobody decodes yet"
    assert sum(reads) == 32 * (9 + 23), "every token once"
    assert len(reads) <= 24 + 5
    assert reads.count(32) >= 24 - 5, "full but for the steps in which they come and go"
