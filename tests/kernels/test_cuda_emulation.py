"""The emulation finds the faults that it is there to find, and nvcc takes what it has taken."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tools import emulate, nvcc

from .emulated import I32, thread_order
from .test_sample import plain
from .test_sample_cuda import choose

ROOT = Path(__file__).resolve().parents[2]
PLANTED = "tests/emulation/planted.cu"
SOUND, RACE, PAST_THE_END, PAST_SHARED, UNINITIALISED, *STUCK = range(9)
IN = np.arange(128, dtype=np.int32)
needs_sanitizers = pytest.mark.skipif(
    emulate.runtime("libasan.so") == str(Path("libasan.so").resolve()),
    reason="needs the address sanitizer's library",
)


@pytest.fixture(scope="module")
def planted() -> ctypes.CDLL:
    library = ctypes.CDLL(str(emulate.build("planted", [PLANTED])))
    library.emulation_error.restype = ctypes.c_char_p
    return library


def run(planted: ctypes.CDLL, which: int, order: int) -> tuple[int, I32]:
    out = np.zeros(128, np.int32)
    planted.emulation_order(order)
    arrays = (ctypes.c_void_p(a.ctypes.data) for a in (IN, out))
    return planted.planted(which, *arrays), out


def different(planted: ctypes.CDLL, which: int) -> int:
    """How many results there are, over all orders of the threads."""
    found = [run(planted, which, order) for order in emulate.ORDERS]
    assert all(error == 0 for error, _ in found)
    return len({out.tobytes() for _, out in found})


def test_a_sound_kernel_has_one_result(planted: ctypes.CDLL) -> None:
    assert different(planted, SOUND) == 1
    np.testing.assert_array_equal(run(planted, SOUND, 3)[1], IN[::-1])


@pytest.mark.parametrize("which", [RACE, UNINITIALISED])
def test_a_race_and_shared_memory_that_nobody_wrote_show(planted: ctypes.CDLL, which: int) -> None:
    assert different(planted, which) == len(emulate.ORDERS)


@pytest.mark.parametrize("order", emulate.ORDERS)
@pytest.mark.parametrize(
    ("which", "message"),
    [
        (STUCK[0], "__syncthreads is reached by 127 of 128 threads"),
        (STUCK[1], r"thread \d+ waits in a shuffle for lanes that do not come"),
        (STUCK[2], r"thread \d+ of block 0 takes part in .* that its mask leaves out"),
        (STUCK[3], r"lanes \d+ and \d+ meet in"),
    ],
)
def test_who_does_not_come_is_named(
    planted: ctypes.CDLL, which: int, message: str, order: int
) -> None:
    error, _ = run(planted, which, order)
    assert error != 0 and re.search(message, planted.emulation_error().decode())
    assert different(planted, SOUND) == 1  # nothing of it is left behind


@needs_sanitizers
@pytest.mark.parametrize("which", [PAST_THE_END, PAST_SHARED])
def test_an_index_past_the_end_is_found(which: int) -> None:
    library = emulate.build("planted", [PLANTED], emulate.SANITIZE)
    code = f"""
import ctypes
import numpy as np
a, b = (np.arange(128, dtype=np.int32) for _ in range(2))
planted = ctypes.CDLL({str(library)!r}).planted
call = lambda which: planted(which, *(ctypes.c_void_p(x.ctypes.data) for x in (a, b)))
assert call({SOUND}) == 0 and b[0] == 127
print("sound", flush=True)
call({which})
"""
    done = emulate.sanitized("-c", code)
    assert "sound" in done.stdout and done.returncode != 0
    assert re.search(r"buffer-overflow|runtime error: store to address", done.stderr), done.stderr


def test_a_barrier_taken_from_the_sampler_is_missed() -> None:
    """The last one: without it a row whose tokens are all banned gets its logits back while some
    threads still look for one to choose, in some orders."""
    source = "csrc/cuda/sample.cu"
    head, last, tail = (ROOT / source).read_text(encoding="utf-8").rpartition("__syncthreads();")
    assert last
    module = emulate.load(replaced={source: head + tail})
    z = np.zeros((2, 40), np.float32)
    rows = [plain(), plain(banned_ids=range(39, -1, -1))]
    assert choose(z, rows)[1].tolist() == [1, 0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emulate, "load", lambda: module)
        found = set()
        for order in range(8):
            with thread_order(order):
                found.add(tuple(choose(z, rows)[1].tolist()))
    assert found == {(1, 0), (1, 1)}


@needs_sanitizers
def test_the_kernels_under_sanitizers() -> None:
    """Their tests, a few batches of them; all of them run by `python tools/emulate.py`."""
    emulate.build("_cuda", flags=emulate.SANITIZE)
    code = emulate.START.format(root=str(ROOT))
    chosen = "batch0] or batch7] or order2 or pads or cuts or refused"
    done = emulate.sanitized("-c", code, *emulate.TESTS, "-q", "-x", "-k", chosen)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("source", ["rank", "sample"])
def test_registers_are_enough(source: str, architecture: str) -> None:
    """nvcc compiles what the emulation has run, and no kernel spills."""
    command = [str(nvcc.nvcc()), *nvcc.OPTIONS, f"-arch={architecture}", "-o", "/dev/null"]
    command += ["-Werror", "all-warnings", "-Xptxas", "-v"]
    done = subprocess.run(
        [*command, f"csrc/cuda/{source}.cu"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", done.stderr)
    assert spills and not any(map(int, spills))
