"""A model folder or hub id goes in; its configuration and its tensors, one at a time, come out.

Only safetensors are read: `model.safetensors`, or the shards that `model.safetensors.index.json`
names. What else lies in the folder is never looked at, so duplicate shards cannot be picked up.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from .config import ModelConfig
from .errors import CheckpointError, ConfigError
from .json_values import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES: Mapping[str, np.dtype[Any]] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}
_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}

_OTHER = ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.safetensors")

# All that a model folder needs besides its weights.
_SMALL_FILES = (
    *("config.json", "generation_config.json", INDEX, "tokenizer.json", "tokenizer.model"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json"),
)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies. A dtype that is not in `DTYPES` keeps safetensors' name for it."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int  # of its first byte in the file


class Checkpoint:
    """The tensors of one model folder, read from files that stay open until `close`.

    Nothing is mapped: network disks serve reads far faster, and a mapped file that is cut while it
    is used ends the process.
    """

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        tensors: Mapping[str, TensorInfo],
    ) -> None:
        """For `open`."""
        self.folder = folder
        self.config = config
        self._tensors = tensors
        files = {info.file for info in tensors.values()}
        self._files = {file: FileIO(file) for file in files}
        for opened in self._files.values():
            # Threads that read in turn do not look sequential: the disk would not be read ahead.
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)

    @classmethod
    def open(cls, path_or_id: str | Path) -> Checkpoint:
        """Read the configuration and the headers of the weight files, and check both."""
        folder = resolve(path_or_id)
        config = ModelConfig.load(folder)
        return cls(folder, config, _find_tensors(folder))

    def names(self) -> tuple[str, ...]:
        """All tensor names, in the order in which they lie on the disk."""
        order = sorted(self._tensors.items(), key=lambda item: (item[1].file, item[1].offset))
        return tuple(name for name, _ in order)

    def info(self, name: str) -> TensorInfo:
        """Raises `CheckpointError` where there is no such tensor."""
        if name not in self._tensors:
            raise CheckpointError(f"{self.folder} has no tensor {name}")
        return self._tensors[name]

    def tensor(self, name: str) -> NDArray[Any]:
        """An array in the dtype on disk: bfloat16 (of ml_dtypes), float16 or float32."""
        array = np.empty(self.info(name).shape, self._dtype(name))
        self._fill(array, name, 0)
        return array

    def rows(
        self, name: str, first: int, end: int, buffer: NDArray[np.uint8] | None = None
    ) -> NDArray[Any]:
        """Rows first .. end - 1 of a tensor, as `tensor`; in `buffer` if that is large enough.

        Threads may read at the same time.
        """
        count, *row = self.info(name).shape
        shape = (min(end, count) - first, *row)
        dtype = self._dtype(name)
        size = math.prod(shape) * dtype.itemsize
        data = np.empty(size, np.uint8) if buffer is None or len(buffer) < size else buffer[:size]
        array = data.view(dtype).reshape(shape)
        self._fill(array, name, first * math.prod(row) * dtype.itemsize)
        return array

    def _dtype(self, name: str) -> np.dtype[Any]:
        info = self.info(name)
        if info.dtype not in DTYPES:
            known = ", ".join(DTYPES)
            raise CheckpointError(f"{info.file}: {name} is {info.dtype}, not one of {known}")
        return DTYPES[info.dtype]

    def _fill(self, array: NDArray[Any], name: str, skip: int) -> None:
        """With what follows the first `skip` bytes of a tensor."""
        info = self.info(name)
        if end := fill(array, self._files[info.file], info.offset + skip):
            raise CheckpointError(f"{info.file} ends at byte {end}: it was cut while open")

    def close(self) -> None:
        """Nothing can be read afterwards. Arrays that were read stay valid."""
        for file in self._files.values():
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def resolve(
    path_or_id: str | Path, *, revision: str | None = None, cache_dir: str | Path | None = None
) -> Path:
    """A folder is itself; `owner/name` is fetched from the Hugging Face Hub, or its cache: in
    `cache_dir`, by default where the hub's own tools keep it."""
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    if path.suffix == ".gguf":
        raise CheckpointError(
            f"{path} is a GGUF file: turn it into a model folder with import-gguf"
        )
    if path.exists():
        raise CheckpointError(f"{path} is a file; give the folder of the model")
    if not isinstance(path_or_id, str) or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", path_or_id):
        raise CheckpointError(f"there is no folder {path} (a hub id would be owner/name)")
    try:
        return _download(path_or_id, revision, cache_dir)
    except CheckpointError:
        raise
    except Exception as error:  # what the hub's client raises is not one family
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{path_or_id} is no folder here, and the Hugging Face Hub did not send it: {reason} "
            f'(offline? give the folder that "hf download {path_or_id}" makes on a machine online)'
        ) from error


def _download(repository: str, revision: str | None, cache_dir: str | Path | None) -> Path:
    """The files that a model needs and no others: first the small ones, then what they name."""
    from huggingface_hub import snapshot_download

    fetch = partial(snapshot_download, repository, cache_dir=cache_dir)
    folder = Path(fetch(revision=revision, allow_patterns=list(_SMALL_FILES)))
    index = folder / INDEX
    files = sorted(set(_weight_map(index).values())) if index.is_file() else [SINGLE]
    # The folder is named after the commit, which ties the weights to the small files.
    return Path(fetch(revision=folder.name, allow_patterns=files))


def _find_tensors(folder: Path) -> dict[str, TensorInfo]:
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)[0]
    if (folder / INDEX).is_file():
        return _read_shards(folder / INDEX)
    other = [name for name in _OTHER if (folder / name).exists()]
    advice = (
        f"; {other[0]} is not read: load the model with transformers and write it again with "
        "save_pretrained, which makes safetensors"
        if other
        else ": it holds no weights"
    )
    raise CheckpointError(f"{folder} has neither {SINGLE} nor {INDEX}{advice}")


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> shard name, every shard a plain file name beside the index."""
    try:
        shards = read_json(index).get("weight_map")
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{index} has no weight_map with the names of tensors and shards")
    for shard in shards.values():
        # A path or a pattern would reach files that are no part of this model.
        if not isinstance(shard, str) or not re.fullmatch(r"\w[\w.-]*\.safetensors", shard):
            raise CheckpointError(f"{index} names {shard!r}, which is no plain .safetensors name")
    return shards


def _read_shards(index: Path) -> dict[str, TensorInfo]:
    home = _weight_map(index)
    shards = sorted(set(home.values()))
    if missing := [name for name in shards if not (index.parent / name).is_file()]:
        raise CheckpointError(
            f"{index.parent} lacks {some(missing)} of {len(shards)} shards; fetch it again"
        )
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        held = read_header(index.parent / shard)[0]
        expected = {name for name, where in home.items() if where == shard}
        if absent := sorted(expected - held.keys()):
            raise CheckpointError(f"{shard} does not hold {some(absent)}, which {INDEX} puts there")
        for name in sorted(held.keys() - expected):
            where = f"puts in {home[name]}" if name in home else "does not name"
            raise CheckpointError(f"{index.parent / shard} holds {name}, which {INDEX} {where}")
        tensors |= held
    return tensors


def read_header(file: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors and the metadata of a safetensors file. CheckpointError where it is not whole."""
    try:
        with safe_open(file, framework="numpy"):
            pass  # it checks that the tensors cover the file exactly, without overlap or hole
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged or not safetensors: {error}") from error
    metadata = header.pop("__metadata__", None) or {}
    tensors = {
        name: TensorInfo(
            dtype=_NAMES.get(entry["dtype"], entry["dtype"]),
            shape=tuple(entry["shape"]),
            file=file,
            offset=8 + length + entry["data_offsets"][0],
        )
        for name, entry in header.items()
    }
    return tensors, metadata


def fill(array: NDArray[Any], file: FileIO, start: int) -> int:
    """Fill a contiguous array with the bytes of a file from `start` on.

    0, or where the file ends if that is too early. Threads may read one file at the same time.
    """
    data, done = array.reshape(-1).view(np.uint8).data, 0
    while done < len(data):  # a system call reads 2 GiB at most
        count = os.preadv(file.fileno(), [data[done:]], start + done)
        if not count:
            return start + done
        done += count
    return 0


def some(names: list[str]) -> str:
    """A list for an error message: the first eight, and how many more there are."""
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
