"""`config.json` goes in, a checked `ModelConfig` comes out. A gate, not a bag.

Llama and Mistral are one class here; what differs is configuration. Defaults are those of
transformers' `LlamaConfig` and `MistralConfig`. A key that would change the mathematics and is not
implemented is refused by name and value. A key that transformers' own class does not read either
is listed in `ModelConfig.ignored_keys`, for the report.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .config_rope import RopeConfig, read_rope
from .errors import CheckpointError, ConfigError
from .json_values import Json, boolean, number, optional_size, read_json, size, token_ids

ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
_TIE = "tie_word_embeddings"

# Each of these changes the mathematics unless it is null or has the value beside it.
_NEUTRAL: Json = {
    **dict.fromkeys(("quantization_config", "compression_config", "clip_qkv")),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "attention_chunk_size")),
    **dict.fromkeys(("attention_multiplier", "query_pre_attn_scalar")),
    **dict.fromkeys(("residual_multiplier", "embedding_multiplier", "logits_scaling"), 1),
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct"), 1),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 0),
    **dict.fromkeys(("rope_interleaved", "rope_interleave", "use_qk_norm", "qk_norm"), False),
    **dict.fromkeys(("is_encoder_decoder", "add_cross_attention"), False),
    **dict.fromkeys(("no_rope_layers", "no_rope_layer_interval"), 0),
    "use_bidirectional_attention": False,
    "is_causal": True,
    "hidden_act": "silu",
    "per_layer_config": {},
}

_READ = """
    model_type architectures vocab_size hidden_size intermediate_size num_hidden_layers layer_types
    num_attention_heads num_key_value_heads head_dim rms_norm_eps max_position_embeddings
    rope_theta rope_scaling rope_parameters original_max_position_embeddings tie_word_embeddings
    eos_token_id
"""
# Written by transformers, and without any bearing on inference: not worth a line in the report.
_BOOKKEEPING = """
    torch_dtype dtype bos_token_id pad_token_id unk_token_id transformers_version use_cache
    initializer_range attention_dropout _name_or_path name_or_path _commit_hash id2label label2id
    return_dict chunk_size_feed_forward
"""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything in `config.json` that the mathematics of one model depends on."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_positions: int
    rope: RopeConfig
    sliding_window: int | None  # a query sees this many positions, its own included; None: all
    attention_bias: bool  # on q, k, v and o
    mlp_bias: bool
    tie_word_embeddings: bool | None  # None: the config does not say
    eos_token_ids: tuple[int, ...]
    ignored_keys: tuple[str, ...]

    @classmethod
    def load(cls, folder: Path) -> ModelConfig:
        """Read `config.json`, and the end tokens of `generation_config.json` where it exists."""
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} has no config.json, so it is not a model folder")
        config, generation = read_json(folder / "config.json"), folder / "generation_config.json"
        more = read_json(generation) if generation.is_file() else {}
        try:
            return cls.from_dict(config, more)
        except ConfigError as error:
            raise ConfigError(f"{folder}: {error}") from None

    @classmethod
    def from_dict(cls, d: Json, generation: Json | None = None) -> ModelConfig:
        """Check a parsed `config.json` (and `generation_config.json`). Raises `ConfigError`."""
        model_type = _model_type(d)
        mistral = model_type == "mistral"
        _refuse_other_mathematics(d)
        heads, kv_heads, head_dim = _heads(d, kv_default=8 if mistral else None)
        max_positions = size(d, "max_position_embeddings", 131072 if mistral else 2048)
        # transformers' Llama never reads a window, and its Mistral has one unless told otherwise
        window = optional_size(d, "sliding_window", 4096) if mistral else None
        rope, unread = read_rope(d, max_positions)
        config = cls(
            model_type=model_type,
            vocab_size=size(d, "vocab_size"),
            hidden_size=size(d, "hidden_size"),
            intermediate_size=size(d, "intermediate_size"),
            num_layers=size(d, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            rms_norm_eps=number(d, "rms_norm_eps", 1e-6),
            max_positions=max_positions,
            rope=rope,
            sliding_window=window,
            attention_bias=not mistral and boolean(d, "attention_bias"),
            mlp_bias=not mistral and boolean(d, "mlp_bias"),
            tie_word_embeddings=boolean(d, _TIE) if _TIE in d else None,
            eos_token_ids=_end_tokens(d, generation or {}),
            ignored_keys=(*_ignored(d, mistral), *unread),
        )
        _check_layer_types(d, config)
        return config


def _model_type(d: Json) -> str:
    kind, names = d.get("model_type"), d.get("architectures")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ConfigError(f"model_type = {kind!r} is not implemented (known: {known})")
    if names and names != [ARCHITECTURES[kind]]:
        raise ConfigError(f"architectures = {names!r} is not implemented for model_type = {kind!r}")
    return kind


def _refuse_other_mathematics(d: Json) -> None:
    for key, neutral in _NEUTRAL.items():
        value = d.get(key)
        if value is not None and value != neutral:
            raise ConfigError(f"{key} = {value!r} changes the mathematics and is not implemented")


def _heads(d: Json, kv_default: int | None) -> tuple[int, int, int]:
    """(query heads, key/value heads, head size)."""
    hidden, heads = size(d, "hidden_size"), size(d, "num_attention_heads")
    kv_heads = optional_size(d, "num_key_value_heads", kv_default) or heads
    head_dim = optional_size(d, "head_dim", None) or hidden // heads
    if heads % kv_heads:
        raise ConfigError(
            f"num_attention_heads = {heads} is not a multiple of num_key_value_heads = {kv_heads}"
        )
    if d.get("head_dim") is None and hidden % heads:
        raise ConfigError(
            f"hidden_size = {hidden} is not a multiple of num_attention_heads = {heads}, "
            "and there is no head_dim to say the size of a head"
        )
    if head_dim % 2:
        raise ConfigError(f"head_dim = {head_dim} is odd, but RoPE turns pairs of dimensions")
    return heads, kv_heads, head_dim


def _check_layer_types(d: Json, config: ModelConfig) -> None:
    """All layers are alike, so a list of layer types may only say what the config says anyway."""
    uniform = "full_attention" if config.sliding_window is None else "sliding_attention"
    if (given := d.get("layer_types")) not in (None, [uniform] * config.num_layers):
        raise ConfigError(
            f"layer_types = {given!r} is not implemented: with num_hidden_layers = "
            f"{config.num_layers} and a sliding window of {config.sliding_window}, "
            f"it can only be {uniform!r} for each layer"
        )


def _end_tokens(d: Json, generation: Json) -> tuple[int, ...]:
    """Those of both files, in order. Transformers' default stands where neither file names any."""
    naming = [source for source in (d, generation) if "eos_token_id" in source]
    found = [token for source in naming for token in token_ids(source, "eos_token_id", ())]
    return tuple(dict.fromkeys(found)) if naming else (2,)


def _ignored(d: Json, mistral: bool) -> list[str]:
    """Keys that say something and that transformers' class for this model type does not read."""
    read = {"sliding_window"} if mistral else {"attention_bias", "mlp_bias"}
    read |= {*_READ.split(), *_BOOKKEEPING.split(), *_NEUTRAL}
    if d.get("pretraining_tp") == 1:  # transformers writes this into every Llama config
        read.add("pretraining_tp")
    return sorted(k for k, v in d.items() if k not in read and v is not None and v is not False)
