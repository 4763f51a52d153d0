"""Prefixes beside the engine's own: pinned, continued, restored, let go."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.fixtures import TinyModel
from urial_engine.engine import Engine
from urial_engine.errors import CapacityError, PromptError
from urial_engine.sampling import SamplingParams
from urial_engine.scheduler_requests import Generation, Request

TEXT = "A constant beginning. " * 9
PARAMS = SamplingParams(max_tokens=12)


def pinned_blocks(engine: Engine) -> int:
    return sum(len(s.blocks) for s in engine._scheduler._cache.segments() if s.pinned)


def test_what_continues_it_is_as_the_whole_text(tiny_model: TinyModel, tmp_path: Path) -> None:
    model = tiny_model()
    with Engine(model) as engine:
        wanted = engine.generate(TEXT + "Why?", PARAMS)[0].outputs[0]
    for source in ("computed", "restored"):
        with Engine(model) as engine:
            prefix = engine.pin(TEXT, tmp_path / "kept")
            assert prefix.info["prefix_source"] == source
            request = engine.generation("Why?", PARAMS, "it", prefix=prefix)
            engine.submit(request)
            while engine.step():
                pass
            assert request.samples[0].output() == wanted
            assert request.cached == len(request.ids) - 4 == len(prefix.ids) == request.prefix


def test_it_stays_until_it_is_let_go(tiny_model: TinyModel) -> None:
    with Engine(tiny_model(), kv_cache_gib=0.0015) as engine:
        whole = engine.load
        first, second = engine.pin(TEXT), engine.pin([5] * 70)
        held = engine.load.blocks - engine.load.available
        assert held == pinned_blocks(engine) == -(-len(first.ids) // 64) + 2
        for i in range(30):
            engine.generate(f"{i} " * 60, PARAMS)
        assert engine.generate([[*first.ids, 7]], PARAMS)[0].metrics.cached_tokens == len(first.ids)
        assert engine.generate([[5] * 70 + [7]], PARAMS)[0].metrics.cached_tokens == 70
        engine.unpin(first)
        engine.unpin(second)
        assert pinned_blocks(engine) == 0 and engine.load == whole


def test_while_others_run(tiny_model: TinyModel) -> None:
    """Threads that pin, and one that generates, make steps for each other."""
    with Engine(tiny_model()) as engine:
        prompts = [f"text {i}" for i in range(8)]
        wanted = [out.outputs for out in engine.generate(prompts, PARAMS)]
        done = threading.Event()

        def pin_and_unpin() -> None:
            while not done.is_set():
                engine.unpin(engine.pin(TEXT))

        thread = threading.Thread(target=pin_and_unpin)
        thread.start()
        try:
            for _ in range(10):
                assert [out.outputs for out in engine.generate(prompts, PARAMS)] == wanted
        finally:
            done.set()
            thread.join()
        assert pinned_blocks(engine) == 0


def test_what_cannot_be_is_refused(tiny_model: TinyModel) -> None:
    with Engine(tiny_model(), kv_cache_gib=0.0003) as engine:
        with pytest.raises(CapacityError, match=r"needs .* cache blocks, and 1 must be left"):
            engine.pin([5] * 500)
        prefix = engine.pin([5, 6, 7])
        with pytest.raises(PromptError, match="no text continues a prefix of token ids"):
            engine.generation("a", PARAMS, "it", prefix=prefix)
        assert engine.generation([5, 6, 7, 8], PARAMS, "it", prefix=prefix).prefix == 3
        with pytest.raises(PromptError, match="entry 0 is 999"):
            engine.pin([999])


def test_who_loses_his_room_to_a_prefix_ends_alone(tiny_model: TinyModel) -> None:
    """He was let in when there was room for him; nobody waits for him for ever."""
    with Engine(tiny_model(), kv_cache_gib=0.0006, max_batch=1) as engine:
        room = engine.load.blocks * engine.backend.block_size

        def request(count: int) -> Generation:
            params = SamplingParams(max_tokens=count, ignore_eos=True)
            return engine.generation([7], params, "it")

        ids = [5] * (room // 2)
        prefix = Request("the prefix", ids, len(ids) - 1, pin=True)
        first, large, small = request(9), request(room), request(9)
        for one in (first, prefix, large, small):
            engine.submit(one)
        while engine.step():
            pass
        assert isinstance(large.error, CapacityError) and "raise kv_cache_gib" in str(large.error)
        assert first.error is prefix.error is small.error is None
        assert len(small.samples[0].token_ids) == 9


def test_a_prefix_leaves_the_room_that_is_asked_for(tiny_model: TinyModel) -> None:
    with Engine(tiny_model(), kv_cache_gib=0.0006) as engine:
        room = engine.load.blocks * engine.backend.block_size
        ids = [5] * (room // 2)
        with pytest.raises(CapacityError, match="must be left for prompts"):
            engine.pin(ids, spare=room // 2 + 1)
        assert engine.capacity([7], 0) == min(room, engine.context)
        engine.pin(ids, spare=room // 2 - engine.backend.block_size)
        assert engine.capacity([7], 0) <= room // 2 < engine.capacity([*ids, 7], len(ids))


def test_a_copy_of_a_pinned_text_is_not_in_its_way(tiny_model: TinyModel) -> None:
    """What nobody uses of it is the longer match, and takes the room that is promised."""
    with Engine(tiny_model(), kv_cache_gib=0.0006) as engine:
        size = engine.backend.block_size
        ids = [5] * (2 * size)
        engine.pin(ids)
        longer = [*ids, *[9] * size]
        engine.generate([longer], SamplingParams(max_tokens=1, prompt_logprobs=0))
        most = engine.capacity(longer, len(longer) - 1) + 1 - len(longer)
        params = SamplingParams(max_tokens=most, ignore_eos=True)
        (output,) = engine.generate([longer], params)
        assert len(output.outputs[0].token_ids) == min(most, engine.context - len(longer))
