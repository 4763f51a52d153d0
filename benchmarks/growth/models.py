"""Random checkpoints for curves: the layers of a real model, few of them, and any vocabulary.

Made once and kept.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.models import settings, write_weights
from urial_engine.config import ModelConfig
from urial_engine.weights import parameter_shapes

Settings = dict[str, Any]  # as config.json has them
SPECIALS = ("<unk>", "<s>", "</s>")
LAYERS, VOCABULARY = 4, 32_768
POSITIONS = 9216


def shape(*, small: bool = False, vocabulary: int | None = None) -> Settings:
    """The layers of TinyLlama 1.1B, or toys for the tests; the head is the embedding."""
    vocabulary = vocabulary or (320 if small else VOCABULARY)
    tokenizer = {"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 2}
    made = settings("tiny" if small else "1b", tokenizer)
    made |= {"max_position_embeddings": POSITIONS, "tie_word_embeddings": True}
    return made if small else {**made, "num_hidden_layers": LAYERS}


def make(home: Path, made: Settings) -> Path:
    """The folder below `home` with the checkpoint of this shape, written if it is not there."""
    size, text = made["hidden_size"], json.dumps(made, indent=1)
    out = home / f"hidden-{size}-vocabulary-{made['vocab_size']}"
    config = out / "config.json"
    if config.exists() and config.read_text() == text:
        return out
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    shapes = parameter_shapes(ModelConfig.from_dict(made), tied=True)
    write_weights(out / "model.safetensors", shapes)
    write_tokenizer(out / "tokenizer.json")
    config.write_text(text)  # last: a folder without it is no model
    return out


def write_tokenizer(file: Path) -> None:
    """Bytes only: most ids of the model stand for no text, and no measurement cares."""
    tokens = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.save(str(file))
