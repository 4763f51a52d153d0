"""Small GGUF files, written as llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.fixtures import random_weights, tiny_config

gguf = pytest.importorskip("gguf", reason="needs the package gguf")

NAMES = {
    "model.embed_tokens.": "token_embd.",
    "model.norm.": "output_norm.",
    "lm_head.": "output.",
    "model.layers.": "blk.",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
BYTES = [f"<0x{i:02X}>" for i in range(256)]
# id 0 ... : <unk>, <s>, </s>, 256 bytes, then pieces; types as in SentencePiece
PIECES = (["<unk>", "<s>", "</s>", *BYTES, "▁", "a", "b", "▁a", "ab", "▁ab"], [2, 3, 3] + [6] * 256)


def interleave(array: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows 0, 1, 2, 3 ... of a head from rows 0, D/2, 1, D/2 + 1 ...: neighbours turn together."""
    head_dim = len(array) // heads
    order = [i // 2 + (i % 2) * (head_dim // 2) for i in range(head_dim)]
    return np.concatenate([part[order] for part in np.split(array, heads)])


def gguf_tensors(settings: Mapping[str, Any], seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """The weights of `random_weights` under llama.cpp's names and in its order of rows."""
    heads = {
        "q_proj": settings["num_attention_heads"],
        "k_proj": settings["num_key_value_heads"],
    }
    tensors = {}
    for name, array in random_weights(settings, seed=seed).items():
        part = next((n for key, n in heads.items() if key in name), None)
        for old, new in NAMES.items():
            name = name.replace(old, new)
        tensors[name] = array if part is None else interleave(array, part)
    return tensors


def metadata(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the converter says of a configuration, with a SentencePiece vocabulary."""
    tokens, types = PIECES
    types = types + [1] * (len(tokens) - len(types))
    return {
        "llama.context_length": settings["max_position_embeddings"],
        "llama.embedding_length": settings["hidden_size"],
        "llama.block_count": settings["num_hidden_layers"],
        "llama.feed_forward_length": settings["intermediate_size"],
        "llama.attention.head_count": settings["num_attention_heads"],
        "llama.attention.head_count_kv": settings["num_key_value_heads"],
        "llama.attention.layer_norm_rms_epsilon": float(settings["rms_norm_eps"]),
        "llama.rope.freq_base": float(settings["rope_theta"]),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(i) for i in range(len(tokens))],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def write_gguf(
    file: Path,
    settings: Mapping[str, Any] | None = None,
    *,
    arch: str = "llama",
    tensors: Mapping[str, NDArray[Any]] | None = None,
    kinds: Sequence[str] = (),
    **changes: Any,
) -> Path:
    """`kinds` of quantisation are given to the matrices in turn; F32 where there are none.

    `changes` are metadata; `...` as a value removes one.
    """
    settings = settings or tiny_config()
    writer = gguf.GGUFWriter(file, arch)
    for key, value in {**metadata(settings), **changes}.items():
        if value is not ...:
            add(writer, key, value)
    tensors = gguf_tensors(settings) if tensors is None else tensors
    for i, (name, array) in enumerate(tensors.items()):
        if kinds and array.ndim == 2:
            kind = gguf.GGMLQuantizationType[kinds[i % len(kinds)]]
            writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def add(writer: Any, key: str, value: Any) -> None:
    kind = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    getattr(writer, f"add_{kind[type(value)]}")(key, value)
