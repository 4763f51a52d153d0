"""lm-evaluation-harness on our engine: its figures are those of the harness's own `hf`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.models.huggingface import HFLM
from safetensors.numpy import load_file, save_file

from tests import harness
from tests.fixtures import TinyModel
from tests.harness import TASKS, Evaluate, Open, answers, assert_close, requests
from urial_engine.errors import ParameterError, PromptError
from urial_engine.weights import HEAD

evaluate, open_lm = harness.evaluate, harness.open_lm  # the fixtures


def open_hf(model: Path, **model_args: Any) -> HFLM:
    """The harness's own model in fp32. Unless told otherwise it takes logarithms in fp32 too, and
    is then 2e-3 nats off the truth over a text of 300 tokens."""
    own = {"dtype": "float32", "softmax_dtype": "float64", "device": "cpu", **model_args}
    return HFLM(str(model), **own)


def test_figures_are_those_of_hf(evaluate: Evaluate, open_lm: Open, tiny_model: TinyModel) -> None:
    """Every task, windows and an empty text among them, on a tokenizer that begins with BOS."""
    model = tiny_model()
    assert_close(evaluate(open_lm(model)), evaluate(open_hf(model)), TASKS)


def test_figures_of_a_real_model(evaluate: Evaluate, open_lm: Open, real_model: Path) -> None:
    """Where greedy decoding gives some of the continuations, and answers are words."""
    some: dict[str, Any] = {"tasks": ["urial_last_word", "urial_answer"]}
    some["gen_kwargs"] = {"max_gen_toks": 8}  # `hf` takes its time
    hf = evaluate(open_hf(real_model, batch_size=8), **some)
    ours = evaluate(open_lm(real_model, kv_cache_gib=0.3), **some)
    assert_close(ours, hf, some["tasks"])
    assert {greedy for _, greedy in answers(ours, "urial_last_word")} == {True, False}


def test_chats_are_those_of_hf(evaluate: Evaluate, open_lm: Open, tiny_model: TinyModel) -> None:
    model = tiny_model()
    chat = {"apply_chat_template": True, "fewshot_as_multiturn": True}
    chat["system_instruction"] = "Be brief."  # type: ignore[assignment]
    ours, hf = evaluate(open_lm(model), **chat), evaluate(open_hf(model), **chat)
    assert_close(ours, hf, TASKS)
    (first, *_) = ours["samples"]["urial_choice"]
    assert "<system>\nBe brief.\n" in first["arguments"][0][0]


def test_no_bit_depends_on_the_batch(
    evaluate: Evaluate, open_lm: Open, tiny_model: TinyModel
) -> None:
    model = tiny_model()
    alone, three = (evaluate(open_lm(model, max_batch=n)) for n in (1, 3))
    for task in TASKS:
        assert answers(alone, task) == answers(three, task)


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("given", [True, False])
def test_a_bos_can_be_asked_for(
    open_lm: Open, tiny_model: TinyModel, add_bos: bool, given: bool
) -> None:
    model = tiny_model(add_bos=add_bos)
    ours, hf = open_lm(model, add_bos_token=given), open_hf(model, add_bos_token=given)
    for text in ("one two", "<s>one two", ""):
        assert ours.tok_encode(text) == hf.tok_encode(text)
    assert (ours.tok_encode("a")[0] == ours.tokenizer.bos_token_id) == given


def test_a_tokenizer_without_ends(open_lm: Open, tiny_model: TinyModel) -> None:
    model = tiny_model(add_bos=False)
    path = model / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "bos_token": None}))
    assert open_lm(model).prefix_token_id == open_lm(model).eot_token_id == 2
    with pytest.raises(ParameterError, match=r"add_bos_token=True: .* has no BOS"):
        open_lm(model, add_bos_token=True).tok_encode("one")
    path.write_text(json.dumps({**settings, "bos_token": None, "eos_token": None}))
    with pytest.raises(ParameterError, match="has no EOS"):
        open_lm(model).loglikelihood(requests("loglikelihood", ("", "one")))


def test_what_is_too_long_is_cut_as_hf_cuts_it(
    open_lm: Open, tiny_model: TinyModel, caplog: pytest.LogCaptureFixture
) -> None:
    """To the token: a window of max_length is read whole, and the token after it is judged."""
    model = tiny_model()
    long = "The river went on. " * 60
    pairs = requests("loglikelihood", (long, " And on."), ("And", long[:120]), (long, long[:200]))
    texts = requests("loglikelihood_rolling", (long,), (long[:300],))
    until = {"until": ["\n"], "max_gen_toks": 40}
    prompts = requests("generate_until", (long, until), ("The river", until))
    ours, hf = open_lm(model, max_length=300), open_hf(model, max_length=300)
    caplog.clear()
    for own, other in zip(ours.loglikelihood(pairs), hf.loglikelihood(pairs), strict=True):
        assert own == pytest.approx(other, abs=1e-3)
    assert ours.loglikelihood_rolling(texts) == pytest.approx(
        hf.loglikelihood_rolling(texts), abs=2e-3
    )
    assert ours.generate_until(prompts) == hf.generate_until(prompts)
    ours.loglikelihood(pairs)
    said = [r.getMessage() for r in caplog.records if r.name.startswith("urial_engine")]
    assert said == [f"requests longer than {n} tokens are cut from the left" for n in (301, 260)]


def test_what_cannot_be_cut(open_lm: Open, tiny_model: TinyModel) -> None:
    lm = open_lm(tiny_model())
    with pytest.raises(PromptError, match=r"request 1: 2 tokens of .* no more than 512 can be"):
        lm.loglikelihood(requests("loglikelihood", ("a", " b"), ("a", " river" * 200)))
    with pytest.raises(PromptError, match="request 0: 2 tokens of context and 0 to judge"):
        lm.loglikelihood(requests("loglikelihood", ("a", "")))
    with pytest.raises(PromptError, match="a context of 512 tokens leaves -88 for the prompt: gen"):
        lm.generate_until(requests("generate_until", ("a", {"max_gen_toks": 600})))


def test_greedy_is_the_smallest_id_among_equals(open_lm: Open, tiny_model: TinyModel) -> None:
    model = tiny_model(add_bos=False)
    weights = load_file(model / "model.safetensors")
    lm = open_lm(model)
    text = "one two"
    (best,) = lm.engine.score(lm.tok_encode(text), [5], top_k=1)[0].top_ids[0]
    letters = lm.tok_encode("q"), lm.tok_encode("z")
    for (token,) in letters:  # two more with the same logit, the largest there is
        weights[HEAD][token] = weights[HEAD][best] * np.float32(1.5)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    pairs = requests("loglikelihood", (text, "q"), (text, "z"))
    ours, hf = open_lm(model).loglikelihood(pairs), open_hf(model).loglikelihood(pairs)
    assert ours[0][0] == ours[1][0]
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in hf] == [True, False]


def test_stops(open_lm: Open, tiny_model: TinyModel) -> None:
    """Whichever string comes first; a special token, which is in no text, is one too."""
    model = tiny_model()
    weights = load_file(model / "model.safetensors")
    lm = open_lm(model)
    fifth = lm.engine.generate("Once")[0].outputs[0].token_ids[4]
    weights[HEAD][0] = weights[HEAD][fifth] * np.float32(1.5)  # <unk> comes then, or before
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    lm, hf = open_lm(model), open_hf(model)

    def text(*until: str) -> str:
        fields = {"until": list(until), "max_gen_toks": 40}
        ours, theirs = (
            each.generate_until(requests("generate_until", ("Once", dict(fields))))
            for each in (lm, hf)
        )
        assert ours == theirs
        return ours[0]

    whole = text()
    first = whole.index(whole[6:8])
    assert text(whole[12:14], whole[6:8]) == whole[: min(first, whole.index(whole[12:14]))]
    assert len(text("<unk>")) < 12 < len(whole)


def test_sampled_texts_can_be_repeated(open_lm: Open, tiny_model: TinyModel) -> None:
    lm = open_lm(tiny_model())
    fields = {"do_sample": True, "temperature": 0.9, "top_p": 0.95, "max_gen_toks": 12}
    same = requests("generate_until", *[("Once", fields)] * 3)
    first = lm.generate_until(same)
    assert len(set(first)) == 3 and lm.generate_until(same) == first
    seeded = requests("generate_until", *[("Once", {**fields, "seed": 1})] * 2)
    assert lm.generate_until(seeded) == [first[1]] * 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"do_sample": True}, "do_sample=True without a temperature"),
        ({"num_beams": 4}, "num_beams=4: there is no beam search"),
        ({"typical_p": 0.5}, "unknown sampling parameter: 'typical_p'"),
        ({"max_gen_toks": 0}, "max_tokens=0: must be at least 1"),
    ],
)
def test_generation_arguments_that_cannot_be_honoured(
    open_lm: Open, tiny_model: TinyModel, fields: dict[str, Any], message: str
) -> None:
    lm = open_lm(tiny_model())
    with pytest.raises(ParameterError, match=message):
        lm.generate_until(requests("generate_until", ("Once", fields)))
    assert lm.generate_until(requests("generate_until", ("Once", {"num_beams": 1})))


def test_model_args(open_lm: Open, tiny_model: TinyModel) -> None:
    model = tiny_model()
    settings = {"threads": 1, "isa": "auto", "device": "reference", "invariant": True}
    lm = open_lm(model, **settings, max_length=64, batch_size="auto", max_batch_size=4)
    assert (lm.engine.info["device"], lm.max_length) == ("reference", 64)
    for wrong, message in (
        ({"revision": "main", "peft": "x"}, "model_args has no peft, revision; there are pretr"),
        ({"max_batch": "many"}, "max_batch='many': must be of type int"),
        ({"kv_cache_gib": "1GB"}, "kv_cache_gib='1GB': must be of type int or float"),
        ({"threads": True}, "threads=True: must be of type int"),
        ({"prompt": "default", "add_bos_token": True}, "add_bos_token=True with prompt='default'"),
    ):
        with pytest.raises(ParameterError, match=message):
            open_lm(model, **wrong)


def test_answers_that_the_harness_has_are_not_computed_again(
    evaluate: Evaluate, open_lm: Open, tiny_model: TinyModel, tmp_path: Path
) -> None:
    model, cache = tiny_model(), str(tmp_path / "responses")
    first = evaluate(open_lm(model), use_cache=cache)
    lm = open_lm(model)
    lm.engine.close()
    again = evaluate(lm, use_cache=cache)
    for task in TASKS:
        assert answers(again, task) == answers(first, task)


@pytest.mark.parametrize(("task", "steps"), [("urial_choice", 20), ("urial_text", 2)])
def test_a_run_that_ends_early_keeps_what_it_has(
    evaluate: Evaluate,
    open_lm: Open,
    tiny_model: TinyModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    steps: int,
) -> None:
    """In the harness's cache of responses, request by request, and text by text."""
    model, cache = tiny_model(), str(tmp_path / "responses")
    asked: list[int] = []

    def run_to(end: int) -> dict[str, Any]:
        lm, counted = open_lm(model, max_batch=1), iter(range(1, 1000))
        run = lm.engine.run

        def counting(own: Any, after_step: Callable[[], None]) -> None:
            def step() -> None:
                after_step()
                if next(counted) == end:
                    raise KeyboardInterrupt

            asked.append(len(own))
            run(own, step)

        monkeypatch.setattr(lm.engine, "run", counting)
        return evaluate(lm, use_cache=cache, tasks=[task])

    with pytest.raises(KeyboardInterrupt):
        run_to(steps)
    answered = answers(run_to(0), task)
    whole, rest = asked
    assert 0 < rest < whole
    assert answered == answers(evaluate(open_lm(model), tasks=[task]), task)
