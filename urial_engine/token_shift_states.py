"""Hidden states that wait for the other model, in memory or in a file between the two.

They are held as the head reads them: in bfloat16 where it rounds them to that at once.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .jsonl import write_atomically
from .outputs import F32

NARROW: Mapping[str, Any] = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
States: TypeAlias = Mapping[str, NDArray[Any]]  # by the name of a prompt: [n, C], narrow or not


def narrow(states: F32, dtype: str) -> NDArray[Any]:
    """`dtype`: to which the head rounds them."""
    return states.astype(NARROW[dtype]) if dtype in NARROW else states


def wide(states: NDArray[Any]) -> F32:
    """As a head takes them."""
    return states if states.dtype.itemsize >= 4 else states.astype(np.float32)


def write_states(path: Path, keys: Sequence[object], states: States) -> None:
    """Of the answers that `keys` name."""
    about = json.dumps([keys, [[name, a.dtype.name] for name, a in states.items()]])
    file = io.BytesIO()
    kept = [a.view(np.uint16) if a.dtype.itemsize == 2 else a for a in states.values()]
    np.savez(file, np.frombuffer(about.encode(), np.uint8), *kept)
    write_atomically(path, file.getvalue())


def read_states(path: Path, keys: Sequence[object]) -> States | None:
    """None where the file is not there, is not of these answers, or is damaged."""
    try:
        with np.load(path) as file:
            about, *kept = (file[name] for name in file.files)
        found, names = json.loads(about.tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if found != json.loads(json.dumps(keys)):
        return None
    pairs = zip(names, kept, strict=True)
    return {name: a.view(NARROW.get(dtype, dtype)) for (name, dtype), a in pairs}
