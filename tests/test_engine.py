"""The engine as callers see it, on a tiny random model and the reference backend."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fixtures import TinyModel, random_weights, tiny_config, write_tokenizer, write_weights
from urial_engine.engine import Engine, RequestOutput
from urial_engine.errors import (
    CapacityError,
    CheckpointError,
    NumericsError,
    ParameterError,
    PromptError,
    TokenizerError,
    UrialError,
)
from urial_engine.prompt import UrialPrompt
from urial_engine.sampling import SamplingParams

PREFIX = "Be brief. " * 12  # more than one block of tokens
EIGHT = SamplingParams(max_tokens=8, ignore_eos=True)
Open = Callable[..., Engine]


@pytest.fixture
def open_engine(tiny_model: TinyModel) -> Iterator[Open]:
    """Engine(...) on the tiny model; closed in the end."""
    opened: list[Engine] = []

    def make(*, model: Path | None = None, **fields: Any) -> Engine:
        settings = {"device": "reference", "kv_cache_gib": 0.02, **fields}
        opened.append(Engine(model or tiny_model(), **settings))
        return opened[-1]

    yield make
    for engine in opened:
        engine.close()


def ids_of(output: RequestOutput, sample: int = 0) -> list[int]:
    return output.outputs[sample].token_ids


def blocks_in_use(engine: Engine) -> int:
    """Beside the pinned prefix."""
    cache = engine._scheduler._cache
    pinned = sum(len(s.blocks) for s in cache.segments() if s.pinned)
    return cache.blocks - cache.available - pinned


# generate


def test_greedy_tokens_are_the_largest_logits_of_the_whole_text(open_engine: Open) -> None:
    """Two roads: decoding token by token, and one teacher-forced pass over the result."""
    engine = open_engine(prefix=PREFIX)
    (output,) = engine.generate("Why?", SamplingParams(max_tokens=20, ignore_eos=True, logprobs=0))
    ids, tokens = output.prompt_token_ids, ids_of(output)
    assert ids == engine.tokenizer.encode(PREFIX + "Why?")
    (hidden,) = engine.hidden_states([ids + tokens[:-1]], [len(ids) - 1])
    assert engine.backend.logits(hidden).argmax(axis=-1).tolist() == tokens
    (scores,) = engine.score([ids], [tokens])
    assert (scores.rank == 1).all()
    logprobs = output.outputs[0].logprobs
    assert logprobs is not None
    got = [entry[token].logprob for token, entry in zip(tokens, logprobs, strict=True)]
    assert got == pytest.approx(scores.logprob.tolist(), abs=1e-5)
    assert output.outputs[0].cumulative_logprob == pytest.approx(sum(got))
    assert output.outputs[0].text == engine.tokenizer.decode(tokens)


def test_one_or_many_prompts_as_text_or_ids(open_engine: Open) -> None:
    engine = open_engine(prefix=PREFIX)
    ids = engine.tokenizer.encode(PREFIX + "Why?")
    outputs = engine.generate(["Why?", ids, np.array(ids), "No."], EIGHT)
    assert [ids_of(output) for output in outputs[1:3]] == [ids_of(outputs[0])] * 2
    assert [output.prompt for output in outputs] == ["Why?", None, None, "No."]
    for one in ("Why?", ids, ("Why?",), [ids]):
        (output,) = engine.generate(one, EIGHT)
        assert ids_of(output) == ids_of(outputs[0])
    assert engine.generate([], EIGHT) == []
    (bare,) = engine.generate([1, 70, 80], EIGHT)
    assert bare.prompt_token_ids == [1, 70, 80], "ids are a whole prompt, without the prefix"


def test_parameters_for_all_or_one_a_prompt(open_engine: Open) -> None:
    engine = open_engine()
    several = [SamplingParams(max_tokens=n, ignore_eos=True) for n in (3, 5)]
    assert [len(ids_of(o)) for o in engine.generate(["a", "b"], several)] == [3, 5]
    with pytest.raises(ParameterError, match="params has 2 entries for 1 prompts"):
        engine.generate("a", several)
    with pytest.raises(ParameterError, match="params must be one SamplingParams or a list"):
        engine.generate("a", {"n": 1})  # type: ignore[arg-type]


def test_the_prefix_is_taken_from_the_cache(open_engine: Open) -> None:
    engine = open_engine(prefix=PREFIX)
    tokens = len(engine.tokenizer.encode(PREFIX))
    (output,) = engine.generate("Why?", EIGHT)
    assert engine.info["prefix_tokens"] == tokens
    assert output.metrics.cached_tokens == tokens
    assert output.metrics.prompt_tokens == len(output.prompt_token_ids)
    assert output.metrics.generated_tokens == 8
    times = (output.metrics.started, output.metrics.first_token, output.metrics.finished)
    assert list(times) == sorted(times, key=lambda t: t or 0)
    assert open_engine().generate(PREFIX + "Why?", EIGHT)[0].outputs == output.outputs


def test_a_prompt_whose_first_token_merges_with_the_prefix(open_engine: Open) -> None:
    """The cache serves what is common; the ids are those of the whole text."""
    engine = open_engine(prefix="say !")
    (output,) = engine.generate("!", EIGHT)
    whole = engine.tokenizer.encode("say !!")
    assert output.prompt_token_ids == whole
    assert len(whole) == len(engine.prefix_ids), "two characters, one token"
    assert output.metrics.cached_tokens == len(whole) - 1
    assert output.outputs == open_engine().generate("say !!", EIGHT)[0].outputs


def test_a_seed_is_drawn_and_reported_and_gives_the_same_again(open_engine: Open) -> None:
    engine = open_engine()
    params = SamplingParams(temperature=1.0, n=3, max_tokens=12, ignore_eos=True)
    first, second = engine.generate(["a", "a"], params)
    assert first.seed != second.seed
    assert ids_of(first) != ids_of(second)
    assert len({tuple(ids_of(first, i)) for i in range(3)}) == 3
    assert [o.index for o in first.outputs] == [0, 1, 2]
    again = SamplingParams(temperature=1.0, n=3, max_tokens=12, ignore_eos=True, seed=first.seed)
    for output in engine.generate(["b", "a", "a"], again)[1:]:
        assert [ids_of(output, i) for i in range(3)] == [ids_of(first, i) for i in range(3)]


def test_it_ends_at_eos_at_a_stop_token_and_at_the_end_of_the_context(open_engine: Open) -> None:
    engine = open_engine(max_model_len=40)
    (free,) = engine.generate("a", SamplingParams(max_tokens=None, ignore_eos=True))
    assert len(free.prompt_token_ids) + len(ids_of(free)) == 40
    assert free.outputs[0].finish_reason == "length"
    token = ids_of(free)[3]
    (stopped,) = engine.generate("a", SamplingParams(max_tokens=None, stop_token_ids=[token]))
    assert (stopped.outputs[0].finish_reason, stopped.outputs[0].stop_reason) == ("stop", token)
    assert ids_of(stopped) == ids_of(free)[: ids_of(free).index(token) + 1]
    engine._eos = frozenset({token})
    (ended,) = engine.generate("a", SamplingParams(max_tokens=None))
    assert (ended.outputs[0].finish_reason, ended.outputs[0].stop_reason) == ("stop", None)
    assert ids_of(ended) == ids_of(stopped)


def test_eos_is_what_any_of_the_files_says(open_engine: Open, tiny_model: TinyModel) -> None:
    model = tiny_model(eos_token_id=[7, 9000])
    (model / "generation_config.json").write_text('{"eos_token_id": [8]}')
    assert open_engine(model=model)._eos == {2, 7, 8}, "2 is the tokenizer's; 9000 does not exist"


def test_prompt_logprobs_leave_the_prefix_cached(open_engine: Open) -> None:
    engine = open_engine(prefix=PREFIX)
    params = SamplingParams(max_tokens=1, prompt_logprobs=2)
    (output,) = engine.generate("Why not?", params)
    ids, start = output.prompt_token_ids, len(engine.prefix_ids)
    entries = output.prompt_logprobs
    assert entries is not None
    assert len(entries) == len(ids)
    assert entries[:start] == [None] * start
    assert output.metrics.cached_tokens == start - 1, "the row that judges the first one is run"
    (scores,) = engine.score([ids[:start]], [ids[start:]], top_k=2)
    for row, (token, entry) in enumerate(zip(ids[start:], entries[start:], strict=True)):
        assert entry is not None
        assert next(iter(entry)) == token
        assert entry[token].rank == scores.rank[row]
        assert entry[token].logprob == pytest.approx(float(scores.logprob[row]), abs=1e-5)
        assert set(entry) == {token, *scores.top_ids[row].tolist()}
    (bare,) = engine.generate([1, 70, 80], params)
    assert bare.prompt_logprobs is not None
    assert [entry is None for entry in bare.prompt_logprobs] == [True, False, False]
    (only,) = engine.generate("", params)
    assert only.prompt_logprobs == [None] * start
    assert engine.generate("a", EIGHT)[0].prompt_logprobs is None


def test_the_repetition_penalty_may_leave_out_the_prefix(open_engine: Open) -> None:
    alphabet = "".join(map(chr, range(33, 127)))
    engine = open_engine(prefix=alphabet)
    strong = {"repetition_penalty": 50.0, "max_tokens": 4, "ignore_eos": True}
    scopes = {
        scope: ids_of(
            engine.generate("x", SamplingParams(repetition_penalty_scope=scope, **strong))[0]
        )  # type: ignore[arg-type]
        for scope in ("all", "no_prefix")
    }
    assert scopes["all"] != scopes["no_prefix"]
    whole = open_engine().generate(alphabet + "x", SamplingParams(**strong))  # type: ignore[arg-type]
    assert ids_of(whole[0]) == scopes["all"]


def test_answer_renders_and_cleans(open_engine: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(prefix=UrialPrompt("Answer.\n", stop=("Zq",)))
    seen: list[Any] = []
    real = engine.generate

    def spy(prompts: Any, params: Any) -> list[RequestOutput]:
        seen.append((prompts, params))
        return real(prompts, params)

    monkeypatch.setattr(engine, "generate", spy)
    prompt = engine.prompt
    assert prompt is not None
    params = SamplingParams(max_tokens=8, stop="Xq")
    answers = engine.answer(["Why?", "How?"], params)
    ((texts, used),) = seen
    assert texts == [prompt.render("Why?"), prompt.render("How?")]
    assert used.stop == ("Xq", "Zq")
    assert answers == [prompt.clean(o.outputs[0].text) for o in real(texts, used)]
    assert engine.answer("Why?", params) == answers[:1]
    with pytest.raises(ParameterError, match="prefix=UrialPrompt"):
        open_engine(prefix="Answer.").answer("Why?")


def test_a_progress_bar_counts_prompts_and_tokens(
    open_engine: Open, capsys: pytest.CaptureFixture[str]
) -> None:
    open_engine().generate(["a", "b"], EIGHT, progress=True)
    assert "2/2 prompts, 16 tokens" in capsys.readouterr().out


# stream


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


# score and hidden states


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
    with pytest.raises(PromptError, match=r"first_positions\[0\]=2: not in a text of 2 ids"):
        engine.hidden_states([[1, 70]], [2])


def test_two_heads_are_compared_under_both_locks(open_engine: Open) -> None:
    base, aligned = open_engine(), open_engine()
    (hidden,) = base.hidden_states([[1, 70, 80]], [0])
    targets = np.array([70, 80, 90], np.int32)
    compared = base.compare(hidden, targets, 2, aligned, hidden)
    np.testing.assert_allclose(compared.kl_aligned_base, 0, atol=1e-6)
    same = base.compare(hidden, targets, 2, base, hidden)
    assert np.array_equal(same.base.rank, compared.base.rank)
    aligned.close()
    with pytest.raises(UrialError, match="closed"):
        base.compare(hidden, targets, 2, aligned, hidden)


# What is refused


def test_prompts_that_cannot_be_run(open_engine: Open, tiny_model: TinyModel) -> None:
    engine = open_engine(max_model_len=20)
    for prompt in ([[]], [np.array([], np.int64)]):
        with pytest.raises(PromptError, match=r"prompts\[0\] is empty: not one token"):
            engine.generate(prompt)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match=r"\[1\] is too long: 20 tokens and 1 more in a context"):
        engine.generate(["a", [5] * 20])
    for bad in (320, -1, 1.5, True):
        with pytest.raises(PromptError, match=r"prompts\[0\]: entry 1 is .* from 0 to 319"):
            engine.generate([5, bad])  # type: ignore[list-item]
    without_bos = open_engine(model=tiny_model(add_bos=False))
    with pytest.raises(PromptError, match="the tokenizer adds no BOS"):
        without_bos.generate("")
    assert len(open_engine().generate("", EIGHT)[0].prompt_token_ids) == 1, "a BOS is a token"


def test_a_request_that_never_fits_is_refused_and_the_rest_forgotten(open_engine: Open) -> None:
    engine = open_engine(kv_cache_gib=0.0002)
    with pytest.raises(CapacityError, match=r"prompts\[1\]: 400 prompt tokens"):
        engine.generate(["a", [5] * 400], EIGHT)
    assert blocks_in_use(engine) == 0
    assert len(ids_of(engine.generate("a", EIGHT)[0])) == 8


def test_parameters_beyond_the_vocabulary(open_engine: Open) -> None:
    engine = open_engine()
    for name in ("logprobs", "prompt_logprobs"):
        with pytest.raises(ParameterError, match=f"{name}=321: must be between 0 and"):
            engine.generate("a", SamplingParams(**{name: 321}))
    assert engine.generate("a", SamplingParams(max_tokens=1, logprobs=320))[0].finished


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_batch": 0}, "max_batch=0: must be at least 1"),
        ({"chunk": 0}, "chunk=0: must be at least 1"),
        ({"max_model_len": 513}, "max_model_len=513: must be between 2 and the model's 512"),
        ({"max_model_len": 1}, "max_model_len=1"),
        ({"device": "cuda"}, "there is no CUDA backend yet"),
        ({"kv_cache_gib": 0}, "kv_cache_gib=0"),
    ],
)
def test_what_an_engine_refuses_at_the_door(
    open_engine: Open, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        open_engine(**fields)


def test_a_prefix_longer_than_the_context(open_engine: Open) -> None:
    with pytest.raises(PromptError, match="the prefix is too long: 121 tokens and 1 more"):
        open_engine(prefix=PREFIX, max_model_len=121)


def test_a_tokenizer_with_more_tokens_than_the_weights(
    open_engine: Open, tiny_model: TinyModel
) -> None:
    model = tiny_model()
    write_tokenizer(model, 330)
    with pytest.raises(TokenizerError, match="the weights know 320"):
        open_engine(model=model)


def test_damaged_weights_are_refused(open_engine: Open, tiny_model: TinyModel) -> None:
    model = tiny_model()
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError):
        open_engine(model=model)


def plant(model: Path, name: str, row: int) -> Path:
    """A NaN in one row of one tensor."""
    weights = random_weights(tiny_config())
    weights[name][row] = np.nan
    write_weights(model, weights)
    return model


def test_nan_in_the_weights_names_layer_and_position(
    open_engine: Open, tiny_model: TinyModel
) -> None:
    model = plant(tiny_model(), "model.layers.1.mlp.up_proj.weight", 3)
    message = r"prompts\[0\]: layer 1 gives a value that is not finite at position 0; look for NaN"
    with pytest.raises(NumericsError, match=message):
        open_engine(model=model).generate("a")
    with pytest.raises(NumericsError, match="the prefix: layer 1"):
        open_engine(model=model, prefix=PREFIX)
    with pytest.raises(NumericsError, match="the head"):
        open_engine(model=plant(tiny_model(), "lm_head.weight", 5)).generate("a")


def test_one_bad_prompt_never_disturbs_another(open_engine: Open, tiny_model: TinyModel) -> None:
    engine = open_engine(model=plant(tiny_model(), "model.embed_tokens.weight", 99))
    stream = engine.stream("a", EIGHT)
    tokens = next(stream).token_ids
    with pytest.raises(NumericsError, match=r"prompts\[1\]: .* position 2") as caught:
        engine.generate(["b", [1, 70, 99, 80]], EIGHT)
    assert caught.value.row == 2
    tokens += [token for event in stream for token in event.token_ids]
    assert tokens == ids_of(engine.generate("a", EIGHT)[0])
    with pytest.raises(NumericsError, match="the prompt: "):
        list(engine.stream([1, 99]))
    assert blocks_in_use(engine) == 0


# Ctrl-C, threads, closing


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


def test_info_says_what_was_opened(open_engine: Open, tiny_model: TinyModel) -> None:
    engine = open_engine(model=tiny_model(some_new_key=1), prefix=PREFIX)
    info = engine.info
    assert (info["device"], info["dtype"], info["tied"]) == ("reference", "float64", False)
    assert info["ignored_config_keys"] == ("some_new_key",)
    assert info["kv_cache_bytes"] == engine.backend.block_bytes * int(str(info["kv_cache_blocks"]))
    assert (info["prefix_source"], info["prefix_tokens"]) == ("computed", 121)
    assert float(str(info["prefix_seconds"])) > 0
    assert info["context"] == 512
