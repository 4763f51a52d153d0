"""What the prompts of vLLM's callers begin with in common is found, computed once and kept."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import test_compat_vllm
from tests.fixtures import TinyModel
from tests.test_compat_vllm import OpenLLM, generate
from urial_engine.compat.vllm import LLM, SamplingParams
from urial_engine.errors import CapacityError, PromptError

open_llm = test_compat_vllm.open_llm  # the fixture
PREFIX = "Be brief, and answer in one word. " * 8
FOUR = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


def prompts(prefix: str = PREFIX) -> list[str]:
    return [prefix + query for query in ("What?", "Where is it?", "Who?")]


def kept(llm: LLM) -> int:
    """Tokens of the prefix that is pinned."""
    cache = llm.engine._scheduler._cache
    return sum(len(segment.tokens) for segment in cache.segments() if segment.pinned)


def whole_blocks(llm: LLM, text: str) -> int:
    tokens = len(llm.engine.tokenizer.encode(text))
    return tokens - tokens % llm.engine.backend.block_size


def open_with(open_llm: OpenLLM, model: Path, blocks: int, max_model_len: int | None = None) -> LLM:
    size = open_llm(model=model).engine.backend.block_bytes
    llm = open_llm(model=model, kv_cache_memory_bytes=blocks * size, max_model_len=max_model_len)
    assert llm.engine.info["kv_cache_blocks"] == blocks
    return llm


def test_it_is_computed_once_and_changes_no_answer(
    open_llm: OpenLLM, tiny_model: TinyModel
) -> None:
    model = tiny_model()
    params = SamplingParams(temperature=0, max_tokens=8, repetition_penalty=1.2, logprobs=1)
    plain, llm = open_llm(model=model), open_llm(model=model)
    truth = [generate(plain, [prompt], params)[0] for prompt in prompts()[:1]]
    truth += [generate(open_llm(model=model), [p], params)[0] for p in prompts()[1:]]
    assert kept(plain) == 0  # one prompt alone has nothing in common with others
    for found in (generate(llm, prompts(), params), generate(llm, prompts(), params)):
        assert [output.outputs for output in found] == [output.outputs for output in truth]
        least = whole_blocks(llm, PREFIX)
        assert least >= 128 and all(output.num_cached_tokens >= least for output in found)
        assert kept(llm) == least


def test_it_stays_whatever_runs_meanwhile(open_llm: OpenLLM, tiny_model: TinyModel) -> None:
    llm = open_with(open_llm, tiny_model(), blocks=10)
    generate(llm, prompts(), FOUR)
    least = kept(llm)
    assert least >= 128
    for i in range(8):
        generate(llm, f"{i} " * 60, FOUR)  # each takes most of what is left
    (output,) = generate(llm, PREFIX + "When?", FOUR)
    assert output.num_cached_tokens >= least == kept(llm)


def test_another_one_takes_its_place(open_llm: OpenLLM) -> None:
    llm, other = open_llm(), "Answer at length, and with examples. " * 10
    generate(llm, prompts(), FOUR)
    generate(llm, ["short", "also short"], FOUR)
    assert kept(llm) == whole_blocks(llm, PREFIX)
    generate(llm, prompts(other), FOUR)
    assert kept(llm) == whole_blocks(llm, other) != whole_blocks(llm, PREFIX)


def test_prompts_that_come_one_by_one_have_one_too(open_llm: OpenLLM) -> None:
    llm = open_llm()
    cached = [generate(llm, prompt, FOUR)[0].num_cached_tokens for prompt in prompts()]
    assert cached[0] == 0 and min(cached[1:]) >= kept(llm) == whole_blocks(llm, PREFIX) > 0


def test_threads_may_share_it(open_llm: OpenLLM) -> None:
    llm, others = open_llm(), [PREFIX, "Answer at length, and with examples. " * 10]
    truth = [[o.outputs for o in generate(llm, prompts(prefix), FOUR)] for prefix in others]

    def work(turn: int) -> bool:
        found = generate(llm, prompts(others[turn % 2]), FOUR)
        return [output.outputs for output in found] == truth[turn % 2]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(24)))
    assert kept(llm) in [whole_blocks(llm, prefix) for prefix in others]


def test_where_it_does_not_fit_nothing_is_lost(open_llm: OpenLLM, tiny_model: TinyModel) -> None:
    model = tiny_model()
    wide = open_llm(model=model)
    truth = [output.outputs for output in generate(wide, prompts(), FOUR)]
    need = -(-len(wide.engine.tokenizer.encode(prompts()[1]) + [0] * 3) // 64)
    narrow = open_with(open_llm, model, blocks=need)
    found = generate(narrow, prompts(), FOUR)
    assert [output.outputs for output in found] == truth
    # Kept, it would be in the way of a prompt that needs every block.
    exact = open_with(open_llm, model, blocks=need + 1, max_model_len=64 * (need + 1))
    generate(exact, prompts(), FOUR)
    assert kept(exact) > 0
    long = [9] * (64 * (need + 1) - 4)
    assert generate(exact, [long], FOUR)[0].outputs == generate(wide, [long], FOUR)[0].outputs
    assert kept(exact) == 0
    with pytest.raises(CapacityError):
        generate(open_with(open_llm, model, blocks=2), [long], FOUR)


def test_the_error_of_a_prompt_is_its_own(open_llm: OpenLLM) -> None:
    llm = open_llm()
    with pytest.raises(PromptError, match=r"prompts\[0\].*999"):
        generate(llm, [[999] * 200, [999] * 200], FOUR)
    assert kept(llm) == 0
