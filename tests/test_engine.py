"""`generate` and `answer` as callers see them, on a tiny random model and the reference backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests import engines
from tests.engines import EIGHT, PREFIX, Open, ids_of
from tests.fixtures import TinyModel
from urial_engine.errors import (
    ParameterError,
)
from urial_engine.outputs import RequestOutput
from urial_engine.prompt import UrialPrompt
from urial_engine.sampling import SamplingParams

open_engine = engines.open_engine  # the fixture


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
    assert "2/2 prompts, 16 tokens" in capsys.readouterr().err
