"""Random checkpoints of a real model's layers: a shape goes in, a folder that an engine opens comes
out. Made once and kept.

Speed does not depend on what the weights say, so their bits are drawn as they are: a sign, a
mantissa and one of two sizes, such that a layer's output is about as large as its input.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from urial_engine.config import ModelConfig
from urial_engine.weights import parameter_shapes

SPECIALS = ("<unk>", "<s>", "</s>")
BF16_BYTES = 2
BLOCK = 64  # tokens of a block of the cache


@dataclass(frozen=True, slots=True)
class Shape:
    """The layers of TinyLlama 1.1B, four of its 22; head and embedding are tied."""

    hidden: int = 2048
    feed_forward: int = 5632
    layers: int = 4
    query_heads: int = 32
    kv_heads: int = 4
    vocabulary: int = 32_768
    positions: int = 9216

    @property
    def head_dim(self) -> int:
        return self.hidden // self.query_heads

    @property
    def layer_weights(self) -> int:
        """Numbers in the matrices of all layers."""
        attention = 2 * (self.query_heads + self.kv_heads) * self.head_dim * self.hidden
        return self.layers * (attention + 3 * self.hidden * self.feed_forward)

    @property
    def key_bytes(self) -> int:
        """Keys and values of one token."""
        return self.layers * self.kv_heads * 2 * self.head_dim * BF16_BYTES

    @property
    def name(self) -> str:
        return "-".join(f"{key[0]}{value}" for key, value in asdict(self).items())

    def settings(self) -> dict[str, Any]:
        """As config.json has them."""
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.feed_forward,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.query_heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": self.positions,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }


def make(home: Path, shape: Shape) -> Path:
    """The folder below `home` with the checkpoint of this shape, made if it is not there."""
    out = home / shape.name
    if out.is_dir():
        return out
    unfinished = home / f"{shape.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    settings = shape.settings()
    (unfinished / "config.json").write_text(json.dumps(settings, indent=1))
    shapes = parameter_shapes(ModelConfig.from_dict(settings), tied=True)
    random = np.random.default_rng(0)
    weights = {name: values(random, size) for name, size in shapes.items()}
    save_file(weights, unfinished / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(unfinished)
    unfinished.rename(out)
    return out


def values(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
    """bfloat16. A norm's are 1; a matrix's lie between 0.4 and 1.6 times 1 / sqrt(columns)."""
    if len(shape) == 1:
        return np.ones(shape, ml_dtypes.bfloat16)
    least = np.array(0.4 / shape[1] ** 0.5, ml_dtypes.bfloat16).view(np.uint16)
    bits = np.frombuffer(random.bytes(BF16_BYTES * shape[0] * shape[1]), np.uint16)
    # Drawn are the sign, the seven bits of the mantissa and the last one of the exponent.
    return ((bits & 0x80FF) + least).view(ml_dtypes.bfloat16).reshape(shape)


def write_tokenizer(folder: Path) -> None:
    """Bytes only: most ids of the model stand for no text, and no measurement cares."""
    tokens = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.save(str(folder / "tokenizer.json"))
