"""Writes a random checkpoint of a real model's shape: `python -m benchmarks.models 1b OUT`.

For work on speed, which does not depend on the values: OUT then runs like any model folder, and
what it says is noise. Needs the memory of a few of its largest matrices.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from benchmarks.workload import demo_model
from urial_engine.config import ModelConfig
from urial_engine.weights import Shapes, parameter_shapes

SHAPES = {
    "tiny": ("llama", 64, 176, 2, 4, 2),
    "1b": ("llama", 2048, 5632, 22, 32, 4),  # TinyLlama 1.1B
    "7b": ("llama", 4096, 11008, 32, 32, 32),  # Llama 2 7B
    "mistral": ("mistral", 4096, 14336, 32, 32, 8),  # Mistral 7B v0.1
}
DEVIATION = 0.02  # of the weights, as checkpoints have it before training
CONTEXT = 4096


def settings(shape: str, tokenizer: dict[str, Any]) -> dict[str, Any]:
    """The content of config.json; the vocabulary is that of the tokenizer's model."""
    kind, hidden, intermediate, layers, heads, kv_heads = SHAPES[shape]
    return {
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        "model_type": kind,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        **({"sliding_window": CONTEXT} if kind == "mistral" else {}),
        **{key: tokenizer[key] for key in ("vocab_size", "bos_token_id", "eos_token_id")},
    }


def parameter(shape: tuple[int, ...], random: np.random.Generator) -> NDArray[Any]:
    """A norm of ones, or a random matrix."""
    if len(shape) == 1:
        return np.ones(shape, ml_dtypes.bfloat16)
    return (random.standard_normal(shape, np.float32) * DEVIATION).astype(ml_dtypes.bfloat16)


def write_weights(file: Path, shapes: Shapes) -> None:
    """One safetensors file, tensor by tensor."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(0)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            out.write(parameter(shape, random).tobytes())


def write(shape: str, out: Path, tokenizer: Path) -> None:
    """The folder `out`, new or to be replaced file by file."""
    source = json.loads((tokenizer / "config.json").read_text(encoding="utf-8"))
    made = settings(shape, source)
    config = ModelConfig.from_dict(made)
    out.mkdir(parents=True, exist_ok=True)
    for file in tokenizer.glob("tokenizer*"):
        shutil.copy(file, out)
    write_weights(out / "model.safetensors", parameter_shapes(config, tied=False))
    # Last: a folder without it is no model.
    (out / "config.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--tokenizer-from", type=Path, help="folder of a model (default: the demo's)"
    )
    args = parser.parse_args(argv)
    write(args.shape, args.out, args.tokenizer_from or demo_model())


if __name__ == "__main__":
    main(sys.argv[1:])
