"""Two roads must meet: however the work is cut, shared, cached or spread, the answers are the same.

On the CPU bit for bit: token ids, log-probabilities and ranks, of greedy and of sampled answers, on
every instruction set of this machine, in both dtypes. The truth is each prompt alone: the whole
text read at once by an empty cache with one thread. The reference backend leaves its sums to a BLAS
whose order depends on the number of rows, so there log-probabilities meet within a tolerance.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fixtures import random_weights, tiny_config, write_tokenizer, write_weights
from urial_engine.backends.cpu import available_isas
from urial_engine.engine import Engine
from urial_engine.kernels import rank
from urial_engine.outputs import RequestOutput
from urial_engine.sampling import SamplingParams

PREFIX = (
    "Below are conversations between a person and an honest, careful assistant.\n\n"
    "# Query:\n```\nIs water wet?\n```\n\n# Answer:\n```\nIt depends on what you mean by wet: "
    "liquid water wets other things, and is not wet itself.\n```\n\n"
)
ALL = 1 << 20  # a chunk that holds every prompt
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 1, "attention_bias": True, "vocab_size": 333},
    "mistral": {
        "model_type": "mistral",
        "sliding_window": 37,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 10,
    },
}


@dataclass(frozen=True)
class Road:
    """One backend as it may be opened."""

    device: str
    dtype: str
    isa: str = "auto"

    def open(self, model: Path, *, prefix: str = "", **fields: Any) -> Engine:
        settings = {"kv_cache_gib": 0.25, **fields}
        if self.device == "cpu":
            settings = {"threads": 2, **settings}
        else:
            settings.pop("threads", None)
        return Engine(
            model, prefix=prefix, device=self.device, dtype=self.dtype, isa=self.isa, **settings
        )

    def same(self, got: Any, expected: Any) -> bool:
        """`got` and `expected` are lists of what `said` returns."""
        if self.device == "cpu":
            return bool(got == expected)
        return [ids for ids, _ in got] == [ids for ids, _ in expected] and all(
            np.allclose(a, b, atol=1e-5) for (_, a), (_, b) in zip(got, expected, strict=True)
        )


ROADS = [
    Road("reference", "float64"),
    *(Road("cpu", dtype, isa) for isa in available_isas() for dtype in ("bfloat16", "float32")),
]
REAL = [Road("cpu", "bfloat16", isa) for isa in available_isas()]


def said(output: RequestOutput) -> tuple[list[list[int]], list[float]]:
    """The token ids of all samples, and every number that came with them.

    Of the prompt's log-probabilities the last three, which stand after every prefix.
    """
    entries = [entry for sample in output.outputs for entry in sample.logprobs or []]
    entries += [entry for entry in (output.prompt_logprobs or [])[-3:] if entry is not None]
    numbers = [x for entry in entries for lp in entry.values() for x in (lp.logprob, lp.rank)]
    ids = [sample.token_ids for sample in output.outputs]
    return ids + [list(entry) for entry in entries], numbers


@dataclass(frozen=True)
class Work:
    """Prompts, what is asked of each, and what each says alone."""

    road: Road
    model: Path
    prefix: str
    prompts: list[str]
    params: list[SamplingParams]
    truth: list[tuple[list[list[int]], list[float]]]

    def check(self, engine: Engine, order: list[int], batch: int = ALL) -> None:
        """Ask in this order, `batch` prompts a call, and compare with the truth."""
        before = "" if engine.prefix else self.prefix
        texts = [before + self.prompts[i] for i in order]
        for at in range(0, len(order), batch):
            part = order[at : at + batch]
            outputs = engine.generate(texts[at : at + batch], [self.params[i] for i in part])
            got = [said(output) for output in outputs]
            assert self.road.same(got, [self.truth[i] for i in part])

    def shuffled(self, count: int) -> list[int]:
        order = random.Random(count).sample(range(len(self.prompts)), len(self.prompts))
        return order[:count]


def questions(count: int) -> list[str]:
    """Of many lengths; every third begins as the one before it."""
    words = ["why", "do", "we", "ask", "what", "nobody", "knows,", "how", "long", "is", "it", "now"]
    texts = [f"# Query {i // 3 * 3}: " + " ".join(words[i % 7 : 1 + i % 11]) for i in range(count)]
    return [text + "x" * (i % 5) for i, text in enumerate(texts)]


def parameters(count: int, tokens: int) -> list[SamplingParams]:
    kinds: list[dict[str, Any]] = [
        {"prompt_logprobs": 1},
        {"repetition_penalty": 1.3},
        {"temperature": 0.8, "top_p": 0.9, "seed": 3},
        {"temperature": 1.2, "top_k": 20, "n": 2, "seed": 4, "frequency_penalty": 0.3},
    ]
    shared: dict[str, Any] = {"logprobs": 2, "ignore_eos": True}
    return [
        SamplingParams(max_tokens=tokens + i % 4, **shared, **kinds[i % len(kinds)])
        for i in range(count)
    ]


def prepare(road: Road, model: Path, prefix: str, *, count: int, tokens: int) -> Work:
    prompts, params = questions(count), parameters(count, tokens)
    with road.open(model, max_batch=2, chunk=ALL, threads=1) as engine:
        truth = []
        for prompt, own in zip(prompts, params, strict=True):
            forget(engine)
            (output,) = engine.generate(prefix + prompt, own)
            assert output.metrics.cached_tokens == 0
            truth.append(said(output))
    return Work(road, model, prefix, prompts, params, truth)


def forget(engine: Engine) -> None:
    """Drop everything from the cache that is neither pinned nor in use."""
    cache = engine._scheduler._cache
    while idle := [s for s in cache.segments() if not s.users and not s.children]:
        cache._remove(idle[0])


@pytest.fixture(scope="module", params=MODELS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    settings = tiny_config(**MODELS[request.param])
    (folder / "config.json").write_text(json.dumps(settings))
    write_weights(folder, random_weights(settings))
    write_tokenizer(folder, settings["vocab_size"])
    return folder


@pytest.fixture(scope="module", params=ROADS, ids=lambda r: f"{r.device}-{r.dtype}-{r.isa}")
def work(request: pytest.FixtureRequest, tiny: Path) -> Work:
    return prepare(request.param, tiny, PREFIX, count=32, tokens=4)


@pytest.fixture(scope="module", params=REAL, ids=lambda r: r.isa)
def real_work(request: pytest.FixtureRequest, real_model: Path) -> Work:
    best = request.param.isa == available_isas()[0]
    prefix = PREFIX * 3  # as many blocks as the tiny models' tokens fill with one
    return prepare(request.param, real_model, prefix, count=32 if best else 4, tokens=3)


@pytest.mark.parametrize(("batch", "threads"), [(1, 2), (3, 1), (3, 2), (32, 1), (32, 2)])
def test_alone_is_as_in_any_batch_order_and_thread_count(
    work: Work, batch: int, threads: int
) -> None:
    with work.road.open(
        work.model, prefix=work.prefix, threads=threads, max_batch=batch + 1
    ) as engine:
        work.check(engine, work.shuffled(32 if batch > 1 else 8), batch)


@pytest.mark.parametrize("chunk", [1, 7, 64, ALL])
def test_one_prefill_is_as_chunks_of_any_size(work: Work, chunk: int) -> None:
    with work.road.open(work.model, chunk=chunk) as engine:
        work.check(engine, work.shuffled(4))


def test_token_by_token_is_as_one_prefill(work: Work) -> None:
    """What decoding said of its own tokens, against one pass that reads them all."""
    with work.road.open(work.model) as engine:
        check_decode(work, engine, 6)


def check_decode(work: Work, engine: Engine, count: int) -> None:
    params = SamplingParams(max_tokens=20, ignore_eos=True, logprobs=2, temperature=1.0, seed=1)
    outputs = engine.generate(work.prompts[:count], params)
    forget(engine)
    ids = [output.prompt_token_ids for output in outputs]
    tokens = [output.outputs[0].token_ids for output in outputs]
    for output, scores in zip(outputs, engine.score(ids, tokens, top_k=2), strict=True):
        for row, entry in enumerate(output.outputs[0].logprobs or []):
            chosen, top = scores.token_ids[row].item(), scores.top_ids[row].tolist()
            assert list(entry) == [chosen, *(token for token in top if token != chosen)]
            assert entry[chosen].rank == scores.rank[row]
            numbers = [entry[chosen].logprob, *(entry[token].logprob for token in top)]
            expected = [scores.logprob[row].item(), *scores.top_logprobs[row].tolist()]
            assert numbers == (
                expected if work.road.device == "cpu" else pytest.approx(expected, abs=1e-5)
            )


STORE = """
import sys
from urial_engine.engine import Engine
model, folder, prefix, device, dtype, isa = sys.argv[1:]
Engine(model, prefix=prefix, prefix_dir=folder, device=device, dtype=dtype, isa=isa).close()
"""


def store_elsewhere(work: Work, folder: Path) -> None:
    """Another process computes the prefix and stores it."""
    road = work.road
    arguments = [str(work.model), str(folder), work.prefix, road.device, road.dtype, road.isa]
    subprocess.run([sys.executable, "-c", STORE, *arguments], check=True, timeout=300)


@pytest.mark.parametrize("source", ["computed", "restored"])
def test_a_cached_prefix_is_as_a_fresh_and_a_restored_one(
    work: Work, source: str, tmp_path: Path
) -> None:
    """Shared by 32, and each alone."""
    if source == "restored":
        store_elsewhere(work, tmp_path)
    with work.road.open(work.model, prefix=work.prefix, prefix_dir=tmp_path) as engine:
        assert engine.info["prefix_source"] == source
        work.check(engine, work.shuffled(32))
        forget(engine)
        work.check(engine, work.shuffled(6), batch=1)
        work.check(engine, work.shuffled(32))  # from what the answers before left in the cache


def test_the_fused_score_is_that_of_materialised_logits(work: Work) -> None:
    with work.road.open(work.model, prefix=work.prefix) as engine:
        check_scores(work, engine, 6)


def check_scores(work: Work, engine: Engine, count: int) -> None:
    ids = [engine.tokenizer.encode(work.prefix + prompt) for prompt in work.prompts[:count]]
    starts = [len(text) // 2 for text in ids]
    pairs = [text[:start] for text, start in zip(ids, starts, strict=True)]
    rest = [text[start:] for text, start in zip(ids, starts, strict=True)]
    hidden = engine.hidden_states([text[:-1] for text in ids], [start - 1 for start in starts])
    for rows, tokens, scores in zip(hidden, rest, engine.score(pairs, rest, top_k=5), strict=True):
        z = engine.backend.logits(rows).astype(np.float64)  # [n, V] of fp32: ranks are exact
        truth = rank.reference(z, np.array(tokens), 5)
        for name in ("rank", "ties", "top_ids"):
            assert np.array_equal(getattr(scores, name), getattr(truth, name)), name
        for name in ("logprob", "entropy", "top_logprobs"):
            ours, exact = getattr(scores, name), getattr(truth, name)
            np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-5, err_msg=name)


# The same on the real checkpoint, with few tokens: the best instruction set as above, the others
# with four prompts.


def test_the_real_model_in_any_batch_order_and_thread_count(real_work: Work) -> None:
    work = real_work
    for batch, threads in ((1, 2), (3, 1), (32, 2)):
        with work.road.open(work.model, prefix=work.prefix, threads=threads) as engine:
            work.check(engine, work.shuffled(32 if batch > 1 else 4), batch)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_the_real_model_in_chunks(real_work: Work, chunk: int) -> None:
    with real_work.road.open(real_work.model, chunk=chunk) as engine:
        real_work.check(engine, real_work.shuffled(2))


def test_the_real_model_with_its_prefix_restored(real_work: Work, tmp_path: Path) -> None:
    work = real_work
    store_elsewhere(work, tmp_path)
    with work.road.open(work.model, prefix=work.prefix, prefix_dir=tmp_path) as engine:
        assert engine.info["prefix_source"] == "restored"
        work.check(engine, work.shuffled(32))
        check_scores(work, engine, 2)
        check_decode(work, engine, 2)
