"""A GGUF file goes in; its metadata by key and its tensors by name come out, checked for type."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import CheckpointError

T = TypeVar("T")

_SLICE = 4096  # rows; a whole embedding in float32 could be gigabytes


class GgufFile:
    """One open file. Raises `CheckpointError` where it is damaged or lacks what is asked for."""

    def __init__(self, path: Path) -> None:
        try:
            import gguf  # only an import needs it
        except ImportError as error:
            raise CheckpointError(
                "reading a GGUF file needs the library gguf: pip install 'urial-engine[gguf]'"
            ) from error
        if not path.is_file():
            raise CheckpointError(f"there is no file {path}")
        try:
            reader = gguf.GGUFReader(path)
        except Exception as error:  # a cut or damaged file breaks the reader in many ways
            raise CheckpointError(f"{path} is damaged or not GGUF: {error}") from error
        self.path = path
        self._fields = reader.fields
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._dequantize = gguf.dequantize

    def names(self, prefix: str) -> list[str]:
        """The keys of the metadata that begin so."""
        return [key for key in self._fields if key.startswith(prefix)]

    def value(self, key: str) -> object:
        """The value of a key that is there, of whatever type."""
        return self._fields[key].contents()

    def find(self, key: str, kind: type[T]) -> T | None:
        """The value of a key, or None where it is absent."""
        if key not in self._fields:
            return None
        value = self.value(key)
        if type(value) is not kind:
            shown = repr(value)[:80]
            raise CheckpointError(f"{self.path}: {key} = {shown} must be a single {kind.__name__}")
        return value

    def get(self, key: str, kind: type[T]) -> T:
        """The value of a key that must be there."""
        value = self.find(key, kind)
        if value is None:
            raise CheckpointError(f"{self.path} lacks {key}")
        return value

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape, rows first (the file counts the other way round)."""
        return {n: tuple(int(d) for d in reversed(t.shape)) for n, t in self._tensors.items()}

    def tensor(self, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        """A tensor, dequantised and rounded once to `dtype`."""
        stored, shape = self._tensors[name], self.shapes()[name]
        kind = stored.tensor_type
        array = np.empty(shape, dtype)
        try:
            for i in range(0, shape[0], _SLICE):
                part = self._dequantize(stored.data[i : i + _SLICE], kind)
                with np.errstate(over="ignore"):  # judged below
                    array[i : i + _SLICE] = part.reshape(array[i : i + _SLICE].shape)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{self.path}: {name} is {kind.name}, which gguf cannot dequantise"
            ) from error
        if not np.isfinite(array).all():
            raise CheckpointError(f"{self.path}: {name} has values that {dtype.name} cannot hold")
        return array
