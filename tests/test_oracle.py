"""Whole models against Hugging Face transformers, on random configurations of every kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.oracle import ALL, F64, build, error, open_ours, oracle_logits, run_logits
from urial_engine.backends.cpu import available_isas

LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def shape(c: int, f: int, h: int, k: int, v: int, d: int = 0, **more: Any) -> dict[str, Any]:
    """A configuration in the letters of the design: C, F, H, K, V, D."""
    base: dict[str, Any] = {
        "hidden_size": c,
        "intermediate_size": f,
        "num_attention_heads": h,
        "num_key_value_heads": k,
        "vocab_size": v,
        "num_hidden_layers": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
    }
    return base | ({"head_dim": d} if d else {}) | more


CASES: dict[str, dict[str, Any]] = {
    "gqa 1": shape(64, 128, 4, 4, 97),
    "gqa 3, tied": shape(48, 96, 6, 2, 128, tie_word_embeddings=True),
    "gqa 8, three layers": shape(64, 160, 8, 1, 200, num_hidden_layers=3),
    "head size below C/H": shape(96, 64, 4, 2, 64, d=16),
    "head size above C/H, 128": shape(96, 200, 2, 1, 333, d=128),
    "attention bias": shape(64, 96, 4, 2, 65, attention_bias=True),
    "all biases, odd F": shape(32, 51, 2, 1, 77, attention_bias=True, mlp_bias=True),
    "linear rope": shape(64, 64, 2, 2, 99, rope_parameters=LINEAR),
    "linear rope, old spelling": shape(64, 64, 2, 2, 99, rope_parameters=LINEAR)
    | {"old_rope_spelling": True},
    "llama3 rope": shape(64, 64, 2, 1, 50, rope_parameters=LLAMA3),
    "odd everything": shape(33, 77, 3, 1, 131, d=10, rms_norm_eps=1e-2),
    "odd vocabulary, tied, bf16 on disk": shape(40, 72, 4, 2, 1009, tie_word_embeddings=True)
    | {"dtype": "bfloat16"},
    "sharded": shape(64, 128, 4, 2, 260) | {"max_shard_size": "40KB"},
    "sharded, tied, fp16 on disk": shape(64, 128, 4, 2, 260, tie_word_embeddings=True)
    | {"max_shard_size": "20KB", "dtype": "float16"},
    "mistral, no window": shape(48, 96, 6, 2, 101, sliding_window=None) | {"family": "mistral"},
    "mistral, window 5": shape(64, 96, 4, 1, 101, sliding_window=5) | {"family": "mistral"},
    "mistral, window of a block": shape(64, 96, 8, 1, 67, d=16, sliding_window=64)
    | {"family": "mistral"},
    "mistral, window 1, tied": shape(
        32, 64, 4, 4, 43, sliding_window=1, tie_word_embeddings=True, num_hidden_layers=1
    )
    | {"family": "mistral"},
    "mistral, window of a block + 1": shape(66, 33, 3, 3, 129, d=20, sliding_window=65)
    | {"family": "mistral"},
}
BACKENDS = [
    pytest.param({"device": "reference"}, id="reference"),
    pytest.param({"device": "reference", "dtype": "float32"}, id="reference-fp32"),
    *(
        pytest.param({"device": "cpu", "dtype": "float32", "isa": isa}, id=f"cpu-{isa}")
        for isa in available_isas()
    ),
]
TOKENS = 133  # two blocks of 64 and five: every window above but "no window" is shorter


def random_ids(seed: int, vocabulary: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(vocabulary, size=TOKENS)]


@dataclass(frozen=True)
class Built:
    folder: Path
    ids: list[int]
    truth: F64  # [T, V] transformers in fp32


@pytest.fixture(scope="module", params=CASES, ids=lambda name: str(name).replace(" ", "-"))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    seed = list(CASES).index(request.param)
    folder = build(tmp_path_factory.mktemp("oracle"), seed=seed, **CASES[request.param])
    ids = random_ids(seed, CASES[request.param]["vocab_size"])
    return Built(folder, ids, oracle_logits(folder, ids))


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_are_those_of_transformers(built: Built, backend: dict[str, Any]) -> None:
    ours = open_ours(built.folder, **backend)
    assert error(run_logits(ours, [built.ids])[0], built.truth) <= 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_chunks_and_shared_blocks(built: Built, backend: dict[str, Any]) -> None:
    """Three texts with a common start: one in chunks of 7, one token by token, one whole."""
    start = built.ids[:128]
    texts = [built.ids, start[:64] + built.ids[:70], start[:64] + built.ids[90:93]]
    truths = [built.truth, *(oracle_logits(built.folder, text) for text in texts[1:])]
    ours = open_ours(built.folder, **backend)
    for shared in (0, 1):
        answers = run_logits(ours, texts, chunks=(7, 1, ALL), shared_blocks=shared)
        for answer, truth in zip(answers, truths, strict=True):
            assert error(answer, truth) <= 1e-4
    twins = run_logits(ours, [built.ids, built.ids[:129]], shared_blocks=2)
    assert error(twins[1], built.truth[:129]) <= 1e-4


def test_reference_in_double(built: Built) -> None:
    """With both in fp64 a wrong epsilon, scale or mask cannot hide behind rounding."""
    truth = oracle_logits(built.folder, built.ids, "float64")
    ours = run_logits(open_ours(built.folder, "reference"), [built.ids], chunks=(50,))[0]
    assert error(ours, truth) <= 1e-10


def root_mean_square(x: F64) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize(
    "name", ["gqa 1", "gqa 3, tied", "head size above C/H, 128", "llama3 rope", "mistral, window 5"]
)
def test_bf16_error_is_no_worse_than_theirs(name: str, isa: str, tmp_path: Path) -> None:
    """The error over all logits against fp64 on the same bf16 weights, theirs and ours."""
    folder = build(tmp_path, seed=7, **CASES[name] | {"dtype": "bfloat16"})
    ids = [
        int(i) for i in np.random.default_rng(7).integers(CASES[name]["vocab_size"], size=TOKENS)
    ]
    truth = run_logits(open_ours(folder, "reference"), [ids])[0]
    theirs = root_mean_square(oracle_logits(folder, ids, "bfloat16") - truth)
    backend = open_ours(folder, "cpu", dtype="bfloat16", isa=isa)
    ours = root_mean_square(run_logits(backend, [ids])[0] - truth)
    assert ours <= theirs
