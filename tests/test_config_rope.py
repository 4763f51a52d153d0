"""Rotary embeddings: both spellings of the config, checked against transformers' own module."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tests.test_config import read, theirs
from urial_engine.config_rope import RopeConfig
from urial_engine.errors import ConfigError

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
ROPES: dict[str, dict[str, Any]] = {
    "nothing": {"rope_theta": ...},
    "theta": {"rope_theta": 500000.0},
    "null": {"rope_scaling": None, "rope_parameters": None},
    "old linear, type": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "old linear, rope_type": {"rope_scaling": {"rope_type": "linear", "factor": 2}},
    "old llama3": {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    "new default": {"rope_theta": ..., "rope_parameters": {"rope_type": "default"}},
    "new theta": {
        "rope_theta": ...,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "new linear": {
        "rope_theta": ...,
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 3e4},
    },
    "new llama3, theta outside": {
        "rope_theta": 5e5,
        "rope_parameters": {"rope_type": "llama3", **LLAMA3},
    },
    "llama3, context from max_position_embeddings": {
        "max_position_embeddings": 128,
        "rope_scaling": {
            "rope_type": "llama3",
            **{k: v for k, v in LLAMA3.items() if k != "original_max_position_embeddings"},
        },
    },
    "both spellings, agreeing": {
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    },
}


@pytest.mark.parametrize("name", ROPES)
@pytest.mark.parametrize("head_dim", [6, 64])
def test_rope_is_that_of_transformers(name: str, head_dim: int) -> None:
    ours = read(head_dim=head_dim, **ROPES[name])
    oracle = LlamaRotaryEmbedding(theirs(head_dim=head_dim, **ROPES[name]))
    expected = oracle.inv_freq.numpy()
    frequencies = ours.rope.inverse_frequencies(head_dim)
    assert frequencies.dtype == np.float32
    assert frequencies.shape == (head_dim // 2,)
    np.testing.assert_array_almost_equal_nulp(frequencies, expected, nulp=2)
    cos, sin = oracle(torch.zeros(1), torch.arange(100)[None])
    tables = ours.rope.tables(head_dim, 100)
    for table, full in zip(tables, (cos, sin), strict=True):
        assert table.dtype == np.float32
        np.testing.assert_allclose(table, full[0, :, : head_dim // 2], atol=2e-5, rtol=0)


def test_llama3_leaves_high_frequencies_and_stretches_low_ones() -> None:
    plain = RopeConfig("default", 5e5).inverse_frequencies(64)
    llama3 = RopeConfig("llama3", 5e5, 8.0, 1.0, 4.0, 8192).inverse_frequencies(64)
    ratio = plain / llama3
    assert ratio[0] == 1
    assert ratio[-1] == 8
    assert ((ratio > 1.01) & (ratio < 7.9)).any()


def test_table_angles_are_rounded_to_float32_first() -> None:
    rope = RopeConfig("default", 10000.0)
    cos, _ = rope.tables(64, 5000)
    angle = np.float32(4999) * rope.inverse_frequencies(64)[1]
    assert cos[4999, 1] == np.float32(np.cos(np.float64(angle)))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, ["rope_scaling", "'yarn'"]),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, ["rope_scaling", "'dynamic'"]),
        ({"rope_parameters": {"rope_type": "longrope"}}, ["rope_parameters", "'longrope'"]),
        (
            {"rope_scaling": {"type": "linear", "rope_type": "llama3", "factor": 2.0}},
            ["'llama3'", "contradicts", "'linear'"],
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            ["rope_theta", "500000.0", "contradicts", "10000.0"],
        ),
        (
            {
                "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "linear", "factor": 4.0},
            },
            ["rope_scaling", "contradicts", "rope_parameters"],
        ),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}},
            ["rope_parameters.partial_rotary_factor", "0.25"],
        ),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, ["full_attention"]),
        ({"rope_scaling": {"type": "linear"}}, ["rope_scaling.factor", "missing"]),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, ["rope_scaling.factor", "positive"]),
        ({"rope_scaling": "linear"}, ["rope_scaling", "'linear'", "object"]),
        (
            {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}},
            ["low_freq_factor must be below"],
        ),
        (
            {
                "rope_scaling": {"rope_type": "llama3", **LLAMA3},
                "original_max_position_embeddings": 32,
            },
            ["original_max_position_embeddings", "64", "contradicts", "32"],
        ),
        ({"rope_theta": float("nan")}, ["rope_theta", "nan"]),
    ],
    ids=str,
)
def test_refusals_name_key_and_value(overrides: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**overrides)
    assert [word for word in words if word not in str(caught.value)] == []


def test_names_that_no_rope_reads_are_listed() -> None:
    config = read(rope_scaling={"type": "linear", "factor": 2.0, "beta_fast": 32})
    assert config.ignored_keys == ("rope_scaling.beta_fast",)
    assert read(rope_scaling={"type": "default", "factor": 2.0}).rope == read().rope
