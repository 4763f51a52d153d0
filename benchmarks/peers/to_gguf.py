"""A folder of safetensors in bf16 goes in, a GGUF file of the same numbers for llama.cpp comes out.

    python -m benchmarks.peers.to_gguf MODEL OUT.gguf --tokenizer FILE.gguf

Needs numpy, ml_dtypes, safetensors and gguf. The tokenizer is taken over from another GGUF file of
the same vocabulary: GGUF names the rules of a tokenizer, tokenizer.json spells them out.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from safetensors import safe_open

TOP = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def renamed(name: str) -> str:
    """llama.cpp's name of a parameter."""
    stem, _, kind = name.rpartition(".")
    if match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem):
        return f"blk.{match[1]}.{PARTS[match[2]]}.{kind}"
    return f"{TOP[stem]}.{kind}"


def add_settings(writer: GGUFWriter, config: dict[str, Any]) -> int:
    """Returns the size of a head."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if config["model_type"] != "llama" or rope.get("rope_type", "default") != "default":
        raise SystemExit(f"not converted: {config['model_type']} with RoPE scaling {rope}")
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    size = config.get("head_dim") or hidden // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(config.get("rope_theta") or rope.get("rope_theta", 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    return int(size)


def copy_tokenizer(writer: GGUFWriter, source: Path, vocabulary: int) -> None:
    fields = {n: f for n, f in GGUFReader(source).fields.items() if n.startswith("tokenizer.")}
    known = len(fields["tokenizer.ggml.tokens"].data)
    if known != vocabulary:
        raise SystemExit(f"{source} has {known} tokens, the model {vocabulary}")
    for name, field in fields.items():
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, inner)


def paired(rows: np.ndarray, size: int) -> np.ndarray:
    """Queries and keys [H * D, …]: llama.cpp turns neighbours of a head where Hugging Face turns
    its halves, so [H, 2, D/2] becomes [H, D/2, 2]."""
    halves = rows.reshape(-1, 2, size // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def add_tensors(writer: GGUFWriter, model: Path, size: int) -> None:
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
                array = tensors.get_tensor(name)
                if array.dtype != ml_dtypes.bfloat16:
                    raise SystemExit(f"{file}: {name} is {array.dtype}, not bfloat16")
                if ".q_proj." in name or ".k_proj." in name:
                    array = paired(array, size)
                if array.ndim == 1:  # llama.cpp multiplies by vectors in fp32 only
                    writer.add_tensor(renamed(name), array.astype(np.float32))
                else:
                    kind = GGMLQuantizationType.BF16
                    writer.add_tensor(renamed(name), array.view(np.uint8), raw_dtype=kind)


def convert(model: Path, out: Path, tokenizer: Path) -> None:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    writer = GGUFWriter(out, "llama")
    size = add_settings(writer, config)
    copy_tokenizer(writer, tokenizer, config["vocab_size"])
    add_tensors(writer, model, size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    convert(**vars(parser.parse_args()))
