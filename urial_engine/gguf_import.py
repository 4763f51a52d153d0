"""A Llama-architecture GGUF file goes in; a model folder as Hugging Face lays it out comes out.

Weights are dequantised and rounded once. The folder appears whole or not at all.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from .checkpoint import DTYPES, INDEX, SINGLE
from .config import ARCHITECTURES, ModelConfig
from .config_rope import RopeConfig
from .errors import CheckpointError, ConfigError, ParameterError
from .gguf_import_file import GgufFile
from .gguf_import_tokenizer import write_tokenizer
from .weights import EMBEDDING, FINAL_NORM, HEAD, Shapes, mismatches, parameter_shapes

SHARD_BYTES = 2 << 30  # held in memory at once

_TOP = {"token_embd.weight": EMBEDDING, "output_norm.weight": FINAL_NORM, "output.weight": HEAD}
_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_FACTORS = "rope_freqs.weight"  # what Llama 3 divides RoPE's frequencies by, [D/2]

# All that the architecture may say. Another key could change the mathematics.
_KEYS = """
    vocab_size context_length embedding_length block_count feed_forward_length rope.freq_base
    attention.head_count attention.head_count_kv attention.key_length attention.value_length
    attention.layer_norm_rms_epsilon attention.sliding_window rope.dimension_count
    rope.scaling.type rope.scaling.factor rope.scaling.original_context_length
    rope.scaling.finetuned expert_count expert_used_count
"""


def import_gguf(file: Path, out: Path, *, dtype: str = "bfloat16") -> None:
    """Write config, weights and tokenizer of `file` to the folder `out`.

    `out` must be new or empty. `dtype` is what the weights are rounded to. Raises
    `CheckpointError`, `ConfigError` or `TokenizerError` where the file is damaged or is of a kind
    that is not implemented.
    """
    if dtype not in DTYPES:
        raise ParameterError(f"dtype = {dtype!r} must be one of {', '.join(DTYPES)}")
    _refuse_used(out)
    source = GgufFile(Path(file))
    names = {name: _rename(name) for name in source.shapes() if name != _ROPE_FACTORS}
    settings = _settings(source, HEAD in names.values(), dtype)
    config = _check(source, settings, names)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        _write_json(partial / "config.json", settings)
        tokens = {key: settings[key] for key in ("bos_token_id", "eos_token_id")}
        _write_json(partial / "generation_config.json", tokens)
        write_tokenizer(source, partial)
        _write_weights(source, config, {new: old for old, new in names.items()}, partial, dtype)
        _refuse_used(out)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        raise CheckpointError(f"{out} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refuse_used(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise CheckpointError(f"{out} exists and is not an empty folder; name another")


def _rename(name: str) -> str:
    """Hugging Face's name; a name with no counterpart stays, and is reported as left over."""
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name):
        layer, part, kind = match.groups()
        return f"model.layers.{layer}.{_PARTS[part]}.{kind}" if part in _PARTS else name
    return _TOP.get(name, name)


def _settings(source: GgufFile, untied: bool, dtype: str) -> dict[str, object]:
    """The content of `config.json`."""
    kind = source.get("general.architecture", str)
    if kind != "llama":
        raise ConfigError(f"{source.path}: general.architecture = {kind!r} is not implemented")
    if (source.find("split.count", int) or 1) > 1:
        raise ConfigError(f"{source.path} is one part of several; merge them to one file first")
    _refuse_unknown_keys(source)
    shapes = source.shapes()
    heads = source.get("llama.attention.head_count", int)
    hidden = source.get("llama.embedding_length", int)
    window = source.find("llama.attention.sliding_window", int)
    model_type = "mistral" if window else "llama"
    head_dim = source.find("llama.attention.key_length", int) or hidden // max(heads, 1)
    rotated = source.find("llama.rope.dimension_count", int) or head_dim
    if {rotated, source.find("llama.attention.value_length", int) or head_dim} != {head_dim}:
        raise ConfigError(
            f"{source.path}: keys, values and RoPE differ in their number of dimensions"
        )
    ends = [source.find(f"tokenizer.ggml.{n}_token_id", int) for n in ("eos", "eot")]
    theta = source.find("llama.rope.freq_base", float) or 10000.0
    return {
        "architectures": [ARCHITECTURES[model_type]],
        "model_type": model_type,
        "vocab_size": shapes.get("token_embd.weight", (0,))[0],
        "hidden_size": hidden,
        "intermediate_size": source.get("llama.feed_forward_length", int),
        "num_hidden_layers": source.get("llama.block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": source.find("llama.attention.head_count_kv", int) or heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": _decimal(source.get("llama.attention.layer_norm_rms_epsilon", float)),
        "max_position_embeddings": source.get("llama.context_length", int),
        "rope_theta": _decimal(theta),
        "rope_scaling": _rope_scaling(source, RopeConfig("default", _decimal(theta)), head_dim),
        "attention_bias": "blk.0.attn_q.bias" in shapes,
        "mlp_bias": "blk.0.ffn_gate.bias" in shapes,
        "tie_word_embeddings": not untied,
        "torch_dtype": dtype,
        "bos_token_id": source.find("tokenizer.ggml.bos_token_id", int),
        "eos_token_id": list(dict.fromkeys(end for end in ends if end is not None)),
        **({"sliding_window": window} if window else {}),
    }


def _refuse_unknown_keys(source: GgufFile) -> None:
    known = {f"llama.{key}" for key in _KEYS.split()}
    for key in source.names("llama."):
        if key not in known:
            raise ConfigError(f"{source.path}: {key} = {source.value(key)!r} is not implemented")
    for key in ("llama.expert_count", "llama.expert_used_count"):
        if count := source.find(key, int):
            raise ConfigError(f"{source.path}: {key} = {count}: experts are not implemented")


def _decimal(value: float) -> float:
    """The short number that was stored as float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _rope_scaling(source: GgufFile, plain: RopeConfig, head_dim: int) -> dict[str, object] | None:
    kind = source.find("llama.rope.scaling.type", str) or "linear"
    factor = source.find("llama.rope.scaling.factor", float) or 1.0
    if kind not in ("none", "linear"):
        raise ConfigError(f"{source.path}: llama.rope.scaling.type = {kind!r} is not implemented")
    scaled = kind == "linear" and factor != 1.0
    if _ROPE_FACTORS not in source.shapes():
        return {"rope_type": "linear", "factor": _decimal(factor)} if scaled else None
    divisors = source.tensor(_ROPE_FACTORS, np.dtype(np.float32))  # [D/2]
    if scaled or divisors.shape != (head_dim // 2,):
        raise ConfigError(f"{source.path}: {_ROPE_FACTORS} does not fit the rest of the file")
    return _llama3(source, plain, divisors, head_dim)


def _llama3(
    source: GgufFile, plain: RopeConfig, divisors: NDArray[np.float32], head_dim: int
) -> dict[str, object] | None:
    """The settings that Llama 3 models have, where they give these divisors of the frequencies."""
    if (divisors == 1).all():
        return None
    wanted = plain.inverse_frequencies(head_dim) / divisors
    rope = RopeConfig("llama3", plain.theta, factor=_decimal(float(divisors.max())))
    if not np.allclose(rope.inverse_frequencies(head_dim), wanted, rtol=1e-4, atol=0):
        raise ConfigError(f"{source.path}: {_ROPE_FACTORS} is not the RoPE scaling of Llama 3")
    return {
        "rope_type": "llama3",
        "factor": rope.factor,
        "low_freq_factor": rope.low_freq_factor,
        "high_freq_factor": rope.high_freq_factor,
        "original_max_position_embeddings": rope.original_context,
    }


def _check(source: GgufFile, settings: dict[str, object], names: dict[str, str]) -> ModelConfig:
    """The same gates that the written folder will have to pass, before anything is written."""
    try:
        config = ModelConfig.from_dict(settings)
    except ConfigError as error:
        raise ConfigError(f"{source.path}: {error}") from error
    shapes = source.shapes()
    found = {new: ("float32", shapes[old]) for old, new in names.items()}
    expected = parameter_shapes(config, tied=bool(config.tie_word_embeddings))
    if problems := mismatches(expected, found):
        raise CheckpointError(f"{source.path}: tensors do not fit: {'; '.join(problems)}")
    return config


def _write_weights(
    source: GgufFile, config: ModelConfig, old_names: dict[str, str], folder: Path, dtype: str
) -> None:
    shapes = parameter_shapes(config, tied=bool(config.tie_word_embeddings))
    shards = _plan(shapes, DTYPES[dtype].itemsize)
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    files = files if len(files) > 1 else [SINGLE]
    for file, names in zip(files, shards, strict=True):
        tensors = {name: _weight(source, config, name, old_names[name], dtype) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        # The library lets nobody else read the file; the folder's other files decide.
        (folder / file).chmod((folder / "config.json").stat().st_mode)
    if len(files) > 1:
        home = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        _write_json(folder / INDEX, {"metadata": {}, "weight_map": home})


def _plan(shapes: Shapes, itemsize: int) -> list[list[str]]:
    """Names in order, cut into shards that fit `SHARD_BYTES`; a larger tensor is one by itself."""
    shards: list[list[str]] = [[]]
    room = SHARD_BYTES
    for name, shape in shapes.items():
        size = math.prod(shape) * itemsize
        if size > room and shards[-1]:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(name)
        room -= size
    return shards


def _weight(
    source: GgufFile, config: ModelConfig, name: str, old_name: str, dtype: str
) -> NDArray[Any]:
    array = source.tensor(old_name, DTYPES[dtype])
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return array
    # llama.cpp turns neighbouring pairs of dimensions where Hugging Face turns halves of a head:
    # [heads, D/2, 2, ...] back to [heads, 2, D/2, ...]
    pairs = array.reshape(heads, config.head_dim // 2, 2, *array.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(array.shape))


def _write_json(file: Path, value: dict[str, object]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
