"""GGUF files to model folders: weights and settings come out as they went in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from tests.fixtures import DTYPES, gguf_of_the_real_model, random_weights, tiny_config
from tests.gguf_files import gguf, gguf_tensors, write_gguf
from urial_engine import gguf_import
from urial_engine.checkpoint import INDEX, SINGLE, Checkpoint
from urial_engine.config import ModelConfig
from urial_engine.config_rope import RopeConfig
from urial_engine.errors import CheckpointError, ConfigError, ParameterError, UrialError
from urial_engine.gguf_import import import_gguf
from urial_engine.weights import Weights


def import_tiny(tmp_path: Path, settings: dict[str, Any], **options: Any) -> Weights:
    """Through a file and the importer, and open again with all checks."""
    dtype = options.pop("dtype", "float32")
    import_gguf(write_gguf(tmp_path / "x.gguf", settings, **options), tmp_path / "out", dtype=dtype)
    return Weights.open(Checkpoint.open(tmp_path / "out"))


def test_the_real_weights_are_those_that_transformers_reads(real_model: Path) -> None:
    file = gguf_of_the_real_model()
    model = AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=torch.float32
    )
    expected = {name: p.detach().numpy() for name, p in model.named_parameters()}
    weights = Weights.open(Checkpoint.open(real_model))
    assert weights.tied
    assert weights.dtype == "bfloat16"
    assert weights.shapes.keys() == expected.keys()
    for name, array in expected.items():
        assert np.array_equal(weights.read(name), array.astype(ml_dtypes.bfloat16)), name
    config, other = weights.config, model.config
    assert config.rms_norm_eps == pytest.approx(other.rms_norm_eps, rel=1e-6)
    assert config.rope.theta == other.rope_parameters["rope_theta"]
    assert config.max_positions == other.max_position_embeddings
    assert config.eos_token_ids == (2,)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1, "head_dim": 24},
        {"attention_bias": True},
        {"attention_bias": True, "mlp_bias": True, "num_hidden_layers": 1},
        {"tie_word_embeddings": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_comes_out_as_it_went_in(
    tmp_path: Path, overrides: dict[str, Any], dtype: str
) -> None:
    settings = tiny_config(**overrides)
    dims = {"llama.attention.key_length": 24, "llama.attention.value_length": 24}
    extra = dims if "head_dim" in overrides else {}
    weights = import_tiny(tmp_path, settings, dtype=dtype, **extra)
    assert weights.dtype == dtype
    for name, array in random_weights(settings).items():
        assert np.array_equal(weights.read(name), array.astype(DTYPES[dtype])), name
    weights.finish()
    assert weights.config == ModelConfig.from_dict(settings)


def test_transformers_loads_what_is_written(tmp_path: Path) -> None:
    settings = tiny_config()
    import_tiny(tmp_path, settings)
    load: Any = LlamaForCausalLM.from_pretrained
    model, report = load(tmp_path / "out", dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    arrays = {n: torch.from_numpy(a) for n, a in random_weights(settings).items()}
    other = LlamaForCausalLM(model.config)
    other.load_state_dict(arrays)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, other(ids).logits)


def test_quantised_kinds_are_dequantised(tmp_path: Path) -> None:
    kinds = ["Q8_0", "Q4_0", "Q5_1", "F16", "BF16"]
    settings = tiny_config(intermediate_size=64)
    weights = import_tiny(tmp_path, settings, kinds=kinds)
    for name, array in random_weights(settings).items():
        error = np.abs(weights.read(name) - array).max() / np.abs(array).max()
        assert error < 0.15, name
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    assert {t.tensor_type.name for t in reader.tensors} == {*kinds, "F32"}
    stored = next(t for t in reader.tensors if t.name == "blk.1.ffn_down.weight")
    assert np.array_equal(
        Checkpoint.open(tmp_path / "out").tensor("model.layers.1.mlp.down_proj.weight"),
        gguf.dequantize(stored.data, stored.tensor_type),
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, {}),
        ({"llama.rope.scaling.factor": 4.0}, {"kind": "linear", "factor": 4.0}),
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.5},
            {"kind": "linear", "factor": 2.5},
        ),
        ({"llama.rope.freq_base": 5e5, "llama.rope.dimension_count": 8}, {"theta": 5e5}),
        ({"llama.rope.freq_base": ...}, {}),
    ],
    ids=str,
)
def test_rope_settings(tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any]) -> None:
    rope = import_tiny(tmp_path, tiny_config(), **changes).config.rope
    assert rope == RopeConfig(**{"kind": "default", "theta": 10000.0, **expected})


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_is_found_again_in_its_divisors(tmp_path: Path, factor: float) -> None:
    settings = tiny_config(rope_theta=5e5, head_dim=64, num_attention_heads=2)
    llama3 = RopeConfig("llama3", 5e5, factor)
    plain = RopeConfig("default", 5e5)
    divisors = plain.inverse_frequencies(64) / llama3.inverse_frequencies(64)
    sizes = {"llama.attention.key_length": 64, "llama.attention.value_length": 64}
    for values, rope in ((divisors, llama3), (np.ones(32, np.float32), plain)):
        folder = tmp_path / rope.kind
        folder.mkdir()
        tensors = {**gguf_tensors(settings), "rope_freqs.weight": values}
        assert import_tiny(folder, settings, tensors=tensors, **sizes).config.rope == rope
    divisors[20] *= 1.01
    tensors = {**gguf_tensors(settings), "rope_freqs.weight": divisors}
    with pytest.raises(ConfigError, match="not the RoPE scaling of Llama 3"):
        import_tiny(tmp_path, settings, tensors=tensors, **sizes)


def test_a_sliding_window_makes_it_a_mistral(tmp_path: Path) -> None:
    config = import_tiny(tmp_path, tiny_config(), **{"llama.attention.sliding_window": 64}).config
    assert (config.model_type, config.sliding_window) == ("mistral", 64)


def test_more_end_tokens(tmp_path: Path) -> None:
    config = import_tiny(tmp_path, tiny_config(), **{"tokenizer.ggml.eot_token_id": 7}).config
    assert config.eos_token_ids == (2, 7)


def test_a_large_model_is_written_in_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_import, "SHARD_BYTES", 30_000)  # the embedding alone has 40,960
    weights = import_tiny(tmp_path, tiny_config())
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    home = json.loads((tmp_path / "out" / INDEX).read_text())["weight_map"]
    assert len(shards) > 3
    assert sorted(set(home.values())) == shards
    assert SINGLE not in shards
    for name, array in random_weights(tiny_config()).items():
        assert np.array_equal(weights.read(name), array)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arch": "gemma2"}, ["general.architecture", "'gemma2'"]),
        ({"split.count": 3}, ["one part of several"]),
        ({"llama.expert_count": 8}, ["llama.expert_count", "8"]),
        ({"llama.logit_scale": 0.5}, ["llama.logit_scale", "0.5"]),
        ({"llama.rope.scaling.type": "yarn"}, ["llama.rope.scaling.type", "'yarn'"]),
        ({"llama.rope.dimension_count": 4}, ["number of dimensions"]),
        ({"llama.attention.value_length": 4}, ["number of dimensions"]),
        ({"llama.attention.head_count": [4, 2]}, ["head_count", "[4, 2]", "single int"]),
        ({"llama.attention.head_count": 3}, ["num_attention_heads = 3"]),
        ({"llama.block_count": ...}, ["lacks llama.block_count"]),
        ({"llama.block_count": 3}, ["9 missing", "model.layers.2.", "tensors do not fit"]),
        ({"llama.feed_forward_length": 55}, ["6 wrong", "[56, 32]"]),
    ],
    ids=str,
)
def test_refusals_name_the_reason_and_leave_nothing(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    file = write_gguf(tmp_path / "x.gguf", **changes)
    with pytest.raises(UrialError) as caught:
        import_gguf(file, tmp_path / "out")
    assert [word for word in [*words, str(file)] if word not in str(caught.value)] == []
    assert list(tmp_path.iterdir()) == [file]


def test_unknown_tensors_are_named(tmp_path: Path) -> None:
    tensors = {**gguf_tensors(tiny_config()), "blk.0.attn_sinks.weight": np.ones(4, np.float32)}
    with pytest.raises(CheckpointError, match=r"1 left over: blk\.0\.attn_sinks\.weight"):
        import_tiny(tmp_path, tiny_config(), tensors=tensors)


def test_values_that_the_dtype_cannot_hold(tmp_path: Path) -> None:
    tensors = gguf_tensors(tiny_config())
    tensors["blk.1.ffn_up.weight"][3, 3] = 1e5
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_up\.weight .* float16 cannot hold"):
        import_tiny(tmp_path, tiny_config(), tensors=tensors, dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.001, 0.1, 0.5, 0.999])
def test_a_truncated_file(tmp_path: Path, share: float) -> None:
    file = write_gguf(tmp_path / "x.gguf")
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match="damaged or not GGUF") as caught:
        import_gguf(file, tmp_path / "out")
    assert str(file) in str(caught.value)


def test_files_that_are_not_gguf(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"not a model" * 100)
    with pytest.raises(CheckpointError, match="damaged or not GGUF"):
        import_gguf(tmp_path / "x.gguf", tmp_path / "out")
    with pytest.raises(CheckpointError, match="no file"):
        import_gguf(tmp_path / "y.gguf", tmp_path / "out")


def test_the_folder_must_be_new_or_empty(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "x.gguf")
    out = tmp_path / "a" / "b"
    import_gguf(file, out)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    with pytest.raises(CheckpointError, match="not an empty folder"):
        import_gguf(file, out)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert [path.name for path in out.parent.iterdir()] == ["b"]
    with pytest.raises(CheckpointError, match="not an empty folder"):  # before any work is done
        import_gguf(tmp_path / "missing.gguf", out)
    with pytest.raises(CheckpointError, match="not an empty folder"):
        import_gguf(file, file)
    (tmp_path / "empty").mkdir()
    import_gguf(file, tmp_path / "empty")
    assert (tmp_path / "empty" / SINGLE).is_file()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "x.gguf")
    with pytest.raises(CheckpointError, match="cannot be written"):
        import_gguf(file, file / "out")


def test_an_unknown_dtype(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="'int8' must be one of bfloat16"):
        import_gguf(tmp_path / "x.gguf", tmp_path / "out", dtype="int8")


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(CheckpointError, match=r"pip install 'urial-engine\[gguf\]'"):
        import_gguf(tmp_path / "x.gguf", tmp_path / "out")
