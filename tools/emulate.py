"""Builds the CUDA kernels for this CPU, as tests/emulation/cuda_host.h gives them a meaning, and
runs their tests under the address and the undefined-behaviour sanitizer: `python tools/emulate.py`.

`load()` gives the module `_cuda` as Python sees it on a GPU, with addresses of arrays in place of
addresses in the device's memory. What is built lies in build/emulation under a hash of all that
went into it, so it is built once.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "emulation"
HARNESS = ROOT / "tests" / "emulation"
SOURCES = ("csrc/bindings_cuda.cpp", "csrc/cuda/rank.cu", "csrc/cuda/sample.cu")
COMPILER = os.environ.get("CXX", "c++")
INCLUDES = (ROOT / "csrc", HARNESS, pybind11.get_include(), sysconfig.get_path("include"))
# As on the device, a * b + c is not contracted. The fortified longjmp would take a jump to another
# fiber for a damaged stack.
FLAGS = [
    *("-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-U_FORTIFY_SOURCE"),
    *("-Wall", "-Wextra", "-Wno-unknown-pragmas", "-DURIAL_CUDA_HOST"),
    '-DURIAL_CUDA_ARCHITECTURES="emulation"',
]
PLAIN = ["-O2"]
# Shared memory is a section of its own, and has redzones only if that is named.
SANITIZE = [
    *("-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"),
    *("-fno-sanitize-recover=all", "-fsanitize-sections=urial_shared"),
]
OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
LOADED: dict[str, ModuleType] = {}
ORDERS = (0, 1, 2, 3)  # of the threads: rising, falling, at random
TESTS = ("tests/kernels/test_rank_cuda.py", "tests/kernels/test_sample_cuda.py")
START = """
import sys
sys.path.insert(0, {root!r})
from tools import emulate
emulate.load(sanitize=True)
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


@cache
def environment() -> bytes:
    """Everything but the sources that a build depends on."""
    version = subprocess.check_output([COMPILER, "--version"])
    headers = sorted([*(ROOT / "csrc").rglob("*.h"), *HARNESS.glob("*.h")])
    return version + b"".join(path.read_bytes() for path in headers)


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def build(
    name: str,
    sources: Sequence[str] = SOURCES,
    flags: Sequence[str] = PLAIN,
    replaced: Mapping[str, str] | None = None,
) -> Path:
    """The shared library of this name; `replaced` has other text for some of the sources."""
    texts = {s: (replaced or {}).get(s) or (ROOT / s).read_text(encoding="utf-8") for s in sources}
    command = [COMPILER, *FLAGS, *flags, *(f"-I{folder}" for folder in INCLUDES)]
    same = [environment(), *(part.encode() for part in command)]
    keys = {s: digest(*same, s.encode(), text.encode()) for s, text in texts.items()}
    library = BUILD / digest(*(key.encode() for key in keys.values())) / f"{name}.so"
    if library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    running = []
    for source, key in keys.items():
        if not (BUILD / f"{key}.o").exists():
            copy = BUILD / f"{key}.cpp"
            copy.write_text(f'#line 1 "{ROOT / source}"\n{texts[source]}', encoding="utf-8")
            compile_it = [*command, "-c", str(copy), "-o", str(BUILD / f"{key}.new")]
            running.append((source, key, subprocess.Popen(compile_it)))
    for source, key, process in running:
        if process.wait() != 0:
            raise RuntimeError(f"{source} does not compile for the emulation")
        (BUILD / f"{key}.new").replace(BUILD / f"{key}.o")
    objects = [str(BUILD / f"{key}.o") for key in keys.values()]
    new = library.with_suffix(".new")
    subprocess.run([*command, "-shared", *objects, "-o", str(new)], check=True)
    return new.replace(library)


def load(*, sanitize: bool = False, replaced: Mapping[str, str] | None = None) -> ModuleType:
    """The module `_cuda` on this CPU; the sanitized one for all once it has been loaded."""
    if "_cuda" in LOADED and not replaced:
        return LOADED["_cuda"]
    path = build("_cuda", flags=SANITIZE if sanitize else PLAIN, replaced=replaced)
    # A name for each library: pybind11 makes one module a name.
    spec = importlib.util.spec_from_file_location(f"emulation_{path.parent.name}._cuda", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module if replaced else LOADED.setdefault("_cuda", module)


def order(module: ModuleType, seed: int) -> None:
    """In which order the threads of a block run from now on: see ORDERS."""
    ctypes.CDLL(str(module.__file__)).emulation_order(seed)


def runtime(name: str) -> str:
    """The compiler's own copy of a sanitizer's library: it must stand before all others."""
    found = subprocess.check_output([COMPILER, f"-print-file-name={name}"], text=True)
    return str(Path(found.strip()).resolve())


def sanitized(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python with these arguments, ready for what SANITIZE has built."""
    preload = " ".join(runtime(name) for name in ("libasan.so", "libstdc++.so"))
    env = {**os.environ, **OPTIONS, "LD_PRELOAD": preload}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, check=False, text=True, capture_output=True)


def main() -> int:
    build("_cuda", flags=SANITIZE)
    done = sanitized("-c", START.format(root=str(ROOT)), *(sys.argv[1:] or (*TESTS, "-q", "-x")))
    sys.stdout.write(done.stdout + done.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
