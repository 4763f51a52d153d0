"""The CUDA backend through the engine, interpreted: it says what the reference says, holds the
invariants, and turns what can go wrong on a GPU into errors that say what to do.

The interpreter is a thousand times slower than a GPU, so texts are short.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.engines import Open
from tests.fixtures import TinyModel
from tests.interpreted import DTYPES, GPU, emulated, open_cuda, open_engine
from urial_engine import SamplingParams
from urial_engine.backends.base import Batch
from urial_engine.backends.cuda_forward import Rows
from urial_engine.backends.cuda_graph import (
    MOST_GRAPHS,
    Kept,
    Recorder,
    rounded,
    rounded_rows,
)
from urial_engine.head import compare_heads
from urial_engine.outputs import RequestOutput

__all__ = ["emulated", "open_cuda", "open_engine"]  # fixtures
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

PREFIX = "Be brief. " * 8  # more than one block of tokens
PROMPTS = ["why", "what is it now", "ab ab ab ab"]
FOUR = SamplingParams(max_tokens=4, ignore_eos=True, logprobs=2)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 1, "attention_bias": True, "vocab_size": 333},
    "mistral": {"model_type": "mistral", "sliding_window": 37, "head_dim": 10},
    "wide group": {"num_attention_heads": 20, "num_key_value_heads": 1, "head_dim": 4},
    "tied": {"tie_word_embeddings": True, "mlp_bias": True, "num_key_value_heads": 4},
}
EVERYTHING = [
    SamplingParams(max_tokens=3, temperature=0.8, top_k=20, top_p=0.9, n=2, seed=1, logprobs=3),
    SamplingParams(max_tokens=4, repetition_penalty=1.3, presence_penalty=0.2, prompt_logprobs=2),
    SamplingParams(max_tokens=4, temperature=2.0, min_p=0.01, min_tokens=4, seed=5),
]


def said(outputs: list[RequestOutput]) -> list[tuple[list[int], float]]:
    """Tokens and their log-probability, of every sample."""
    return [(o.token_ids, o.cumulative_logprob) for output in outputs for o in output.outputs]


def assert_same(ours: list[RequestOutput], theirs: list[RequestOutput]) -> None:
    assert [ids for ids, _ in said(ours)] == [ids for ids, _ in said(theirs)]
    sums = [[total for _, total in said(outputs)] for outputs in (ours, theirs)]
    np.testing.assert_allclose(*sums, atol=2e-4)


@pytest.mark.parametrize("invariant", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_generates_and_scores_as_the_reference(
    open_cuda: Open, open_engine: Open, tiny_model: TinyModel, model: str, invariant: bool
) -> None:
    folder = tiny_model(**MODELS[model])
    cuda = open_cuda(model=folder, prefix=PREFIX, invariant=invariant)
    truth = open_engine(model=folder, prefix=PREFIX)
    assert_same(cuda.generate(PROMPTS, EVERYTHING), truth.generate(PROMPTS, EVERYTHING))
    for ours, theirs in zip(
        cuda.score(PROMPTS, [" so it is"] * 3, top_k=5),
        truth.score(PROMPTS, [" so it is"] * 3, top_k=5),
        strict=True,
    ):
        for name in ("token_ids", "rank", "ties", "top_ids"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
        for name in ("logprob", "entropy", "top_logprobs"):
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=5e-5)


def test_compares_two_heads(open_cuda: Open, open_engine: Open, tiny_model: TinyModel) -> None:
    folders = tiny_model(), tiny_model(seed=1, hidden_size=48, num_attention_heads=2)
    ids = [1, 70, 80, 90, 75, 71]
    targets = np.array([*ids[1:], 5], np.int32)
    found = []
    for opened in (open_cuda, open_engine):
        base, aligned = (opened(model=folder) for folder in folders)
        states = [engine.hidden_states([ids], [0])[0] for engine in (base, aligned)]
        found.append(compare_heads(base, states[0], targets, 3, aligned, states[1]))
    ours, theirs = found
    for name in ("kl_aligned_base", "kl_base_aligned"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=5e-5)
    for mine, other in zip(ours[:2], theirs[:2], strict=True):
        for name in ("rank", "ties", "top_ids"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(other, name))


@pytest.mark.parametrize("dtype", ["float16"] if "bfloat16" not in DTYPES else DTYPES[1:])
def test_half_precision_is_near_the_reference(
    open_cuda: Open, open_engine: Open, tiny_model: TinyModel, dtype: str
) -> None:
    folder, ids = tiny_model(dtype=dtype), [1, *range(70, 100)]
    states = []
    for engine in (open_cuda(model=folder, dtype=dtype), open_engine(model=folder)):
        states.append(engine.backend.logits(engine.hidden_states([ids], [0])[0]))
    scale = np.abs(states[1]).max()
    assert np.abs(states[0] - states[1]).max() < {"float16": 4e-3, "bfloat16": 3e-2}[dtype] * scale


# The invariants of a fixed order, bit for bit


@every_dtype
def test_alone_or_in_a_batch(open_cuda: Open, dtype: str) -> None:
    engine = open_cuda(prefix=PREFIX, invariant=True, dtype=dtype)
    together = said(engine.generate(PROMPTS, FOUR))
    assert together == [said(engine.generate(prompt, FOUR))[0] for prompt in PROMPTS]
    assert together == said(engine.generate(PROMPTS[::-1], FOUR))[::-1]


@every_dtype
def test_in_chunks_of_any_size(open_cuda: Open, tiny_model: TinyModel, dtype: str) -> None:
    folder, found = tiny_model(), []
    for chunk in (512, 29, 7):
        engine = open_cuda(model=folder, invariant=True, chunk=chunk, dtype=dtype)
        found.append(said(engine.generate(PREFIX, FOUR)))
        score = engine.score(PREFIX[:40], PREFIX[40:80])[0]
        found[-1] += [(score.rank.tolist(), float(score.logprob.sum()))]
    assert found[0] == found[1] == found[2]


@every_dtype
def test_prefix_computed_shared_and_restored(
    open_cuda: Open, tiny_model: TinyModel, tmp_path: Path, dtype: str
) -> None:
    folder, texts = tiny_model(), [PREFIX + prompt for prompt in PROMPTS[:2]]
    same = {"model": folder, "dtype": dtype}
    alone = said(open_cuda(**same, invariant=True).generate(texts, FOUR))
    for source in ("computed", "restored"):
        engine = open_cuda(**same, prefix=PREFIX, prefix_dir=tmp_path / "p", invariant=True)
        assert engine.info["prefix_source"] == source
        assert said(engine.generate(PROMPTS[:2], FOUR)) == alone
    other = open_cuda(**same, prefix=PREFIX, prefix_dir=tmp_path / "p")
    assert other.info["prefix_source"] == "computed", "the order of sums is another"


@every_dtype
def test_fused_scores_are_those_of_the_logits(open_cuda: Open, dtype: str) -> None:
    engine = open_cuda(invariant=True, dtype=dtype)
    ids = [1, *range(70, 90)]
    hidden = engine.hidden_states([ids[:-1]], [0])[0]
    z = engine.backend.logits(hidden)
    score = engine.backend.score(hidden, np.array(ids[1:], np.int32), 4)
    own = np.take_along_axis(z, np.array(ids[1:])[:, None], axis=1)
    np.testing.assert_array_equal(score.rank, 1 + (z > own).sum(axis=1))
    np.testing.assert_array_equal(score.ties, (z == own).sum(axis=1) - 1)
    np.testing.assert_array_equal(score.top_ids, np.argsort(-z, kind="stable")[:, :4])


# How steps are recorded


def test_rows_and_tables_are_rounded_up() -> None:
    assert [rounded_rows(n) for n in (1, 2, 3, 5, 8, 9, 17, 120, 121)] == [
        *(1, 2, 4, 8, 8, 16, 24, 120, 128)
    ]
    assert [rounded(n, 16) for n in (1, 16, 17, 33)] == [16, 16, 32, 64]


def test_a_step_is_recorded_once_for_all_of_its_size(open_cuda: Open) -> None:
    """And a graph that is replayed for fewer rows leaves nothing of the others behind."""
    engine = open_cuda(invariant=True)
    three = engine.generate(PROMPTS, FOUR)
    graphs = engine.backend._graphs  # type: ignore[attr-defined]
    assert set(graphs._recorded) == {(4, 16)}
    assert said(engine.generate(PROMPTS, FOUR)) == said(three)
    assert said(engine.generate(PROMPTS[:1], FOUR)) == said(three)[:1]
    assert set(graphs._recorded) == {(4, 16), (1, 16)}


def test_more_rows_than_a_graph_has(
    open_cuda: Open, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_model()
    three = said(open_cuda(model=folder, invariant=True).generate(PROMPTS, FOUR))
    monkeypatch.setattr("urial_engine.backends.cuda_graph.MOST_ROWS", 2)
    monkeypatch.setattr("urial_engine.backends.cuda_choose.MOST_ROWS", 2)
    params = [FOUR, EVERYTHING[1], EVERYTHING[2]]
    engine = open_cuda(model=folder, invariant=True)
    assert said(engine.generate(PROMPTS, FOUR)) == three
    mixed = engine.generate(PROMPTS, params)
    alone = [engine.generate(p, own)[0] for p, own in zip(PROMPTS, params, strict=True)]
    assert_same(mixed, alone)


class Capture:
    """In place of torch's recording: what ran inside it is not run again."""

    made = 0

    def __init__(self, *given: object, **how: object) -> None:
        pass

    def __enter__(self) -> None:
        type(self).made += 1

    def __exit__(self, *error: object) -> None:
        pass


def test_a_recording_keeps_what_it_reads_and_no_more_are_kept_than_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A graph does not keep the memory that was there before it: who records has to."""
    fakes: dict[str, Any] = {"graph": Capture, "set_stream": lambda stream: None}
    fakes |= {"CUDAGraph": lambda: SimpleNamespace(replay=lambda: None, pool=lambda: 1)}
    stream = SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None)
    fakes |= {"Stream": lambda device: stream, "current_stream": lambda device: stream}
    fakes |= {"stream": lambda stream: nullcontext()}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    device: Any = SimpleNamespace(interpreted=False, torch=torch.device("cpu"))
    recorder, kept = Recorder(device), Kept[int, Any]()
    memory = [torch.zeros(1) for _ in range(MOST_GRAPHS + 1)]
    alive = [weakref.ref(tensor) for tensor in memory]
    for i, tensor in enumerate(memory):
        kept.find(i, partial(recorder.record, partial(tensor.add_, 1)))
    del memory, tensor
    gc.collect()
    assert [i for i, ref in enumerate(alive) if ref() is None] == [0], "the first gave way"
    assert Capture.made == MOST_GRAPHS + 2, "and one that stays for their common memory"
    assert kept.find(1, lambda: None)() is alive[1]()
    kept.find(-1, lambda: None)
    gc.collect()
    assert alive[1]() is not None and alive[2]() is None, "who was used lately stays"


def test_closing_frees_the_weights_and_the_cache_at_once(open_cuda: Open) -> None:
    """Not when Python gets round to collecting a circle: the next engine needs the room."""
    engine = open_cuda()
    engine.generate(PROMPTS[:2], EVERYTHING[1])
    engine.score("why", " so")
    backend: Any = engine.backend
    held = [backend._forward.pool, backend.head.weight, backend._weights.layers[0].o.weight]
    alive = [weakref.ref(tensor) for tensor in held]
    del held
    gc.disable()
    try:
        engine.close()
        assert [ref() for ref in alive] == [None] * 3
    finally:
        gc.enable()


def replays(self: Recorder, run: Callable[[], Rows]) -> Callable[[], Rows]:
    """As a graph does it: every replay writes where the first call had written."""
    out = run()

    def replay() -> Rows:
        again = run()
        out.values.copy_(again.values)
        out.bad.copy_(again.bad)
        return out

    return replay


def test_hidden_states_outlive_the_next_step(
    open_cuda: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_cuda(invariant=True)
    if not GPU:
        monkeypatch.setattr(Recorder, "record", replays)
    steps = [
        Batch(*(np.array(a, np.int32) for a in ([token], [0], [0], [[block]])))
        for token, block in ((70, 0), (80, 1))
    ]
    first = engine.backend.forward(steps[0])
    before = engine.backend.to_host(first)
    engine.backend.forward(steps[1])
    np.testing.assert_array_equal(engine.backend.to_host(first), before)
