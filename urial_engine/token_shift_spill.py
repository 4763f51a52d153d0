"""Hidden states on a disk, between two models that are not in memory together.

They are kept as the head reads them: in bfloat16 where it rounds them to that at once.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .jsonl import write_atomically
from .outputs import F32

NARROW: Mapping[str, Any] = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def write_states(
    path: Path, keys: Sequence[object], states: Mapping[str, NDArray[Any]], dtype: str
) -> None:
    """`states`: [n, C] by the name of the prompt, of the answers that `keys` name."""
    about = json.dumps([dtype, list(states), list(keys)]).encode()
    file = io.BytesIO()
    narrow = NARROW.get(dtype)
    kept = [a.astype(narrow).view(np.uint16) if narrow else a for a in states.values()]
    np.savez(file, np.frombuffer(about, np.uint8), *kept)
    write_atomically(path, file.getvalue())


def read_states(path: Path, keys: Sequence[object]) -> dict[str, F32] | None:
    """None where the file is not there, is not of these answers, or is damaged."""
    try:
        with np.load(path) as file:
            about, *kept = (file[name] for name in file.files)
        dtype, names, found = json.loads(about.tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if found != json.loads(json.dumps(list(keys))):
        return None
    narrow = NARROW.get(dtype)
    wide = [a.view(narrow).astype(np.float32) if narrow else a for a in kept]
    return dict(zip(names, wide, strict=True))
