"""What the compilers make of every GPU kernel, on a machine without a GPU: `make gpu-report`.

Compiles the kernels for the architectures that we name, reads the machine code, and fails where it
is not what a fast kernel has: local memory, no tensor cores, narrow loads, or fewer resident warps
than `gpu_kernels.json` says. `--update` writes that table and docs/gpu-kernels.md again.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import triton

from .gpu_report_code import LIMITS
from .gpu_report_launches import ARCHITECTURES, SHAPES
from .gpu_report_rows import ROOT, Row, cuda_rows, triton_rows, worst
from .nvcc import nvcc

TABLE = ROOT / "tools" / "gpu_kernels.json"
PAGE = ROOT / "docs" / "gpu-kernels.md"
WIDE_SHARE = 0.4  # of the bytes that a streaming kernel's loads take
Stated = dict[tuple[str, str, int], int]  # warps that must be resident, by Row.key

INTRODUCTION = """# What the compilers make of the GPU kernels

Written by `python -m tools.gpu_report --update`; `make gpu-report` and the tests compile everything
again and compare. No GPU is needed, and nothing here is a time.

{versions}

Each Triton kernel is compiled as its wrapper launches it. The shapes: {shapes}.
All of them in bf16; in fp16 all kernels of the first, and attention and rotation at every head
size. fp32 is left out: it is for checks, without tensor cores and with a small tile, and not held
to any of this. A line stands for all specialisations of a variant (an argument that is 1, a
multiple of 16, or neither) and gives the worst.

- **registers** of a thread (255 at most), **shared** memory of a block in KiB, with the one that
  the system keeps.
- **local**: loads from and stores to local memory, which is what spilled registers become; and the
  bytes of the stack. Both must be 0.
- **tensor cores**: their instructions in the code. `HMMA` reads registers; `HGMMA` (9.0) and
  `UTCHMMA` (10.0) read shared memory and take 64 rows at least, so a tile of 16 queries has `HMMA`
  there too.
- **wide loads**: loads of 16 bytes a thread from global memory, those of them that copy to shared
  memory without passing through registers, and their share of the bytes of all loads in the code.
  Streaming kernels must have {wide_share:.0%} at least; the end of a row may be loaded one by one.
  A dash: the sizes do not allow it (100 values of 16 bits are no multiple of 16 bytes), or the
  kernel does not live from it.
- **occupancy**: resident warps of the {warps} that a multiprocessor can have, as registers, shared
  and tensor memory and the limits of the CUDA C++ Programming Guide ("Technical Specifications per
  Compute Capability") allow.

Counts are of instructions in the code, not of instructions executed.
"""


def violations(rows: Sequence[Row], stated: Stated) -> Iterator[str]:
    """Everything that is wrong, a sentence each."""
    for row in rows:
        yield from (f"{_name(row.key)}: {problem}" for problem in _problems(row))
        if row.key not in stated:
            yield f"{_name(row.key)}: not in {TABLE.name}; run --update"
        elif row.resident < stated[row.key]:
            yield (
                f"{_name(row.key)}: {row.resident} warps are resident, {stated[row.key]} stated "
                f"({row.registers} registers, {row.shared:,} bytes of shared memory)"
            )
    for key in sorted(stated.keys() - {row.key for row in rows}):
        yield f"{_name(key)}: in {TABLE.name}, but nothing launches it; run --update"


def _problems(row: Row) -> Iterator[str]:
    if not row.resident:
        yield f"{row.shared:,} bytes of shared memory are more than a block can have"
    if row.spills or row.stack:
        yield f"{row.spills} loads and stores of local memory, {row.stack} bytes of stack"
    if row.expected and not row.tensor.get(row.expected):
        found = ", ".join(f"{n} {name}" for name, n in row.tensor.items()) or "none"
        yield f"no {row.expected} among its tensor-core instructions ({found})"
    if row.streams and not row.wide:
        yield "no load of 16 bytes"
    elif row.streams and row.wide_share < WIDE_SHARE:
        yield f"16-byte loads are {row.wide_share:.0%} of the bytes, {WIDE_SHARE:.0%} wanted"


def _name(key: tuple[str, str, int]) -> str:
    kernel, variant, architecture = key
    return f"{kernel} {variant} on sm_{architecture}".replace("  ", " ")


def page(rows: Sequence[Row], compiled_by: str) -> str:
    """The whole Markdown page: kernel by architecture, then every variant."""
    parts = [
        INTRODUCTION.format(
            versions=compiled_by,
            wide_share=WIDE_SHARE,
            shapes=", ".join(shape.name for shape in SHAPES),
            warps=LIMITS[ARCHITECTURES[0]].warps,
        ),
        "## Each kernel, the worst of its variants\n",
        _table(worst(row._replace(variant="") for row in rows), "kernel", lambda r: r.kernel),
    ]
    for kernel, group in groupby(rows, key=lambda row: row.kernel):
        parts += [f"\n## {kernel}\n", _table(group, "variant", lambda r: r.variant or "-")]
    return "\n".join(parts) + "\n"


def _table(rows: Iterable[Row], first: str, name: Callable[[Row], str]) -> str:
    columns = (first, "sm", "registers", "shared", "local", "tensor cores", "wide loads")
    lines = [" | ".join(("", *columns, "occupancy", "")).strip(), f"|---|{'--:|' * len(columns)}"]
    for row in rows:
        limit = LIMITS[row.architecture].warps
        tensor = ", ".join(f"{n} {family}" for family, n in sorted(row.tensor.items())) or "-"
        wide = f"{row.wide}, {row.asynchronous} async, {row.wide_share:.0%}"
        cells = (
            name(row),
            row.architecture,
            row.registers,
            f"{row.shared / 1024:.1f}",
            f"{row.spills} + {row.stack} B",
            tensor,
            wide if row.streams else "-",
            f"{row.resident} ({row.resident / limit:.0%})",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def read_table(path: Path = TABLE) -> Stated:
    content = json.loads(path.read_text(encoding="utf-8"))
    return {
        (kernel, variant, int(architecture.removeprefix("sm_"))): warps
        for kernel, variants in content.items()
        for variant, architectures in variants.items()
        for architecture, warps in architectures.items()
    }


def write_table(rows: Sequence[Row], path: Path = TABLE) -> None:
    """Resident warps by kernel, variant and architecture."""
    content: dict[str, dict[str, dict[str, int]]] = {}
    for row in rows:
        variants = content.setdefault(row.kernel, {})
        variants.setdefault(row.variant, {})[f"sm_{row.architecture}"] = row.resident
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def report(update: bool) -> list[str]:
    """Compile everything; write what is wanted; every violation, a sentence each."""
    compiler = nvcc()
    rows = [*triton_rows(), *cuda_rows(compiler)]
    text = page(rows, versions(compiler))
    if update:
        write_table(rows)
        PAGE.write_text(text, encoding="utf-8")
    found = list(violations(rows, read_table()))
    written = PAGE.read_text(encoding="utf-8")
    # Another compiler may use other registers, which is no fault as long as the gates hold.
    if versions(compiler) in written and written != text:
        found.append(
            f"{PAGE.relative_to(ROOT)} is not what the same compilers say now; run --update"
        )
    print(f"{len(rows)} variants on {', '.join(f'sm_{a}' for a in ARCHITECTURES)}")
    return found


def versions(compiler: Path) -> str:
    """The line of the page that says what compiled all this."""
    about = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True)
    version = re.search(r"V([\d.]+)", about.stdout)
    return f"Compiled by Triton {triton.__version__} and nvcc {version and version.group(1)}."


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_report", description=__doc__)
    parser.add_argument("--update", action="store_true", help="write the table and the page")
    update = parser.parse_args().update
    if triton.knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET is set, so there is nothing to compile; unset it")
    try:
        found = report(update)
    except subprocess.CalledProcessError as error:
        found = [f"{' '.join(map(str, error.cmd))}: {error.stderr}"]
    print("\n".join(found) if found else "every gate holds")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
