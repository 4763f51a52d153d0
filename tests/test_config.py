"""The gate: what transformers' classes understand is understood the same; the rest is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, MistralConfig

from tests.fixtures import tiny_config
from urial_engine.config import ModelConfig
from urial_engine.errors import CheckpointError, ConfigError

CLASSES = {"llama": LlamaConfig, "mistral": MistralConfig}


def read(**overrides: Any) -> ModelConfig:
    return ModelConfig.from_dict(tiny_config(**overrides))


def theirs(**overrides: Any) -> Any:
    settings = json.loads(json.dumps(tiny_config(**overrides)))  # they change what they are given
    return CLASSES[settings["model_type"]](**settings)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"num_key_value_heads": ..., "num_attention_heads": 16, "head_dim": 4},
        {"head_dim": None},
        {"head_dim": 24},
        {"rms_norm_eps": ..., "max_position_embeddings": ...},
        {"sliding_window": 7},
        {"sliding_window": ...},
        {"eos_token_id": ...},
        {"eos_token_id": [5, 7]},
        {"attention_bias": True, "mlp_bias": True},
        {"pretraining_tp": 4},
    ],
)
def test_values_and_defaults_are_those_of_transformers(
    kind: str, overrides: dict[str, Any]
) -> None:
    ours, other = read(model_type=kind, **overrides), theirs(model_type=kind, **overrides)
    assert ours.num_kv_heads == other.num_key_value_heads
    assert ours.head_dim == other.head_dim
    assert ours.rms_norm_eps == other.rms_norm_eps
    assert ours.max_positions == other.max_position_embeddings
    ends = other.eos_token_id if isinstance(other.eos_token_id, list) else [other.eos_token_id]
    assert list(ours.eos_token_ids) == ends
    mistral = kind == "mistral"
    assert ours.sliding_window == (other.sliding_window if mistral else None)
    assert ours.attention_bias == (not mistral and other.attention_bias)
    assert ours.mlp_bias == (not mistral and other.mlp_bias)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"model_type": "qwen2"}, ["model_type", "'qwen2'", "llama, mistral"]),
        ({"model_type": ...}, ["model_type", "None"]),
        ({"architectures": ["MistralForCausalLM"]}, ["architectures", "Mistral", "'llama'"]),
        ({"architectures": ["LlamaForSequenceClassification"]}, ["Classification"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "'gelu'"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quantization_config", "gptq"]),
        ({"attn_logit_softcapping": 50.0}, ["attn_logit_softcapping", "50.0"]),
        ({"final_logit_softcapping": 30.0}, ["final_logit_softcapping", "30.0"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
        ({"num_local_experts": 8}, ["num_local_experts", "8"]),
        ({"residual_multiplier": 0.2}, ["residual_multiplier", "0.2"]),
        ({"embedding_multiplier": 12.0}, ["embedding_multiplier", "12.0"]),
        ({"logits_scaling": 8.0}, ["logits_scaling", "8.0"]),
        ({"rope_interleaved": True}, ["rope_interleaved", "True"]),
        ({"is_causal": False}, ["is_causal", "False"]),
        ({"per_layer_config": {"0": {"hidden_size": 8}}}, ["per_layer_config"]),
        ({"layer_types": ["full_attention", "sliding_attention"]}, ["layer_types", "sliding"]),
        ({"layer_types": ["full_attention"]}, ["layer_types", "num_hidden_layers = 2"]),
        (
            {
                "model_type": "mistral",
                "sliding_window": 8,
                "layer_types": ["full_attention", "full_attention"],
            },
            ["layer_types", "sliding window of 8"],
        ),
        ({"vocab_size": ...}, ["vocab_size", "missing"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers", "0", "positive"]),
        ({"hidden_size": 64.0}, ["hidden_size", "64.0", "whole number"]),
        ({"intermediate_size": "56"}, ["intermediate_size", "'56'"]),
        ({"vocab_size": True}, ["vocab_size", "True"]),
        ({"num_attention_heads": 3}, ["num_attention_heads = 3", "num_key_value_heads = 2"]),
        ({"hidden_size": 30}, ["hidden_size = 30", "num_attention_heads = 4"]),
        ({"head_dim": 7}, ["head_dim = 7", "odd"]),
        ({"head_dim": -8}, ["head_dim", "-8"]),
        ({"hidden_size": 36}, ["head_dim = 9", "odd"]),
        ({"rms_norm_eps": -1e-5}, ["rms_norm_eps", "positive"]),
        ({"rms_norm_eps": float("inf")}, ["rms_norm_eps", "finite"]),
        ({"rms_norm_eps": "1e-5"}, ["rms_norm_eps", "'1e-5'", "number"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings", "'yes'"]),
        ({"attention_bias": 1}, ["attention_bias", "1", "true or false"]),
        ({"eos_token_id": "</s>"}, ["eos_token_id", "'</s>'"]),
        ({"eos_token_id": [2, -1]}, ["eos_token_id", "-1"]),
        ({"model_type": "mistral", "sliding_window": 0}, ["sliding_window", "0"]),
    ],
    ids=str,
)
def test_refusals_name_key_and_value(overrides: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**overrides)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    "overrides",
    [
        {"quantization_config": None, "partial_rotary_factor": 1.0, "num_local_experts": 0},
        {"rope_interleaved": False, "residual_multiplier": 1.0, "is_causal": True},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}},
        {"layer_types": ["full_attention"] * 2},
    ],
    ids=str,
)
def test_neutral_values_pass(overrides: dict[str, Any]) -> None:
    assert read(**overrides) == read()


def test_uniform_sliding_layer_types_pass() -> None:
    config = read(model_type="mistral", sliding_window=8, layer_types=["sliding_attention"] * 2)
    assert config.sliding_window == 8


def test_keys_that_transformers_ignores_are_listed() -> None:
    config = read(
        sliding_window=4096,
        pretraining_tp=2,
        use_sliding_window=False,
        some_note="x",
    )
    assert config.ignored_keys == ("pretraining_tp", "sliding_window", "some_note")
    mistral = read(model_type="mistral", attention_bias=True, mlp_bias=False)
    assert mistral.ignored_keys == ("attention_bias",)
    assert not mistral.attention_bias


def test_null_key_value_heads_are_as_many_as_query_heads() -> None:
    assert (
        read(num_key_value_heads=None).num_kv_heads
        == theirs(num_key_value_heads=None).num_key_value_heads
        == 4
    )


def test_a_silent_config_is_not_the_same_as_an_untied_one() -> None:
    assert read(tie_word_embeddings=...).tie_word_embeddings is None
    assert read(tie_word_embeddings=False).tie_word_embeddings is False
    assert read(tie_word_embeddings=True).tie_word_embeddings is True


@pytest.mark.parametrize(
    ("config", "generation", "ends"),
    [
        ({"eos_token_id": 2}, None, (2,)),
        ({"eos_token_id": 2}, {"eos_token_id": [7, 2, 9]}, (2, 7, 9)),
        ({"eos_token_id": ...}, {"eos_token_id": 7}, (7,)),
        ({"eos_token_id": ...}, {"temperature": 0.6}, (2,)),
        ({"eos_token_id": None}, {"eos_token_id": None}, ()),
    ],
)
def test_end_tokens_of_both_files_are_merged(
    tmp_path: Path, config: dict[str, Any], generation: Any, ends: tuple[int, ...]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(**config)))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert ModelConfig.load(tmp_path).eos_token_ids == ends


def test_files_that_are_no_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        ModelConfig.load(tmp_path)
    path = tmp_path / "config.json"
    for content, words in ((b'{"a":', "JSON"), (b"[1]", "object"), (b"\xff\xfe", "JSON")):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=words) as caught:
            ModelConfig.load(tmp_path)
        assert str(path) in str(caught.value)
    path.write_text(json.dumps(tiny_config(hidden_act="relu")))
    with pytest.raises(ConfigError, match="hidden_act") as caught:
        ModelConfig.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
