"""What the machine code of a kernel says: a cubin goes in; registers, shared memory, spills,
instructions and occupancy come out.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import NamedTuple

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
WARP = 32


class Limits(NamedTuple):
    """Of a multiprocessor."""

    warps: int
    blocks: int
    registers: int
    shared: int  # bytes
    tensor_memory: int  # columns


# CUDA C++ Programming Guide, Compute Capabilities, "Technical Specifications per Compute
# Capability"; tensor memory from the PTX ISA, "Tensor Memory".
LIMITS = {
    80: Limits(64, 32, 65536, 164 << 10, 0),
    90: Limits(64, 32, 65536, 228 << 10, 0),
    100: Limits(64, 32, 65536, 228 << 10, 512),
}
# The same table's "Maximum amount of shared memory per thread block" is this much less: the system
# keeps it of every block.
RESERVED = 1 << 10
REGISTER_UNIT, SHARED_UNIT = 256, 128  # a warp's registers and a block's bytes come in these


class Code(NamedTuple):
    """One function of a cubin."""

    registers: int  # of a thread
    shared: int  # bytes that the code itself declares
    stack: int  # bytes of a thread
    counts: dict[str, int]  # of each instruction, with its modifiers

    def count(self, pattern: str) -> int:
        return sum(n for name, n in self.counts.items() if re.match(pattern, name))

    @property
    def spills(self) -> int:
        """Loads from and stores to a thread's own memory, which is the device's."""
        return self.count(r"LDL|STL")

    @property
    def asynchronous(self) -> int:
        """16-byte copies to shared memory that do not pass through registers, and TMA's."""
        return self.count(r"LDGSTS\.\S*\.128|UTMALDG")

    @property
    def wide(self) -> int:
        """Loads of 16 bytes a thread from the device's memory."""
        return self.asynchronous + self.count(r"LDG\.\S*128")

    @property
    def wide_share(self) -> float:
        """Of the bytes that all the loads in the code take, the share of the wide ones."""
        sizes = {"8": 1, "16": 2, "64": 8, "128": 16}
        every = 0
        for name, n in self.counts.items():
            if re.match(r"LDG(STS)?\.", name):
                width = re.search(r"\.[US]?(8|16|64|128)(?=\.|$)", name)
                every += n * (sizes[width.group(1)] if width else 4)
        tma = self.count("UTMALDG")
        return 16 * self.wide / (every + 16 * tma) if every + tma else 0.0

    @property
    def tensor(self) -> dict[str, int]:
        """Instructions of the tensor cores, by their family."""
        found: Counter[str] = Counter()
        for name, n in self.counts.items():
            if family := re.match(r"[HIQ]MMA\b|[HIQ]GMMA\b|UTC[A-Z]*MMA\b", name):
                found[family.group()] += n
        return dict(found)


def read(cubin: bytes) -> dict[str, Code]:
    """Every function of a cubin, by its name in the object file."""
    usage = _tool(cubin, "cuobjdump", "-res-usage")
    counts = dict(_instructions(_tool(cubin, "nvdisasm", "-ndf", "-c")))
    found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)
    return {
        name: Code(int(registers), int(shared), int(stack), counts[name])
        for name, registers, stack, shared in found
    }


def launch_bounds(cubin: bytes) -> dict[str, int]:
    """The most threads of a block, of each kernel of a cubin that says it."""
    parts = re.split(r"^\.nv\.info\.(\S+)$", _tool(cubin, "cuobjdump", "-elf"), flags=re.MULTILINE)[
        1:
    ]
    found = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        if match := re.search(r"EIATTR_MAX_THREADS\s+Format:.*\s+Value:\s+(.*)", body):
            found[name] = prod(int(size, 16) for size in match.group(1).split())
    return found


def _tool(cubin: bytes, name: str, *options: str) -> str:
    """What one of the tools that come with Triton prints; its warnings go nowhere."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(TOOLS / name), *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _instructions(text: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Each function's instructions in a disassembly, counted."""
    parts = re.split(r"^\.text\.(\S+):$", text, flags=re.MULTILINE)[1:]
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        found = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", body)
        yield name, dict(Counter(found))


def block_shared(code: Code, dynamic: int, architecture: int) -> int:
    """Bytes that a block takes, what the system keeps included. From 9.0 on the compiler has
    counted that already where the code has shared memory at all."""
    counted = RESERVED if architecture >= 90 and code.shared else 0
    return dynamic + code.shared - counted + RESERVED


def resident_warps(
    code: Code, warps: int, dynamic: int, architecture: int, tensor_memory: int = 0
) -> int:
    """How many warps a multiprocessor holds at a time, in blocks of `warps`, of its LIMITS' warps:
    the theoretical occupancy. dynamic: bytes of shared memory that the launch asks for."""
    limits = LIMITS[architecture]
    registers = rounded(code.registers * WARP, REGISTER_UNIT)  # of a warp
    shared = rounded(block_shared(code, dynamic, architecture), SHARED_UNIT)
    blocks = [limits.blocks, limits.warps // warps, limits.shared // shared]
    # A quarter of the registers belongs to each of the four schedulers, and a warp to one of them.
    blocks.append(limits.registers // 4 // registers * 4 // warps)
    if tensor_memory:
        blocks.append(limits.tensor_memory // tensor_memory)
    return min(blocks) * warps


def rounded(size: int, unit: int) -> int:
    return -(-size // unit) * unit
