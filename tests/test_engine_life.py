"""Ctrl-C, threads, faults and closing: an engine is never found between two states."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests import engines
from tests.engines import EIGHT, PREFIX, Open, blocks_in_use
from tests.fixtures import TinyModel
from urial_engine.engine import Engine
from urial_engine.errors import (
    PromptError,
    UrialError,
)
from urial_engine.sampling import SamplingParams

open_engine = engines.open_engine  # the fixture


def press_ctrl_c_in_step(engine: Engine, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """In the middle of the step of that number, once."""
    forward, calls = engine.backend.forward, iter(range(1, 1000))

    def pressed(batch: Any) -> Any:
        if next(calls) == number:
            signal.raise_signal(signal.SIGINT)
        return forward(batch)

    monkeypatch.setattr(engine.backend, "forward", pressed)


def test_ctrl_c_returns_what_is_there(open_engine: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(prefix=PREFIX, max_batch=2)
    params = [SamplingParams(max_tokens=n, ignore_eos=True) for n in (2, 20, 20)]
    truth = engine.generate(["a", "b", "c"], params)
    press_ctrl_c_in_step(engine, monkeypatch, 6)
    outputs = engine.generate(["a", "b", "c"], params)
    reasons = [output.outputs[0].finish_reason for output in outputs]
    assert reasons == ["length", "abort", "abort"]
    assert [output.finished for output in outputs] == [True, False, False]
    assert outputs[0].outputs == truth[0].outputs
    for output, whole in zip(outputs[1:], truth[1:], strict=True):
        part = output.outputs[0]
        assert 0 < len(part.token_ids) < 20
        assert part.token_ids == whole.outputs[0].token_ids[: len(part.token_ids)]
        assert part.text == engine.tokenizer.decode(part.token_ids)
    assert blocks_in_use(engine) == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert engine.generate(["a", "b", "c"], params)[2].outputs == truth[2].outputs


def test_ctrl_c_while_prompt_logprobs_are_computed(
    open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(chunk=4)
    press_ctrl_c_in_step(engine, monkeypatch, 2)
    (output,) = engine.generate([[5] * 20], SamplingParams(prompt_logprobs=0))
    assert output.prompt_logprobs is not None
    assert [entry is None for entry in output.prompt_logprobs] == [True] + [False] * 8 + [True] * 11
    assert output.outputs[0].finish_reason == "abort"


def test_ctrl_c_ends_scoring_and_streaming(
    open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    for call in (
        lambda engine: engine.score([[5] * 20], [[6]]),
        lambda engine: list(engine.stream("a", EIGHT)),
    ):
        engine = open_engine(chunk=4)
        press_ctrl_c_in_step(engine, monkeypatch, 2)
        with pytest.raises(KeyboardInterrupt):
            call(engine)
        assert blocks_in_use(engine) == 0


def test_a_fault_in_the_backend_leaves_nothing_behind(
    open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine()
    with monkeypatch.context() as patch:
        patch.setattr(engine.backend, "next_tokens", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.generate(["a", "b"], EIGHT)
    assert blocks_in_use(engine) == 0
    assert engine.generate("a", EIGHT)[0].finished


def test_threads_share_an_engine(open_engine: Open) -> None:
    engine = open_engine(prefix=PREFIX, max_batch=4)
    texts = [f"Question {i}?" for i in range(6)]
    truth = [output.outputs for output in engine.generate(texts, EIGHT)]
    results: dict[int, Any] = {}

    def work(number: int) -> None:
        order = texts[number:] + texts[:number]
        outputs = [output.outputs for output in engine.generate(order, EIGHT)]
        results[number] = outputs[-number:] + outputs[:-number] if number else outputs

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for number in range(4):
        for own, expected in zip(results[number], truth, strict=True):
            assert own[0].token_ids == expected[0].token_ids


def test_a_closed_engine_says_so(open_engine: Open) -> None:
    engine = open_engine()
    stream = engine.stream("a", EIGHT)
    next(stream)
    engine.close()
    engine.close()
    uses: list[Callable[[], object]] = [
        lambda: engine.generate("a"),
        lambda: engine.score("a", "b"),
        lambda: engine.hidden_states([[1]], [0]),
        lambda: next(stream),
    ]
    for use in uses:
        with pytest.raises(UrialError, match="this engine is closed"):
            use()
    with open_engine() as other:
        other.generate("a", EIGHT)
    with pytest.raises(UrialError, match="closed"):
        other.generate("a")


def test_a_backend_is_closed_when_opening_fails(
    open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[object] = []
    name = "urial_engine.backends.reference.ReferenceBackend.close"
    monkeypatch.setattr(name, lambda self: closed.append(self))
    with pytest.raises(PromptError):
        open_engine(prefix=PREFIX, max_model_len=50)
    assert len(closed) == 1


def test_the_default_cache_holds_as_much_as_can_be_used(open_engine: Open) -> None:
    engine = open_engine(kv_cache_gib=None, max_batch=3, max_model_len=130)
    assert engine.info["kv_cache_blocks"] == (3 + 1) * -(-130 // engine.backend.block_size)


def test_info_says_what_was_opened(open_engine: Open, tiny_model: TinyModel) -> None:
    engine = open_engine(model=tiny_model(some_new_key=1), prefix=PREFIX)
    info = engine.info
    assert (info["device"], info["dtype"], info["tied"]) == ("reference", "float64", False)
    assert info["ignored_config_keys"] == ("some_new_key",)
    assert info["kv_cache_bytes"] == engine.backend.block_bytes * int(str(info["kv_cache_blocks"]))
    assert (info["prefix_source"], info["prefix_tokens"]) == ("computed", 121)
    assert float(str(info["prefix_seconds"])) > 0
    assert info["context"] == 512


def test_between_the_tokens_of_streams_ctrl_c_strikes_at_once(open_engine: Open) -> None:
    """However many streams there are, and in whatever order they end."""
    one, other = (open_engine().stream("a", EIGHT) for _ in range(2))
    for _ in range(2):
        next(one), next(other)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    one.close()
    assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert len(list(other)) == 8 - 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_step_is_protected_after_another_stream_has_ended(
    open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, engine = open_engine(), open_engine()
    stream = first.stream("a", EIGHT)
    next(stream)
    other = engine.stream("a", EIGHT)
    next(other)
    stream.close()
    press_ctrl_c_in_step(engine, monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        next(other)
    assert blocks_in_use(engine) == 0
    assert engine.generate("a", EIGHT)[0].finished


def test_a_stream_that_ends_in_another_thread_leaves_ctrl_c_as_it_was(open_engine: Open) -> None:
    stream = open_engine().stream("a", EIGHT)
    next(stream)
    thread = threading.Thread(target=stream.close)
    thread.start()
    thread.join(60)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert open_engine().generate("a", EIGHT)[0].finished
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_strikes_at_once(
    open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine()

    def pressed(batch: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it goes on")

    monkeypatch.setattr(engine.backend, "forward", pressed)
    assert engine.generate("a", EIGHT)[0].outputs[0].finish_reason == "abort"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
