"""One line of the compile report: a kernel's compiled code goes in; what the gates look at comes
out. Triton's kernels are compiled in two processes, those of csrc/cuda by nvcc.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget

from .gpu_report_code import WARP, Code, block_shared, launch_bounds, read, resident_warps
from .gpu_report_launches import ARCHITECTURES, Case, Launch, cases, launches
from .nvcc import OPTIONS

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "csrc"
# Of csrc/cuda, those that read a row of logits once. (`sample_kernel` reads it several times, and
# has many narrow loads on their way at once.)
STREAMING = ("tile_kernel", "top_k_kernel")
PROCESSES = 2
MOST_THREADS = 1024  # of a block; what the compiler assumes of a kernel without launch bounds


class Row(NamedTuple):
    """A kernel's variant on an architecture; the worst of its specialisations."""

    kernel: str
    variant: str
    architecture: int
    registers: int  # of a thread
    shared: int  # bytes of a block, with what the system keeps
    stack: int  # bytes of a thread
    spills: int  # loads from and stores to local memory
    tensor: dict[str, int]  # instructions of the tensor cores, by family
    expected: str  # the family that has to be among them; "" for kernels that multiply no matrices
    wide: int  # 16-byte loads
    asynchronous: int  # those of them that do not pass through registers
    wide_share: float  # of the bytes that the loads in the code take
    streams: bool  # its loads have to be wide
    resident: int  # warps on a multiprocessor

    @property
    def key(self) -> tuple[str, str, int]:
        return self.kernel, self.variant, self.architecture


class Kind(NamedTuple):
    """What the report knows of a Triton kernel beforehand."""

    shown: dict[str, str]  # constants that tell variants apart, and what the report calls them
    matrix: bool = False
    # Whether its rows begin at multiples of 16 bytes, and a warp's share of one is that long.
    streams: Callable[[dict[str, Any]], bool] = lambda constants: True


KINDS = {
    "attention_kernel": Kind(
        {"D": "D", "G": "G", "BLOCK_M": "queries", "WINDOWED": "windowed"},
        matrix=True,
        streams=lambda constants: constants["D"] % 8 == 0,
    ),
    "merge_kernel": Kind(
        {"D": "D", "WINDOWED": "windowed"},
        streams=lambda constants: constants["D"] % 4 == 0 and constants["BLOCK_D"] >= 4 * WARP,
    ),
    "rope_kernel": Kind({"HALF": "D/2"}, streams=lambda constants: constants["HALF"] % 8 == 0),
    "add_rmsnorm_kernel": Kind({"BLOCK": "columns", "HAS_DELTA": "added"}),
    "silu_mul_kernel": Kind({}),
    "matmul_kernel": Kind({"HAS_BIAS": "bias"}, matrix=True),
}


def triton_rows() -> list[Row]:
    """Everything that `cases` launch, each distinct kernel compiled once."""
    seen: set[str] = set()
    tasks: list[tuple[Case, int]] = []
    for case in cases():
        for index, launch in enumerate(launches(case)):
            key = f"{case.architecture} {launch.source.hash()} {launch.options}"
            if key not in seen:
                seen.add(key)
                tasks.append((case, index))
    return worst(_in_processes(_compile_task, tasks))


def _compile_task(task: tuple[Case, int]) -> Row:
    case, index = task
    return compile_launch(_launches(case)[index], case.architecture)


_launches = functools.lru_cache(maxsize=4)(launches)


def compile_launch(launch: Launch, architecture: int, kinds: dict[str, Kind] = KINDS) -> Row:
    """One Triton kernel. ValueError for one that the report does not know."""
    source = launch.source
    if source.name not in kinds:
        raise ValueError(f"{source.name}: the report does not know it; add it to KINDS")
    target = GPUTarget("cuda", architecture, WARP)
    compiled = triton.compile(source, target=target, options=launch.options)
    about, kind = compiled.metadata, kinds[source.name]
    code = read(compiled.asm["cubin"])[about.name]
    constants = {source.fn.arg_names[path[0]]: value for path, value in source.constants.items()}
    family = expected_family(architecture, constants.get("BLOCK_M", 0)) if kind.matrix else ""
    resident = resident_warps(
        code, about.num_warps, about.shared, architecture, getattr(about, "tmem_size", 0) or 0
    )
    return _row(
        (source.name, _variant(launch, kind, constants), architecture),
        code,
        dynamic=about.shared,
        expected=family,
        streams=kind.streams(constants),
        resident=resident,
    )


def expected_family(architecture: int, rows: int) -> str:
    """Which tensor-core instruction a tile of so many rows uses: those of 9.0 and 10.0 that read
    shared memory by themselves take 64 rows at least."""
    return {90: "HGMMA", 100: "UTCHMMA"}.get(architecture, "HMMA") if rows >= 64 else "HMMA"


def _variant(launch: Launch, kind: Kind, constants: dict[str, Any]) -> str:
    types = launch.source.signature
    dtype = next((t for t in ("bf16", "fp16") if f"*{t}" in types.values()), "fp32")
    words = [dtype]
    if launch.source.name == "matmul_kernel" and types["out"] != types["x"]:
        words.append(f"to {types['out'][1:]}")
    for name, word in kind.shown.items():
        value = constants[name]
        if value is not False:
            words.append(word if value is True else f"{word}={value}")
    return " ".join(words)


def _row(
    key: tuple[str, str, int],
    code: Code,
    *,
    dynamic: int,
    expected: str,
    streams: bool,
    resident: int,
) -> Row:
    return Row(
        *key,
        registers=code.registers,
        shared=block_shared(code, dynamic, key[2]),
        stack=code.stack,
        spills=code.spills,
        tensor=code.tensor,
        expected=expected,
        wide=code.wide,
        asynchronous=code.asynchronous,
        wide_share=code.wide_share,
        streams=streams,
        resident=resident,
    )


def worst(rows: Iterable[Row]) -> list[Row]:
    """One row for each key, sorted; its numbers are the worst of all that have that key."""
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.key, []).append(row)
    return [_worst(group) for _, group in sorted(groups.items())]


def _worst(group: list[Row]) -> Row:
    most = ("registers", "shared", "stack", "spills")
    numbers: dict[str, Any] = {name: max(getattr(r, name) for r in group) for name in most}
    numbers["resident"] = min(r.resident for r in group)
    streaming = [r for r in group if r.streams] or group
    numbers["streams"] = group[0].streams or streaming is not group
    for name in ("wide", "asynchronous", "wide_share"):
        numbers[name] = min(getattr(r, name) for r in streaming)
    numbers["tensor"] = {}
    for family in {name for r in group for name in r.tensor}:
        meant = [r for r in group if r.expected == family] or group
        if least := min(r.tensor.get(family, 0) for r in meant):
            numbers["tensor"][family] = least
    return group[0]._replace(**numbers)


def _in_processes(work: Callable[[Any], Any], tasks: Sequence[Any]) -> list[Any]:
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        return list(pool.map(work, tasks, chunksize=4))


def cuda_rows(compiler: Path, sources: Sequence[Path] = ()) -> list[Row]:
    """The kernels of these files, or of csrc/cuda. CalledProcessError where one cannot be
    compiled."""
    files = sources or sorted((SOURCES / "cuda").glob("*.cu"))
    tasks = [(compiler, file, architecture) for file in files for architecture in ARCHITECTURES]
    return worst(row for rows in _in_processes(_compile_file, tasks) for row in rows)


def _compile_file(task: tuple[Path, Path, int]) -> list[Row]:
    compiler, file, architecture = task
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "out.cubin"
        command = [
            str(compiler),
            *OPTIONS,
            f"-arch=sm_{architecture}",
            "-o",
            str(cubin),
            str(file),
        ]
        subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
        binary = cubin.read_bytes()
    rows, bounds = [], launch_bounds(binary)
    for symbol, code in read(binary).items():
        kernel, variant = _plain(symbol)
        threads = bounds.get(symbol, MOST_THREADS)
        rows.append(
            _row(
                (kernel, variant, architecture),
                code,
                dynamic=0,
                expected="",
                streams=kernel in STREAMING,
                resident=resident_warps(code, -(-threads // WARP), 0, architecture),
            )
        )
    return rows


def _plain(symbol: str) -> tuple[str, str]:
    """The name and the template's argument in a mangled one."""
    match = re.search(r"([a-z_]+_kernel)(?:ILb([01])E)?", symbol)
    if match is None:
        raise ValueError(f"{symbol}: the name of a kernel ends in _kernel")
    name, argument = match.groups()
    return name, {"0": "<false>", "1": "<true>"}.get(argument, "")
