"""The compile report: it passes, and each of its gates fires.

What compiles runs in a process of its own: other tests have Triton interpret its kernels, and a
process that does cannot compile them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

from tools import gpu_report, gpu_report_code, gpu_report_launches, gpu_report_rows, nvcc
from tools.gpu_report_code import Code
from tools.gpu_report_rows import Kind, Row

ROOT = Path(__file__).resolve().parents[1]
GOOD = Row(
    *("some_kernel", "bf16", 80),
    registers=64,
    shared=1024,
    stack=0,
    spills=0,
    tensor={"HMMA": 8},
    expected="HMMA",
    wide=4,
    asynchronous=2,
    wide_share=0.9,
    streams=True,
    resident=32,
)


def compiling(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_every_gate_holds() -> None:
    done = compiling("-m", "tools.gpu_report")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("every gate holds\n")


def test_interpreting_is_refused() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "tools.gpu_report"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "TRITON_INTERPRET is set" in done.stderr


# Kernels with one fault each


@triton.jit
def spilling_kernel(x, out, N: tl.constexpr):
    """A square tile stays in registers while its sums are added to it: a warp has too few."""
    n = tl.arange(0, N)
    tile = tl.load(x + n[:, None] * N + n[None, :])
    for _ in range(tl.load(out).to(tl.int32)):
        tile += tl.sum(tile, axis=0)[:, None]
    tl.store(out + n[:, None] * N + n[None, :], tile)


@triton.jit
def scalar_kernel(x, out, N: tl.constexpr):
    """A matrix times a vector by multiplications, of a matrix that is read a number at a time."""
    n = tl.arange(0, N)
    tile = tl.load(x + n[:, None] * 3 * N + n[None, :] * 3)
    tl.store(out + n, tl.sum(tile * tl.load(x + n)[None, :], axis=1))


def planted() -> dict[str, list[str]]:
    """By kernel, what the gates say of it. Runs where Triton compiles."""
    x = gpu_report_launches.empty(torch.float32, 128, 128)
    found = {}
    for kernel, size in ((spilling_kernel, 128), (scalar_kernel, 32)):
        (launch,) = gpu_report_launches.record(
            90, lambda k=kernel, s=size: k[(1,)](x, x, N=s, num_warps=1)
        )
        kinds = {launch.source.name: Kind({"N": "N"}, matrix=True)}
        row = gpu_report_rows.compile_launch(launch, 90, kinds)
        found[row.kernel] = list(gpu_report.violations([row], {row.key: 1}))
    return found


def test_planted_faults_of_triton_kernels_are_found() -> None:
    code = "import json; from tests import test_gpu_report as t; print(json.dumps(t.planted()))"
    done = compiling("-c", code)
    assert done.returncode == 0, done.stderr
    found = {name: " ".join(problems) for name, problems in json.loads(done.stdout).items()}
    assert "loads and stores of local memory" in found["spilling_kernel"]
    assert "no HMMA among its tensor-core instructions (none)" in found["scalar_kernel"]
    assert "no load of 16 bytes" in found["scalar_kernel"]
    assert "local memory" not in found["scalar_kernel"]


CUDA = """
struct Arguments { const float* in; float* out; int n; };
template <bool kSecond>
__global__ void __launch_bounds__(64) local_kernel(Arguments a) {
  float kept[64];
  for (int i = 0; i < 64; ++i) kept[i] = a.in[i * 3];
  for (int i = 0; i < a.n; ++i) kept[int(a.in[i]) % 64] += 1;
  for (int i = 0; i < 64; ++i) a.out[i] = kept[i + kSecond > 63 ? 0 : i + kSecond];
}
template __global__ void local_kernel<true>(Arguments);
"""


def test_a_planted_fault_of_a_cuda_kernel_is_found(tmp_path: Path) -> None:
    source = tmp_path / "planted.cu"
    source.write_text(CUDA, encoding="utf-8")
    code = f"""
from pathlib import Path
from tools import gpu_report, gpu_report_rows, nvcc
rows = gpu_report_rows.cuda_rows(nvcc.nvcc(), [Path({str(source)!r})])
print(*gpu_report.violations(rows, {{row.key: 65 for row in rows}}), sep="\\n")
"""
    done = compiling("-c", code)
    assert done.returncode == 0, done.stderr
    for architecture in gpu_report_launches.ARCHITECTURES:
        name = f"local_kernel <true> on sm_{architecture}"
        assert f"{name}: " in done.stdout
        assert "256 bytes of stack" in done.stdout
        assert f"{name}: 64 warps are resident, 65 stated" in done.stdout


# Rows


def test_a_good_row_passes() -> None:
    assert not list(gpu_report.violations([GOOD], {GOOD.key: 32}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spills": 3}, "3 loads and stores of local memory"),
        ({"stack": 8}, "8 bytes of stack"),
        ({"tensor": {}}, "no HMMA among its tensor-core instructions (none)"),
        ({"expected": "HGMMA"}, "no HGMMA among its tensor-core instructions (8 HMMA)"),
        ({"wide": 0, "wide_share": 0.0}, "no load of 16 bytes"),
        ({"wide_share": 0.3}, "16-byte loads are 30% of the bytes, 40% wanted"),
        ({"resident": 24}, "24 warps are resident, 32 stated (64 registers, 1,024 bytes"),
        ({"resident": 0, "shared": 250_000}, "250,000 bytes of shared memory are more than"),
        ({"variant": "fp16"}, "some_kernel fp16 on sm_80: not in gpu_kernels.json"),
        ({"variant": "fp16"}, "some_kernel bf16 on sm_80: in gpu_kernels.json, but nothing"),
    ],
)
def test_each_gate_says_what_is_wrong(change: dict[str, object], message: str) -> None:
    found = gpu_report.violations([GOOD._replace(**change)], {GOOD.key: 32})
    assert message in "\n".join(found)


def test_a_row_is_the_worst_of_its_specialisations() -> None:
    other = GOOD._replace(registers=99, spills=1, tensor={"HMMA": 2}, wide=9, resident=16)
    (row,) = gpu_report_rows.worst([GOOD, other])
    assert (row.registers, row.spills, row.tensor, row.wide, row.resident) == (
        *(99, 1, {"HMMA": 2}, 4, 16),
    )


def test_one_specialisation_without_tensor_cores_is_not_hidden_by_another() -> None:
    (row,) = gpu_report_rows.worst([GOOD, GOOD._replace(tensor={})])
    assert "no HMMA" in "\n".join(gpu_report.violations([row], {GOOD.key: 32}))


def test_the_table_survives_writing_and_reading(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    rows = [GOOD, GOOD._replace(architecture=90, resident=8)]
    gpu_report.write_table(rows, path)
    assert gpu_report.read_table(path) == {row.key: row.resident for row in rows}


# Machine code


@pytest.mark.parametrize(
    ("registers", "warps", "shared", "architecture", "tensor_memory", "resident"),
    [
        (32, 4, 0, 80, 0, 64),
        (33, 4, 0, 80, 0, 48),  # registers come eight a thread: 40
        (128, 4, 0, 90, 0, 16),
        (255, 8, 0, 90, 0, 8),
        (168, 8, 0, 90, 0, 8),  # twelve warps would fit, a second block does not
        (32, 1, 0, 90, 0, 32),  # 32 blocks
        (32, 4, (163 << 10), 80, 0, 4),
        (32, 4, (163 << 10) + 1, 80, 0, 0),  # more than a block can have
        (32, 4, (113 << 10), 90, 0, 8),
        (32, 4, 0, 100, 256, 8),
    ],
)
def test_occupancy(
    registers: int, warps: int, shared: int, architecture: int, tensor_memory: int, resident: int
) -> None:
    code = Code(registers, 0, 0, {})
    found = gpu_report_code.resident_warps(code, warps, shared, architecture, tensor_memory)
    assert found == resident


def test_instructions_are_told_apart() -> None:
    loads = {"LDG.E.128": 2, "LDG.E.128.CONSTANT": 1, "LDG.E": 4, "LDG.E.U16": 2, "LDG.E.64": 1}
    other = {"LDGSTS.E.BYPASS.128": 3, "LDGSTS.E": 1, "LDS.128": 7, "STL": 1, "LDL.64": 2}
    products = {"HMMA.16816.F32": 5, "HFMA2.MMA": 9, "HGMMA.64x128x16": 6, "UTCHMMA": 7}
    counts = loads | other | products
    code = Code(32, 0, 0, counts)
    assert (code.spills, code.wide, code.asynchronous) == (3, 6, 3)
    assert code.tensor == {"HMMA": 5, "HGMMA": 6, "UTCHMMA": 7}
    assert code.wide_share == pytest.approx(6 * 16 / (6 * 16 + 4 * 4 + 2 * 2 + 8 + 4))


def test_what_the_system_keeps_of_shared_memory_is_counted_once() -> None:
    """From 9.0 on the compiler's own number holds it already."""
    assert gpu_report_code.block_shared(Code(32, 8232, 0, {}), 0, 80) == 9256
    assert gpu_report_code.block_shared(Code(32, 9256, 0, {}), 0, 90) == 9256
    assert gpu_report_code.block_shared(Code(32, 0, 0, {}), 0, 90) == 1024


def test_where_nvcc_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """CUDA_HOME, then PATH, then the package; without any it says what to install."""
    found = nvcc.nvcc()
    monkeypatch.setenv("PATH", str(found.parent))
    (tmp_path / "bin").mkdir()
    other = tmp_path / "bin" / "nvcc"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert nvcc.nvcc() == other
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nothing"))
    assert nvcc.nvcc() == found
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvcc.nvcc().parts[-3:] == ("cu13", "bin", "nvcc")
    monkeypatch.setattr(nvcc, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install nvidia-cuda-nvcc"):
        nvcc.nvcc()
