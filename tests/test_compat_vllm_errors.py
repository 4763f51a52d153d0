"""What vLLM's callers ask for and cannot have is refused by name and value."""

from __future__ import annotations

from typing import Any

import pytest

from tests import test_compat_vllm
from tests.test_compat_vllm import OpenLLM, generate
from urial_engine import sampling
from urial_engine.compat.vllm import SamplingParams
from urial_engine.errors import ParameterError, PromptError

open_llm = test_compat_vllm.open_llm  # the fixture


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"use_beam_search": True}, "use_beam_search=True"),
        ({"best_of": 4}, "best_of=4: must be n=1"),
        ({"logit_bias": {5: 1.0}}, "logit_bias={5: 1.0}"),
        ({"guided_decoding": object()}, "guided_decoding="),
        ({"truncate_prompt_tokens": 4}, "truncate_prompt_tokens=4"),
        ({"thinking_token_budget": 0}, "thinking_token_budget=0"),
        ({"stop": ["a"], "detokenize": False}, "detokenize"),
        ({"stop": ["a"], "skip_special_tokens": False}, "skip_special_tokens"),
        ({"temperature": -1}, "temperature=-1"),
        ({"temperature": "hot"}, "temperature='hot'"),
        ({"n": 2, "temperature": 0}, "n=2: greedy"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"stop": [""]}, "stop=''"),
        ({"stop": 3}, "stop=3"),
        ({"stop_token_ids": ["</s>"]}, "stop_token_ids='</s>'"),
        ({"logprobs": "many"}, "logprobs='many'"),
    ],
)
def test_sampling_that_cannot_be_had_is_refused_by_name(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ParameterError) as caught:
        SamplingParams(**fields)
    assert words in str(caught.value)
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=1)


def test_bad_calls_are_refused_by_name(open_llm: OpenLLM) -> None:
    llm, params = open_llm(), SamplingParams()
    for prompts, words in (
        (None, "neither prompts"),
        ([5.0], r"prompts\[0\] is 5.0"),
        ([{"prompt_embeds": 1}], r"prompts\[0\] has prompt_embeds"),
        (["a", {}], r"prompts\[1\]"),
        ([[1, 2], [400]], r"prompts\[1\].*400"),
        ("a" * 600, r"prompts\[0\] is too long"),
    ):
        with pytest.raises(PromptError, match=words):
            generate(llm, prompts, params)
    with pytest.raises(PromptError, match="2 prompts and prompt_token_ids for 1"):
        generate(llm, ["a", "b"], params, prompt_token_ids=[[1]])
    with pytest.raises(ParameterError, match="2 entries for 1 prompts"):
        generate(llm, "a", [params, params])
    with pytest.raises(ParameterError, match="vLLM's SamplingParams"):
        generate(llm, "a", [sampling.SamplingParams()])
    with pytest.raises(ParameterError, match="lora_request='x'"):
        generate(llm, "a", params, lora_request="x")
    with pytest.raises(ParameterError, match="use_tdqm=False: no argument"):
        llm.generate("a", params, use_tdqm=False)
    assert generate(llm, "a", params, lora_request=None, priority=None)
    with pytest.raises(AttributeError, match=r"no beam_search here: .*engine, .*generate"):
        llm.beam_search(["a"], params)
