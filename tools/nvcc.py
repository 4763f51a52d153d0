"""Where NVIDIA's compiler is, and how the CUDA kernels are compiled; nothing goes in."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

OPTIONS = ("-cubin", "-O3", "-std=c++17", "-fmad=false", "-Icsrc")  # as in CMakeLists.txt


def nvcc() -> Path:
    """From CUDA_HOME, else from PATH, else from the package that the tests install.

    FileNotFoundError says how to get one.
    """
    packages = find_spec("nvidia")  # a folder that several packages share
    places = [f"{home}/bin" for home in [os.environ.get("CUDA_HOME")] if home]
    places += os.environ.get("PATH", "").split(os.pathsep)
    for folder in (packages.submodule_search_locations if packages else None) or ():
        places += [str(path) for path in sorted(Path(folder).glob("cu*/bin"), reverse=True)]
    found = shutil.which("nvcc", path=os.pathsep.join(places))
    if found is None:
        raise FileNotFoundError(
            "there is no nvcc: pip install nvidia-cuda-nvcc nvidia-cuda-runtime"
        )
    return Path(found)
