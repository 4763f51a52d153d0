"""The real checkpoint against Hugging Face transformers: greedy tokens in fp32, errors in bf16."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from urial_engine import Engine, SamplingParams, UrialPrompt

torch = pytest.importorskip("torch", reason="needs torch, the oracle")
transformers = pytest.importorskip("transformers", reason="needs transformers, the oracle")

QUESTIONS, NEW = 20, 64
TEACHER = 200  # tokens of the text on which logits are compared


@pytest.fixture(scope="module")
def prompt(shared_data: Path) -> UrialPrompt:
    return UrialPrompt.load(shared_data / "urial_prompts" / "inst_1k_v4.txt")


@pytest.fixture(scope="module")
def questions(shared_data: Path) -> list[str]:
    lines = (shared_data / "mt_bench_questions.jsonl").read_text().splitlines()
    return [json.loads(line)["turns"][0] for line in lines][:QUESTIONS]


def oracle(folder: Path, dtype: Any) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.eval()


def oracle_greedy(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy tokens of each prompt, one by one; the prompts' common beginning is read once."""
    shared = min(len(p) for p in prompts)
    while len({tuple(p[:shared]) for p in prompts}) > 1:
        shared -= 1
    out = []
    with torch.inference_mode():
        common = model(torch.tensor([prompts[0][:shared]]), use_cache=True).past_key_values
        for ids in prompts:
            cache, tokens, text = copy.deepcopy(common), [], ids[shared:]
            for _ in range(NEW):
                step = model(torch.tensor([text]), past_key_values=cache, logits_to_keep=1)
                text = [int(step.logits[0, -1].argmax())]
                tokens += text
            out.append(tokens)
    return out


def test_greedy_tokens_after_the_urial_prefix_equal_transformers(
    real_model: Path, prompt: UrialPrompt, questions: list[str]
) -> None:
    params = SamplingParams(max_tokens=NEW, ignore_eos=True)
    with Engine(real_model, prefix=prompt, dtype="float32") as engine:
        outputs = engine.generate([prompt.render(q) for q in questions], params)
    ours = [o.outputs[0].token_ids for o in outputs]
    theirs = oracle_greedy(oracle(real_model, torch.float32), [o.prompt_token_ids for o in outputs])
    assert len(ours) == QUESTIONS
    for question, a, b in zip(questions, ours, theirs, strict=True):
        assert a == b, question


def teacher_forced(model: Any, ids: list[int]) -> NDArray[np.float32]:
    """Logits [T, V] of transformers, as fp32."""
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def our_logits(folder: Path, ids: list[int], **options: Any) -> NDArray[np.float32]:
    with Engine(folder, **options) as engine:
        return engine.backend.logits(np.asarray(engine.hidden_states([ids], [0])[0], np.float32))


def test_bf16_is_no_worse_than_transformers_bf16(real_model: Path, prompt: UrialPrompt) -> None:
    """Root-mean-square error against fp64, and how often the largest logit is another token's."""
    with Engine(real_model) as engine:
        ids = engine.tokenizer.encode(prompt.text)[:TEACHER]
        isas = engine.info["isa"]
    truth = our_logits(real_model, ids, device="reference")
    theirs = teacher_forced(oracle(real_model, torch.bfloat16), ids)
    single = our_logits(real_model, ids, dtype="float32")
    ours = our_logits(real_model, ids, dtype="bfloat16")

    def error(z: NDArray[np.float32]) -> float:
        return float(np.sqrt(np.mean((z - truth) ** 2)))

    def agreement(z: NDArray[np.float32]) -> float:
        return float(np.mean(z.argmax(1) == single.argmax(1)))

    figures = (
        f"{isas}: error {error(ours):.4f} (transformers {error(theirs):.4f}), "
        f"greedy agreement {agreement(ours):.4f} (transformers {agreement(theirs):.4f})"
    )
    print(figures)
    assert error(ours) <= error(theirs), figures
    assert agreement(ours) >= agreement(theirs), figures
    assert error(single) < 1e-4 * np.abs(truth).max()
