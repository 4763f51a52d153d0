"""Opening model folders: what is read, in which way, and what is said of each damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from tests.fixtures import TinyModel, random_weights, tiny_config, write_weights
from urial_engine.checkpoint import INDEX, SINGLE, Checkpoint
from urial_engine.errors import CheckpointError


def contents(folder: Path) -> dict[str, NDArray[Any]]:
    with Checkpoint.open(folder) as checkpoint:
        return {name: checkpoint.tensor(name) for name in checkpoint.names()}


def edit_index(folder: Path, **changes: Any) -> None:
    index = json.loads((folder / INDEX).read_text())
    for name, shard in changes.items():
        index["weight_map"][name] = shard
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "mixed"])
def test_every_tensor_is_what_was_written(tiny_model: TinyModel, shards: int, dtype: str) -> None:
    folder = tiny_model(dtype=dtype, shards=shards, seed=3)
    expected = random_weights(tiny_config(), dtype, seed=3)
    found = contents(folder)
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
        assert found[name].flags.c_contiguous
        assert found[name].flags.aligned


@pytest.mark.parametrize("shards", [1, 2])
def test_names_and_info(tiny_model: TinyModel, shards: int) -> None:
    folder = tiny_model(dtype="bfloat16", shards=shards)
    with Checkpoint.open(folder) as checkpoint:
        infos = [checkpoint.info(name) for name in checkpoint.names()]
        embedding = checkpoint.info("model.embed_tokens.weight")
    assert (embedding.dtype, embedding.shape) == ("bfloat16", (320, 32))
    assert embedding.file.parent == folder
    places = [(info.file, info.offset) for info in infos]
    assert places == sorted(places)
    assert len({info.file for info in infos}) == shards


def test_rows_of_a_tensor_in_memory_that_is_used_again(tiny_model: TinyModel) -> None:
    name, buffer = "model.layers.1.mlp.up_proj.weight", np.empty(32 * 32 * 4, np.uint8)
    expected = random_weights(tiny_config())[name]  # [56, 32]
    with Checkpoint.open(tiny_model()) as checkpoint:
        for first, end in ((0, 32), (32, 99), (55, 56), (0, 56)):  # the last does not fit
            rows = checkpoint.rows(name, first, end, buffer)
            assert np.shares_memory(rows, buffer) == (len(rows) <= 32)
            np.testing.assert_array_equal(rows, expected[first:end])


def test_a_tensor_outlives_its_checkpoint(tiny_model: TinyModel) -> None:
    with Checkpoint.open(tiny_model()) as checkpoint:
        norm = checkpoint.tensor("model.norm.weight")
    np.testing.assert_array_equal(norm, random_weights(tiny_config())["model.norm.weight"])
    with pytest.raises(ValueError, match="closed file"):
        checkpoint.tensor("model.norm.weight")


def test_a_tensor_at_an_odd_offset_comes_out_aligned(tmp_path: Path) -> None:
    write_config(tmp_path)
    header = {
        "a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]},
        "b": {"dtype": "F32", "shape": [3], "data_offsets": [2, 14]},
    }
    values = np.array([1.5, -2.0, 3.0], np.float32)
    one = np.array([1], ml_dtypes.bfloat16)
    (tmp_path / SINGLE).write_bytes(safetensors(header, one.tobytes() + values.tobytes()))
    found = contents(tmp_path)
    np.testing.assert_array_equal(found["b"], values)
    assert found["b"].flags.aligned


def write_config(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(tiny_config()))


def safetensors(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


F32 = {"dtype": "F32", "shape": [3]}
DAMAGED = {
    "empty": b"",
    "shorter than a header length": b"abc",
    "header length beyond the file": (10**6).to_bytes(8, "little") + b"{}",
    "header is no JSON": (8).to_bytes(8, "little") + b"\xff" * 8,
    "data cut": safetensors({"a": {**F32, "data_offsets": [0, 12]}}, b"\0" * 11),
    "data too long": safetensors({"a": {**F32, "data_offsets": [0, 12]}}, b"\0" * 13),
    "overlap": safetensors(
        {"a": {**F32, "data_offsets": [0, 12]}, "b": {**F32, "data_offsets": [8, 20]}},
        b"\0" * 20,
    ),
    "hole": safetensors(
        {"a": {**F32, "data_offsets": [0, 12]}, "b": {**F32, "data_offsets": [16, 28]}},
        b"\0" * 28,
    ),
    "shape does not fit": safetensors(
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}}, b"\0" * 12
    ),
    "unknown dtype": safetensors(
        {"a": {"dtype": "F99", "shape": [3], "data_offsets": [0, 12]}}, b"\0" * 12
    ),
    "a pickle": b"\x80\x04\x95" + b"x" * 200,
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    write_config(tmp_path)
    (tmp_path / SINGLE).write_bytes(DAMAGED[damage])
    with pytest.raises(CheckpointError, match="damaged or not safetensors") as caught:
        Checkpoint.open(tmp_path)
    assert str(tmp_path / SINGLE) in str(caught.value)


def test_a_real_file_cut_at_any_place_is_refused(tiny_model: TinyModel) -> None:
    folder = tiny_model()
    whole = (folder / SINGLE).read_bytes()
    for length in (7, 8, 100, len(whole) // 2, len(whole) - 1):
        (folder / SINGLE).write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="damaged"):
            Checkpoint.open(folder)


def test_a_file_cut_while_open_is_refused_when_read(tiny_model: TinyModel) -> None:
    folder = tiny_model()
    with Checkpoint.open(folder) as checkpoint:
        with (folder / SINGLE).open("r+b") as handle:
            handle.truncate((folder / SINGLE).stat().st_size - 5)
        with pytest.raises(CheckpointError, match="cut while open"):
            checkpoint.tensor(checkpoint.names()[-1])


def test_other_dtypes_have_a_name_but_are_not_handed_out(tmp_path: Path) -> None:
    write_config(tmp_path)
    save_file({"a": np.arange(3), "b": np.zeros(2, np.float64)}, tmp_path / SINGLE)
    with Checkpoint.open(tmp_path) as checkpoint:
        assert (checkpoint.info("a").dtype, checkpoint.info("b").dtype) == ("I64", "F64")
        with pytest.raises(CheckpointError, match="a is I64, not one of bfloat16"):
            checkpoint.tensor("a")
        with pytest.raises(CheckpointError, match="no tensor c"):
            checkpoint.tensor("c")


def test_only_what_the_index_names_is_read(tiny_model: TinyModel) -> None:
    folder = tiny_model(shards=2)
    for name in ("consolidated.safetensors", "model-00003-of-00002.safetensors"):
        (folder / name).write_bytes(b"not looked at")
    (folder / "pytorch_model.bin").write_bytes(b"neither")
    assert contents(folder).keys() == random_weights(tiny_config()).keys()


def test_a_single_file_comes_before_an_index(tiny_model: TinyModel) -> None:
    folder = tiny_model(shards=2)
    write_weights(folder, random_weights(tiny_config(), seed=9))
    with Checkpoint.open(folder) as checkpoint:
        assert {checkpoint.info(name).file for name in checkpoint.names()} == {folder / SINGLE}


def test_missing_shards_are_named(tiny_model: TinyModel) -> None:
    folder = tiny_model(shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks model-00002-of-00003") as caught:
        Checkpoint.open(folder)
    assert "of 3 shards" in str(caught.value)


def test_a_tensor_that_its_shard_does_not_hold(tiny_model: TinyModel) -> None:
    folder = tiny_model(shards=2)
    edit_index(folder, **{"model.extra.weight": "model-00001-of-00002.safetensors"})
    with pytest.raises(CheckpointError, match=r"does not hold model\.extra\.weight"):
        Checkpoint.open(folder)


def test_a_tensor_that_lies_in_another_shard_as_well(tiny_model: TinyModel) -> None:
    folder = tiny_model(shards=2)
    first, second = (folder / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    name, array = next(iter(load_file(second).items()))
    save_file({**load_file(first), name: array}, first)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    assert f"{first} holds {name}" in str(caught.value)
    assert f"puts in {second.name}" in str(caught.value)


def test_a_tensor_that_the_index_does_not_name(tiny_model: TinyModel) -> None:
    folder = tiny_model(shards=2)
    first = folder / "model-00001-of-00002.safetensors"
    save_file({**load_file(first), "stray": np.zeros(1, np.float32)}, first)
    with pytest.raises(CheckpointError, match=r"holds stray, which .* does not name"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    "shard",
    [
        *("../other/model.safetensors", "/etc/x.safetensors", "a/b.safetensors", "*.safetensors"),
        *("..", "", "model.bin", "a\\b.safetensors", 3, None),
    ],
)
def test_a_shard_is_a_plain_name(tiny_model: TinyModel, shard: Any) -> None:
    folder = tiny_model(shards=2)
    edit_index(folder, **{"model.norm.weight": shard})
    with pytest.raises(CheckpointError, match=r"no plain \.safetensors name") as caught:
        Checkpoint.open(folder)
    assert repr(shard) in str(caught.value)


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": [1]}'])
def test_an_index_that_is_none(tiny_model: TinyModel, index: str) -> None:
    folder = tiny_model(shards=2)
    (folder / INDEX).write_text(index)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.safetensors"])
def test_other_formats_are_pointed_to_a_conversion(tmp_path: Path, name: str) -> None:
    write_config(tmp_path)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=f"{name} is not read.*save_pretrained"):
        Checkpoint.open(tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    write_config(tmp_path)
    with pytest.raises(CheckpointError, match="it holds no weights"):
        Checkpoint.open(tmp_path)
