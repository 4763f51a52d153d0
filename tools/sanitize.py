"""Runs the native tests with the address and the undefined-behaviour sanitizer: `make sanitize`.

Builds the native module a second time, in build/sanitize, and imports it in place of the installed
one: python -S leaves out the hook of the editable install. Arguments go to pytest, in place of
tests/kernels.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "sanitize"
PACKAGE = BUILD / "site" / "urial_engine"
# A shift of a negative number, a misaligned access or an overflow ends the run, as a bad address
# does. Python itself and numpy never free everything, so leaks are not looked for.
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1"
OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
START = """
import sys
sys.path[:0] = [{site!r}, {root!r}]
sys.path.append({packages!r})
import pytest, urial_engine._native
assert urial_engine._native.__file__.startswith({site!r})
sys.exit(pytest.main(sys.argv[1:]))
"""


def build() -> None:
    pybind11 = subprocess.check_output([sys.executable, "-m", "pybind11", "--cmakedir"], text=True)
    configure = [
        "cmake",
        "-S",
        str(ROOT),
        "-B",
        str(BUILD),
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    configure += [f"-Dpybind11_DIR={pybind11.strip()}", f"-DCMAKE_CXX_FLAGS={SANITIZE}"]
    subprocess.run(configure, check=True)
    subprocess.run(["cmake", "--build", str(BUILD), "--parallel"], check=True)
    PACKAGE.mkdir(parents=True, exist_ok=True)
    for source in [*(ROOT / "urial_engine").iterdir(), ROOT / "kernels", *BUILD.glob("_native*")]:
        link = PACKAGE / source.name
        link.unlink(missing_ok=True)
        if source.name != "__pycache__":
            link.symlink_to(source)


def runtime(name: str) -> str:
    """The compiler's own copy of a sanitizer's library: it must stand before all others."""
    compiler = os.environ.get("CXX", "c++")
    found = subprocess.check_output([compiler, f"-print-file-name={name}"], text=True)
    return str(Path(found.strip()).resolve())


def main() -> int:
    build()
    preload = " ".join(runtime(name) for name in ("libasan.so", "libstdc++.so"))
    places = {"site": str(PACKAGE.parent), "root": str(ROOT)}
    code = START.format(packages=sysconfig.get_path("platlib"), **places)
    arguments = sys.argv[1:] or ["tests/kernels", "-q", "-x"]
    environment = {**os.environ, **OPTIONS, "LD_PRELOAD": preload}
    command = [sys.executable, "-S", "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
