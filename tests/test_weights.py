"""Strict loading: each parameter once, everything that does not fit in one error."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from tests.fixtures import TinyModel, random_weights, tiny_config, write_weights
from urial_engine.checkpoint import Checkpoint
from urial_engine.config import ModelConfig
from urial_engine.errors import CheckpointError
from urial_engine.weights import EMBEDDING, FINAL_NORM, HEAD, Weights, parameter_shapes


def open_weights(folder: Path) -> Weights:
    return Weights.open(Checkpoint.open(folder))


def read_all(weights: Weights) -> Weights:
    for name in weights.shapes:
        weights.read(name)
    weights.finish()
    return weights


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_weights(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"head_dim": 24, "num_key_value_heads": 1},
        {"attention_bias": True},
        {"mlp_bias": True, "num_hidden_layers": 3},
        {"model_type": "mistral", "sliding_window": 8},
    ],
    ids=str,
)
def test_names_and_shapes_are_those_of_transformers(overrides: dict[str, Any], tied: bool) -> None:
    settings = tiny_config(**overrides, tie_word_embeddings=tied)
    ours = parameter_shapes(ModelConfig.from_dict(settings), tied)
    mistral = settings["model_type"] == "mistral"
    with torch.device("meta"):
        model = (
            MistralForCausalLM(MistralConfig(**settings))
            if mistral
            else LlamaForCausalLM(LlamaConfig(**settings))
        )
    assert ours == {name: tuple(p.shape) for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "mixed"])
def test_each_parameter_comes_out_once(tiny_model: TinyModel, dtype: str) -> None:
    weights = open_weights(tiny_model(dtype=dtype, attention_bias=True))
    expected = random_weights(tiny_config(attention_bias=True), dtype)
    assert weights.dtype == ("bfloat16" if dtype == "mixed" else dtype)
    for name, array in expected.items():
        assert weights.read(name).tobytes() == array.tobytes()
    weights.finish()
    with pytest.raises(CheckpointError, match=f"{FINAL_NORM} was read already"):
        weights.read(FINAL_NORM)
    with pytest.raises(CheckpointError, match="nonsense is no parameter"):
        weights.read("nonsense")


def test_a_parameter_never_read_is_told(tiny_model: TinyModel) -> None:
    weights = open_weights(tiny_model())
    for name in list(weights.shapes)[1:]:
        weights.read(name)
    with pytest.raises(CheckpointError, match=f"never loaded: {EMBEDDING}"):
        weights.finish()
    with pytest.raises(CheckpointError, match="never loaded"):
        assert weights.fingerprint


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_pass_on_each_row_once(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr("urial_engine.weights.SLICE", 4096)  # bytes: 32 rows of 32 floats
    folder = tiny_model(shards=2)
    expected = random_weights(tiny_config())
    found = {name: np.full_like(array, np.nan) for name, array in expected.items()}
    order: list[str] = []

    def take(name: str, first: int, rows: NDArray[Any]) -> None:
        assert np.isnan(found[name][first : first + len(rows)]).all(), "twice"
        assert rows.nbytes <= 4096 or len(rows) == 32
        found[name][first : first + len(rows)] = rows
        order.append(name)

    weights = open_weights(folder)
    weights.load(take, threads)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    if threads == 1:
        assert list(dict.fromkeys(order)) == list(weights.checkpoint.names())
    assert len(order) > 2 * len(expected)
    assert weights.fingerprint == read_all(open_weights(folder)).fingerprint
    with pytest.raises(CheckpointError, match="was read already"):
        weights.read(EMBEDDING)


def test_an_error_in_a_thread_ends_loading(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("urial_engine.weights.SLICE", 4096)
    folder = tiny_model()
    with (folder / "model.safetensors").open("r+b") as handle:
        weights = open_weights(folder)
        handle.truncate(5000)
    taken: list[str] = []

    def take(name: str, *_: object) -> None:
        taken.append(name)
        time.sleep(0.01)

    with pytest.raises(CheckpointError, match="ends at byte 5000: it was cut while open"):
        weights.load(take, 2)
    assert len(taken) < 5


def test_ctrl_c_ends_loading(tiny_model: TinyModel) -> None:
    taken: list[str] = []

    def take(name: str, *_: object) -> None:
        taken.append(name)
        if len(taken) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)

    weights = open_weights(tiny_model())
    with pytest.raises(KeyboardInterrupt):
        weights.load(take, 1)
    assert len(taken) < len(weights.shapes) / 2


def test_one_error_lists_everything(tiny_model: TinyModel) -> None:
    folder = tiny_model()
    arrays: dict[str, NDArray[Any]] = dict(random_weights(tiny_config()))
    del arrays[FINAL_NORM], arrays["model.layers.0.mlp.up_proj.weight"]
    arrays["model.layers.2.mlp.up_proj.weight"] = np.zeros((56, 32), np.float32)
    arrays["model.layers.1.self_attn.k_proj.weight"] = np.zeros((32, 32), np.float32)
    arrays["model.layers.0.input_layernorm.weight"] = np.zeros(32, np.int64)
    write_weights(folder, arrays)
    message = refusal(folder)
    assert "2 missing: model.layers.0.mlp.up_proj.weight, model.norm.weight" in message
    assert "1 left over: model.layers.2.mlp.up_proj.weight" in message
    assert "2 wrong: " in message
    assert "k_proj.weight is float32 [32, 32]" in message
    assert "[16, 32] is due" in message
    assert "input_layernorm.weight is I64 [32]" in message


def test_a_long_list_is_cut(tiny_model: TinyModel) -> None:
    folder = tiny_model(num_hidden_layers=1)
    (folder / "config.json").write_text(
        (folder / "config.json").read_text().replace('layers": 1', 'layers": 3')
    )
    message = refusal(folder)
    assert "18 missing: " in message
    assert "and 10 more" in message
    assert message.count("model.layers.1.") + message.count("model.layers.2.") == 8


def test_biases_are_as_strict_as_the_rest(tiny_model: TinyModel) -> None:
    folder = tiny_model()
    write_weights(folder, random_weights(tiny_config(attention_bias=True)))
    assert "8 left over: model.layers.0.self_attn.k_proj.bias" in refusal(folder)


def test_stored_frequencies_of_rope_are_harmless(tiny_model: TinyModel) -> None:
    folder = tiny_model()
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    write_weights(folder, {**random_weights(tiny_config()), name: np.ones(4, np.float32)})
    assert name not in read_all(open_weights(folder)).shapes


@pytest.mark.parametrize("says", [True, False, ...])
@pytest.mark.parametrize("head", ["absent", "equal", "other", "other type, equal"])
def test_the_head_is_tied_where_transformers_ties_it(
    tiny_model: TinyModel, says: Any, head: str
) -> None:
    folder = tiny_model(tie_word_embeddings=says, dtype="bfloat16")
    arrays: dict[str, NDArray[Any]] = dict(
        random_weights(tiny_config(tie_word_embeddings=False), "bfloat16")
    )
    if head == "absent":
        del arrays[HEAD]
    elif head != "other":
        kind = np.float32 if head.startswith("other") else ml_dtypes.bfloat16
        arrays[HEAD] = arrays[EMBEDDING].astype(kind)
    write_weights(folder, arrays)
    if says is False and head == "absent":
        message = refusal(folder)
        assert f"1 missing: {HEAD}" in message
        assert "tie_word_embeddings = false" in message
        return
    weights = read_all(open_weights(folder))
    used = arrays[EMBEDDING if weights.tied else HEAD].astype(np.float32)
    assert (HEAD in weights.shapes) == (not weights.tied)
    assert weights.tied == (head == "absent" or (says is True and "equal" in head))
    assert ("does not say" in weights.tied_reason) == (says is ...)
    assert (f"no {HEAD}" in weights.tied_reason) == (head == "absent")
    if says is ... and head == "absent":
        return  # transformers fills such a head with random numbers; there is nothing to agree with
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    np.testing.assert_array_equal(model.lm_head.weight.detach().numpy(), used)


def test_a_head_of_the_wrong_shape_is_not_taken_for_the_embedding(tiny_model: TinyModel) -> None:
    folder = tiny_model(tie_word_embeddings=True)
    head = np.zeros((321, 32), np.float32)
    write_weights(folder, {**random_weights(tiny_config(tie_word_embeddings=True)), HEAD: head})
    assert f"1 wrong: {HEAD} is float32 [321, 32]" in refusal(folder)


def test_a_tied_head_is_compared_to_its_last_row(tiny_model: TinyModel) -> None:
    config = {"vocab_size": 5000, "tie_word_embeddings": True}
    folder = tiny_model(**config)
    arrays = random_weights(tiny_config(**config))
    other = arrays[EMBEDDING].copy()
    write_weights(folder, {**arrays, HEAD: other})
    assert open_weights(folder).tied
    other[-1, -1] += 1
    write_weights(folder, {**arrays, HEAD: other})
    weights = open_weights(folder)
    assert not weights.tied
    assert "differs from the embedding" in weights.tied_reason


def test_the_fingerprint_is_of_the_content_alone(tiny_model: TinyModel) -> None:
    one = read_all(open_weights(tiny_model(dtype="bfloat16"))).fingerprint
    assert len(one) == 32
    sharded = open_weights(tiny_model(dtype="bfloat16", shards=3))
    for name in reversed(sharded.shapes):
        sharded.read(name)
    assert sharded.fingerprint == one
    assert read_all(open_weights(tiny_model(dtype="bfloat16", seed=1))).fingerprint != one
    assert read_all(open_weights(tiny_model(dtype="float16"))).fingerprint != one


def test_the_fingerprint_sees_one_bit_a_name_and_a_shape(tiny_model: TinyModel) -> None:
    arrays = random_weights(tiny_config())
    folder = tiny_model()
    one = read_all(open_weights(folder)).fingerprint
    a, b = (f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1))
    write_weights(folder, {**arrays, a: arrays[b], b: arrays[a]})
    assert read_all(open_weights(folder)).fingerprint != one
    bit = arrays[FINAL_NORM].copy()
    bit.view(np.uint32)[7] ^= 1
    write_weights(folder, {**arrays, FINAL_NORM: bit})
    assert read_all(open_weights(folder)).fingerprint != one
