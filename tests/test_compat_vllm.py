"""vLLM's offline API on a tiny model: what its callers get is what `Engine` gives."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fixtures import TinyModel
from urial_engine import sampling
from urial_engine.compat.vllm import LLM, SamplingParams, TextPrompt, TokensPrompt
from urial_engine.engine import Engine
from urial_engine.errors import ParameterError, UrialError

OpenLLM = Callable[..., LLM]
PROMPTS = ["The cat", "A much longer prompt than that", "The dog"]
# vLLM 0.32, and of what it has dropped since, the last default that it had.
DEFAULTS = {
    "n": 1, "best_of": None, "seed": None, "max_tokens": 16, "min_tokens": 0,
    "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "stop": [], "stop_token_ids": [],
    "ignore_eos": False, "logprobs": None, "prompt_logprobs": None, "detokenize": True,
    "skip_special_tokens": True, "spaces_between_special_tokens": True,
    "include_stop_str_in_output": False, "use_beam_search": False, "length_penalty": 1.0,
    "early_stopping": False, "flat_logprobs": False, "extra_args": None, "logit_bias": None,
}  # fmt: skip


@pytest.fixture
def open_llm(tiny_model: TinyModel) -> Iterator[OpenLLM]:
    """LLM(...) on a tiny model; closed in the end."""
    opened: list[LLM] = []

    def make(*, model: Path | None = None, **arguments: Any) -> LLM:
        opened.append(LLM(model or tiny_model(), **arguments))
        return opened[-1]

    yield make
    for llm in opened:
        llm.close()


def generate(llm: LLM, prompts: Any, params: Any = None, **others: Any) -> list[Any]:
    return llm.generate(prompts, params, use_tqdm=False, **others)


def test_defaults_are_those_of_vllm() -> None:
    params = SamplingParams()
    assert {name: getattr(params, name) for name in DEFAULTS} == DEFAULTS
    assert SamplingParams(2, 0.1, 0.2, 1.3, 0.5, 0.9, 7, 0.05, 11) == SamplingParams(
        n=2, presence_penalty=0.1, frequency_penalty=0.2, repetition_penalty=1.3, temperature=0.5,
        top_p=0.9, top_k=7, min_p=0.05, seed=11,
    )  # fmt: skip
    several = {"presence_penalty": 0.1, "top_k": 7, "max_tokens": None}
    assert SamplingParams.from_optional(n=None, temperature=None, **several) == SamplingParams(
        **several
    )
    copied = params.clone()
    copied.stop.append("x")
    assert (params.stop, copied.stop) == ([], ["x"])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {"temperature": 0}),
        ({"max_tokens": None}, {"temperature": 0, "max_tokens": None}),
        ({"repetition_penalty": 1.3}, {"temperature": 0.0, "repetition_penalty": 1.3}),
        ({"stop": ("e", "Q")}, {"temperature": 0, "stop": ["e", "Q"]}),
        ({"stop": "a", "min_tokens": 4}, {"temperature": 0, "stop": "a", "min_tokens": 4}),
        ({"temperature": 0.7, "n": 3, "seed": 5}, {"temperature": 0.7, "n": 3, "seed": 5}),
        ({"temperature": 1.0, "top_k": 0, "seed": 2**64 - 7}, {"top_k": -1, "seed": -7}),
        ({"temperature": 0.01, "seed": 1}, {"temperature": 1e-3, "seed": 1}),
        ({"logprobs": 2, "prompt_logprobs": 0}, {"logprobs": 2, "prompt_logprobs": 0}),
        ({"logprobs": 1, "stop_token_ids": (9,)}, {"logprobs": True, "stop_token_ids": [9]}),
    ],
)
def test_it_gives_what_the_engine_gives(
    open_llm: OpenLLM, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    llm = open_llm()
    theirs = {"temperature": 0.0, **theirs} if "temperature" not in ours else theirs
    truth = llm.engine.generate(PROMPTS, sampling.SamplingParams(**ours))
    for output, own in zip(generate(llm, PROMPTS, SamplingParams(**theirs)), truth, strict=True):
        assert output.prompt == own.prompt
        assert output.prompt_token_ids == own.prompt_token_ids
        assert output.prompt_logprobs == own.prompt_logprobs
        assert output.finished and output.seed == (ours.get("seed", output.seed))
        for sample, same in zip(output.outputs, own.outputs, strict=True):
            for name in ("index", "text", "token_ids", "logprobs", "finish_reason", "stop_reason"):
                assert getattr(sample, name) == getattr(same, name), name
            assert sample.cumulative_logprob == same.cumulative_logprob
            assert sample.finished() and sample.lora_request is None
        assert output.lora_request is output.encoder_prompt is None


def test_prompts_in_every_form(open_llm: OpenLLM) -> None:
    llm, params = open_llm(), SamplingParams(temperature=0, max_tokens=4)
    ids = [llm.engine.tokenizer.encode(text) for text in PROMPTS]
    truth = [output.outputs for output in generate(llm, PROMPTS, params)]

    def outputs(*prompts: Any, **others: Any) -> list[Any]:
        return [output.outputs for output in generate(llm, *prompts, **others)]

    assert outputs(ids, params) == truth
    assert outputs([TokensPrompt(prompt_token_ids=own) for own in ids], params) == truth
    assert outputs([np.array(ids[0]), TextPrompt(prompt=PROMPTS[1]), ids[2]], params) == truth
    assert outputs(None, params, prompt_token_ids=ids) == truth
    assert llm.generate(None, params, ids, False)[1].outputs == truth[1]
    both = generate(llm, PROMPTS, params, prompt_token_ids=ids)
    assert [output.prompt for output in both] == PROMPTS
    for one in (PROMPTS[0], ids[0], {"prompt": PROMPTS[0], "multi_modal_data": None}):
        assert outputs(one, params) == truth[:1]
    assert outputs(None, params, prompt_token_ids=ids[0]) == truth[:1]
    assert generate(llm, [], params) == []
    each = [SamplingParams(temperature=0, max_tokens=n) for n in (1, 2, 3)]
    assert [len(o.outputs[0].token_ids) for o in generate(llm, PROMPTS, each)] == [1, 2, 3]
    numbers = [int(output.request_id) for output in generate(llm, PROMPTS, params)]
    assert numbers == list(range(numbers[0], numbers[0] + 3))


def test_every_prompt_token_has_its_rank(open_llm: OpenLLM) -> None:
    llm = open_llm()
    (output,) = generate(llm, PROMPTS[1], SamplingParams(max_tokens=1, prompt_logprobs=3))
    ids = output.prompt_token_ids
    assert output.prompt_logprobs[0] is None and len(output.prompt_logprobs) == len(ids)
    (score,) = llm.engine.score([ids[:1]], [ids[1:]])
    for token, entry, rank, logprob in zip(
        ids[1:], output.prompt_logprobs[1:], score.rank, score.logprob, strict=True
    ):
        assert (entry[token].rank, entry[token].logprob) == (rank, logprob)
        assert entry[token].decoded_token == llm.engine.tokenizer.token_text(token)
        assert len(entry) in (3, 4)


def test_logprobs_have_the_limit_of_vllm(open_llm: OpenLLM, tiny_model: TinyModel) -> None:
    model = tiny_model()
    with pytest.raises(ParameterError, match=r"logprobs=21.*max_logprobs=20"):
        generate(open_llm(model=model), "a", SamplingParams(logprobs=21))
    with pytest.raises(ParameterError, match=r"prompt_logprobs=-1.*max_logprobs=20"):
        generate(open_llm(model=model), "a", SamplingParams(prompt_logprobs=-1))
    llm = open_llm(model=model, max_logprobs=-1)
    (output,) = generate(llm, "a", SamplingParams(logprobs=-1, max_tokens=1))
    assert len(output.outputs[0].logprobs[0]) == llm.engine.config.vocab_size


def test_a_script_run_again_draws_the_same(open_llm: OpenLLM, tiny_model: TinyModel) -> None:
    model, params = tiny_model(), SamplingParams(max_tokens=12)

    def texts(**arguments: Any) -> list[str]:
        llm = open_llm(model=model, **arguments)
        first, second = generate(llm, ["a", "a"], params), generate(llm, "a", params)
        return [output.outputs[0].text for output in first + second]

    found = texts()
    assert found == texts(seed=0) == texts(seed=None)
    assert found != texts(seed=1)
    assert len(set(found)) == 3  # a seed is no request's twice
    llm = open_llm(model=model)
    (output,) = generate(llm, "a", params)
    (again,) = llm.engine.generate(
        "a", sampling.SamplingParams(temperature=1, max_tokens=12, seed=output.seed)
    )
    assert again.outputs[0].text == output.outputs[0].text


def test_attributes_that_are_set_later_count(open_llm: OpenLLM) -> None:
    llm, params = open_llm(), SamplingParams(temperature=0)
    params.max_tokens = 3
    params.stop.append("Q")
    assert len(generate(llm, "a", params)[0].outputs[0].token_ids) == 3
    params.temperature, params.n, params.seed = 0.8, 2, 4
    assert len(generate(llm, "a", params)[0].outputs) == 2
    params.bad_words = ["no"]
    with pytest.raises(ParameterError, match="bad_words"):
        generate(llm, "a", params)
    with pytest.raises(AttributeError, match="tempreature"):
        params.tempreature = 1


def test_text_with_special_tokens_or_none_at_all(open_llm: OpenLLM) -> None:
    llm = open_llm()
    wanted = {"n": 8, "max_tokens": 200, "ignore_eos": True, "skip_special_tokens": False}
    (output,) = generate(llm, "a", SamplingParams(**wanted))
    assert any({0, 1, 2} & {*sample.token_ids} for sample in output.outputs)
    for sample in output.outputs:
        ids = sample.token_ids
        assert sample.text.count("</s>") == ids.count(2)
        assert sample.text == llm.get_tokenizer().decode(ids)
    ids = output.outputs[0].token_ids
    stopped = SamplingParams(seed=output.seed, stop_token_ids=ids[9:10], **{**wanted, "n": 1})
    (output,) = generate(llm, "a", stopped)
    (sample,) = output.outputs
    assert sample.token_ids == ids[: ids.index(ids[9]) + 1] and sample.stop_reason == ids[9]
    assert sample.text == llm.get_tokenizer().decode(sample.token_ids[:-1])
    (output,) = generate(llm, "a", SamplingParams(temperature=0, detokenize=False))
    assert output.outputs[0].text == "" and output.outputs[0].token_ids


def test_what_has_no_meaning_is_said_once(
    open_llm: OpenLLM, caplog: pytest.LogCaptureFixture
) -> None:
    llm = open_llm()
    each = [SamplingParams(max_tokens=1, spaces_between_special_tokens=False) for _ in range(2)]
    generate(llm, ["a", "b"], each)
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        "of no meaning here, and so not used: spaces_between_special_tokens=False"
    ]


def test_ctrl_c_ends_the_script(open_llm: OpenLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = open_llm()
    forward = llm.engine.backend.forward

    def pressed(batch: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return forward(batch)

    monkeypatch.setattr(llm.engine.backend, "forward", pressed)
    with pytest.raises(KeyboardInterrupt):
        generate(llm, "a", SamplingParams(max_tokens=50, ignore_eos=True))


def test_it_frees_its_engine_when_it_goes(tiny_model: TinyModel) -> None:
    llm = LLM(tiny_model(), kv_cache_memory_bytes=1 << 20)
    engine: Engine = llm.engine
    del llm
    with pytest.raises(UrialError, match="closed"):
        engine.generate("a")
    with LLM(tiny_model()) as llm:
        engine = llm.engine
    with pytest.raises(UrialError, match="closed"):
        engine.generate("a")
