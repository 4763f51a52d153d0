"""Prefixes on disk: a prefix's cache blocks go in; a file that restores them comes out.

A file is safetensors: `ids` [P] and `blocks` [blocks, bytes] (the last block may be partly filled),
with a fingerprint of all that the bytes depend on, and a checksum. Its name is made of the
fingerprint, so files of different models, dtypes and machines lie beside each other. A file comes
into being whole or not at all; whoever comes second writes the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from .backends.base import Backend
from .checkpoint import TensorInfo, fill, read_header
from .errors import CheckpointError, PrefixStoreError

if TYPE_CHECKING:
    from .config import ModelConfig

# Of the file, of what backends put in a block, and of the arithmetic that fills it: raised when any
# of them changes, so that what an older version stored is computed again.
LAYOUT = 1
SUFFIX = ".prefix.safetensors"
ABANDONED = 3600.0  # seconds after which nobody is still writing a temporary file
# What a ModelConfig holds that the keys and values of a given text do not depend on.
_OUTSIDE = ("eos_token_ids", "ignored_keys", "tie_word_embeddings")
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """All that the bytes of a stored prefix depend on."""

    weights: str
    config: str
    backend: str
    build: str
    variant: str
    dtype: str
    block_size: str
    block_bytes: str
    tokens: str
    layout: str = str(LAYOUT)

    @classmethod
    def of(cls, backend: Backend, weights: str, ids: list[int]) -> Fingerprint:
        """`weights` is the fingerprint of the weights that the backend holds."""
        return cls(
            weights=weights,
            config=_config_hash(backend.config),
            backend=backend.name,
            build=backend.build,
            variant=backend.variant,
            dtype=backend.dtype,
            block_size=str(backend.block_size),
            block_bytes=str(backend.block_bytes),
            tokens=xxhash.xxh3_128_hexdigest(np.array(ids, "<i4").tobytes()),
        )

    @property
    def file_name(self) -> str:
        return _digest(self) + SUFFIX

    def differences(self, stored: Fingerprint) -> list[str]:
        """In words, each field in which a stored one differs from this."""
        pairs = zip(dataclasses.asdict(stored).items(), dataclasses.astuple(self), strict=True)
        return [f"{name} (stored {old}, now {now})" for (name, old), now in pairs if old != now]


@dataclass(frozen=True, slots=True)
class StoredPrefix:
    """A file whose header could be read. Its data has been looked at only after `verify`."""

    path: Path
    fingerprint: Fingerprint
    checksum: str
    tokens: int
    blocks: int
    bytes: int
    file: FileIO  # it can be read even when another process replaces it, until nobody holds this
    places: Mapping[str, TensorInfo]

    @classmethod
    def open(cls, path: Path) -> StoredPrefix:
        """PrefixStoreError where it is no such file, or shorter than its header says."""
        try:
            file = FileIO(path)
            size = path.stat().st_size
            places, metadata = read_header(path)
            ids, blocks = (places[name].shape[0] for name in ("ids", "blocks"))
            names = {field.name for field in dataclasses.fields(Fingerprint)}
            fingerprint = Fingerprint(**{k: v for k, v in metadata.items() if k in names})
            return cls(path, fingerprint, metadata["checksum"], ids, blocks, size, file, places)
        except (CheckpointError, OSError, KeyError, TypeError, IndexError) as error:
            raise PrefixStoreError(f"{path}: not a whole prefix file ({error})") from error

    def read_blocks(self) -> Iterator[Bytes]:
        """[block_bytes] each, valid until the next one is read."""
        block = np.empty(self.places["blocks"].shape[1:], np.uint8)
        for index in range(self.blocks):
            self._read(block, "blocks", index * block.nbytes)
            yield block

    def verify(self) -> None:
        """PrefixStoreError where the data is not what was written."""
        ids = np.empty(self.tokens, np.int32)
        self._read(ids, "ids", 0)
        if _checksum(self.fingerprint, ids, self.read_blocks()) != self.checksum:
            raise PrefixStoreError(f"{self.path}: damaged, its checksum does not fit its data")

    def _read(self, array: NDArray[Any], name: str, skip: int) -> None:
        if end := fill(array, self.file, self.places[name].offset + skip):
            raise PrefixStoreError(f"{self.path}: damaged, it ends at byte {end}")


class Missing(NamedTuple):
    """Why a prefix cannot be restored; `damaged` where a file of its name cannot be used."""

    why: str
    damaged: bool


class PrefixStore:
    """A folder of stored prefixes. It is made when the first one is saved."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def find(self, fingerprint: Fingerprint) -> StoredPrefix | Missing:
        """The verified file of this fingerprint, or why there is none."""
        path = self.folder / fingerprint.file_name
        if not path.exists():
            return Missing(self._nearest(fingerprint), damaged=False)
        try:
            stored = StoredPrefix.open(path)
            stored.verify()
        except PrefixStoreError as error:
            return Missing(f"{error}; it will be replaced", damaged=True)
        if differences := fingerprint.differences(stored.fingerprint):
            why = f"{path} differs in {', '.join(differences)}; it will be replaced"
            return Missing(why, damaged=True)
        return stored

    def require_writable(self) -> None:
        """PrefixStoreError, before any work is done, where `save` could not write."""
        probe = self._temporary(f"probe{SUFFIX}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise PrefixStoreError(
                f"prefix_dir={str(self.folder)!r}: cannot be written ({error}); choose another "
                "folder or leave prefix_dir out"
            ) from error

    def save(self, fingerprint: Fingerprint, ids: list[int], blocks: Iterable[Bytes]) -> Path:
        """Write [block_bytes] of each block under the fingerprint's name, in place of any other."""
        ids_array, data = np.array(ids, np.int32), np.stack(list(blocks))  # [P], [blocks, bytes]
        checksum = _checksum(fingerprint, ids_array, data)
        metadata = {**dataclasses.asdict(fingerprint), "checksum": checksum}
        path = self.folder / fingerprint.file_name
        temporary = self._temporary(path.name)
        try:
            temporary.touch()
            mode = temporary.stat().st_mode  # what others may do; the library leaves it to us alone
            save_file({"ids": ids_array, "blocks": data}, temporary, metadata)
            temporary.chmod(mode)
            _flush(temporary)
            temporary.replace(path)
            with suppress(OSError):  # not every file system flushes folders
                _flush(self.folder)
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            raise PrefixStoreError(f"{path}: cannot be written ({error})") from error
        return path

    def paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"*{SUFFIX}"))

    def clear(self) -> int:
        """Remove all stored prefixes, and what an interrupted `save` left; how many there were."""
        paths = self.paths()
        left = [p for p in self.folder.glob(f".*{SUFFIX}.*") if _age(p) > ABANDONED]
        for path in [*paths, *left]:
            path.unlink(missing_ok=True)
        return len(paths)

    def _temporary(self, name: str) -> Path:
        return self.folder / f".{name}.{os.urandom(8).hex()}.tmp"

    def _nearest(self, fingerprint: Fingerprint) -> str:
        """Why no file fits: what sets the most similar one apart."""
        found = []
        for path in self.paths():
            try:
                differences = fingerprint.differences(StoredPrefix.open(path).fingerprint)
            except PrefixStoreError:
                continue  # damaged, and no one's: `verify` of the command line names it
            found.append((len(differences), f"{path} differs in {', '.join(differences)}"))
        return min(found)[1] if found else f"{self.folder} holds no stored prefix"


def _checksum(fingerprint: Fingerprint, ids: NDArray[np.int32], blocks: Iterable[Bytes]) -> str:
    digest = xxhash.xxh3_128(_digest(fingerprint).encode())
    digest.update(np.ascontiguousarray(ids, "<i4").tobytes())
    for block in blocks:
        digest.update(block.data)
    return digest.hexdigest()


def _config_hash(config: ModelConfig) -> str:
    fields: dict[str, Any] = dataclasses.asdict(config)
    inside = {name: value for name, value in fields.items() if name not in _OUTSIDE}
    return xxhash.xxh3_128_hexdigest(json.dumps(inside, sort_keys=True).encode())


def _digest(fingerprint: Fingerprint) -> str:
    text = json.dumps(dataclasses.asdict(fingerprint), sort_keys=True)
    return xxhash.xxh3_128_hexdigest(text.encode())


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _age(path: Path) -> float:
    """Seconds since it was last written; 0 where it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
