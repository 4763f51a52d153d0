"""How answers come about in a token shift: where they end, and what they are drawn from."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fixtures import TinyModel
from urial_engine import Engine, SamplingParams, UrialPrompt, token_shift
from urial_engine.outputs import CompletionOutput
from urial_engine.prompt import in_urial_form
from urial_engine.sources import Probe
from urial_engine.token_shift import sampling, side_of, written
from urial_engine.token_shift_plan import Plan


def probe(query: str, **more: Any) -> Probe:
    fields = dict.fromkeys(Probe.__dataclass_fields__)
    return Probe(**{**fields, "id": 1, "sample": 0, "where": "row 1", "query": query, **more})


@pytest.fixture
def engine(tiny_model: TinyModel) -> Any:
    with Engine(tiny_model(), device="reference", kv_cache_gib=0.02) as opened:
        yield opened


def plan_of(engine: Engine, prompt: Any) -> Plan:
    return Plan.make(side_of("base", engine, "raw"), side_of("aligned", engine, prompt), 0)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("It is.\n```\n\n# Query:\n", "It is."),
        ("\n\nIt is. \n\n```", "It is."),
        ("Cut in the middle", "Cut in the middle"),
        ("Look:\n```py\nx = 1\n```\nso.\n```\n", "Look:\n```py\nx = 1\n```\nso."),
        ("a é<s> b\n```\n", "a é b"),
        ("```\n", ""),
    ],
)
def test_between_fences_an_answer_ends_where_its_fence_is(
    engine: Engine, text: str, kept: str
) -> None:
    """Its text and its tokens say the same, special tokens among them or not."""
    plan = plan_of(engine, "zero-shot")
    ids = engine.tokenizer.encode(text, add_special_tokens=False)
    shown = text.replace("<s>", "")
    output = CompletionOutput(0, shown, ids, "length", None, 0.0, None)
    answer = written(plan, plan.ask(probe("why?")), output)
    assert answer.text == kept
    decoded = engine.tokenizer.decode(answer.token_ids)
    assert decoded.lstrip("\n").rstrip() == kept and len(answer.pieces) == len(answer.token_ids)
    cut = len(answer.token_ids) < len(ids)
    assert answer.finish_reason == ("stop" if cut else "length")
    free = written(plan_of(engine, "raw"), plan.ask(probe("why?")), output)
    assert free.token_ids == ids


def test_the_form_is_that_of_the_prompt_not_of_the_query(engine: Engine) -> None:
    fenced = "fix this\n```\ncode\n```\n"
    for prompt, between in (
        ("raw", False),
        ("chat", False),
        ("A: {query}", False),
        ("zero-shot", True),
        ("Q {query}\n```\n", True),
        (UrialPrompt("x"), True),
        (lambda query: query, False),
    ):
        assert in_urial_form(prompt) == between
        plan = plan_of(engine, {"it": prompt})
        stop = sampling(plan, plan.ask(probe(fenced)), SamplingParams(stop="x")).stop_strings
        assert stop == (("x", "# Query", "# User") if between else ("x",))
    given = plan_of(engine, "given")
    assert given.between_fences(probe("q", prompt="# Answer:\n```\n"))
    assert not given.between_fences(probe("q", prompt="q"))


def test_an_answer_is_no_longer_than_every_context_has_room_for(tiny_model: TinyModel) -> None:
    short = tiny_model(folder="short", max_position_embeddings=32)
    with (
        Engine(short, device="reference", kv_cache_gib=0.02) as base,
        Engine(tiny_model(folder="long"), device="reference", kv_cache_gib=0.02) as aligned,
    ):
        for most in (None, 100):
            params = SamplingParams(max_tokens=most, ignore_eos=True)
            shift = token_shift(
                base, aligned, ["ab"], base_prompt="Q: {query}", aligned_prompt="raw", params=params
            )
            (answer,) = shift.answers
            room = 33 - len(answer.base_context_ids["Q: {query}"])  # the last one is never read
            assert len(answer.token_ids) == room


def test_queries_of_one_seed_do_not_share_their_random_numbers(engine: Engine) -> None:
    """Else every answer to a query, and to one that is as long, would be the same draw."""
    params = SamplingParams(max_tokens=12, temperature=2.0, seed=7, ignore_eos=True)
    prompts: dict[str, Any] = {"base_prompt": "raw", "aligned_prompt": "raw", "params": params}
    first = token_shift(engine, engine, ["same", "same", "same"], **prompts)
    drawn = [tuple(a.token_ids) for a in first.answers]
    assert len(set(drawn)) == 3
    again = token_shift(engine, engine, ["same", "same", "same"], **prompts)
    assert [tuple(a.token_ids) for a in again.answers] == drawn
    alone = token_shift(engine, engine, ["same"], **prompts)
    assert tuple(alone.answers[0].token_ids) == drawn[0]
