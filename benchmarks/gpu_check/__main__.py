"""Correctness, then speed, of the CUDA backend on this machine's GPU: `make gpu-check`.

Correctness is that of the tests, run on the device in bf16 and fp16. Speeds are shares of what the
device was measured to do in the same minute. `--interpreted` runs all of it without a GPU, tiny;
Python has then to be started with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check import attention, rank, steps
from benchmarks.gpu_check.clock import Clock, Limits
from benchmarks.gpu_check.report import Row, as_json, markdown
from benchmarks.gpu_model_machines import MODELS
from urial_engine.backends.cuda_device import INTERPRETED, open_device
from urial_engine.config import ModelConfig

TESTS = ("tests/kernels/test_triton_rows.py", "tests/kernels/test_triton_matmul.py")
TESTS += ("tests/kernels/test_triton_attention.py", "tests/kernels/test_rank_cuda.py")
TESTS += ("tests/kernels/test_sample_cuda.py", "tests/test_cuda_score.py")
TESTS += ("tests/test_engine_cuda.py",)
TINY: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def correctness() -> Row:
    """The tests on the GPU; what fails is printed by them."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-q", "--gpu", *TESTS]
    done = subprocess.run(command, check=False).returncode
    took = time.perf_counter() - start
    return Row("tests", "kernels and backend", took, floor="all pass", reached=done == 0)


def timings(clock: Clock, limits: Limits) -> list[Row]:
    if clock.small:
        model, name = ModelConfig.from_dict(TINY), "tiny"
    else:
        free, _ = torch.cuda.mem_get_info()
        name = "Llama-3-8B" if free > 30e9 else "Llama-2-7B"
        model = MODELS[name]
    found = attention.rows(clock, limits, model, name)
    found += rank.rows(clock, limits)
    for invariant in (False, True):
        found += steps.rows(clock, limits, model, name, invariant=invariant)
    return [with_floor(row) for row in found]


def with_floor(row: Row) -> Row:
    """Sharing a prefix among 32 has to pay."""
    if row.part != "attention" or "batch 32" not in row.what or row.times is None:
        return row
    reached = row.times >= 2
    return Row(**{**vars(row), "floor": "twice as fast as unshared", "reached": reached})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interpreted", action="store_true", help="without a GPU, tiny")
    parser.add_argument("--out", type=Path, default=Path("build/gpu-check"))
    args = parser.parse_args(argv)
    if args.interpreted:
        from tools import emulate

        sys.modules["urial_engine._cuda_emulated"] = emulate.load()
    device = open_device(INTERPRETED if args.interpreted else "cuda")
    clock = Clock(device, small=args.interpreted)
    found = [] if args.interpreted else [correctness()]
    with device.use():
        limits = clock.limits()
        found += timings(clock, limits)
    about = {
        "device": f"{device.name}, sm_{device.architecture}, {device.processors} processors",
        "torch": torch.__version__,
        "copy bandwidth": f"{limits.copy / 1e9:,.0f} GB/s",
        "matrix rate": f"{limits.products / 1e12:,.1f} TFLOP/s",
    }
    args.out.mkdir(parents=True, exist_ok=True)
    page = markdown(about, found)
    (args.out / "gpu-check.md").write_text(page, encoding="utf-8")
    text = json.dumps(as_json(about, found), indent=2)
    (args.out / "gpu-check.json").write_text(text, encoding="utf-8")
    print(page)
    return 0 if all(row.reached for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
