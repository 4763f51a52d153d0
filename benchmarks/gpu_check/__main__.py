"""Correctness, the invariants, then the speed of the CUDA backend on this machine's GPU: `make
gpu-check`.

Correctness is that of the tests, run on the device in bf16 and fp16. Speeds are shares of what the
device was measured to do in the same minute. `--interpreted` runs all of it without a GPU, tiny;
Python has then to be started with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check import attention, correctness, end_to_end, invariants, rank, steps
from benchmarks.gpu_check.clock import Clock, Limits, the_gpu
from benchmarks.gpu_check.floors import total, with_floor
from benchmarks.gpu_check.report import Row, as_json, markdown
from benchmarks.gpu_model.machines import MODELS
from urial_engine.backends.cuda_device import INTERPRETED
from urial_engine.config import ModelConfig


def timings(clock: Clock, limits: Limits) -> list[Row]:
    """Floors are for a GPU."""
    if clock.small:
        model, name = ModelConfig.from_dict(steps.TINY), "tiny"
    else:
        free, _ = torch.cuda.mem_get_info()
        name = "Llama-3-8B" if free > 30e9 else "Llama-2-7B"
        model = MODELS[name]
    found = finished("attention", lambda: attention.rows(clock, limits, model, name))
    found += finished("score", lambda: rank.rows(clock, limits))
    for part, same in (("step", False), ("step, invariant", True)):
        run = partial(steps.rows, clock, limits, model, name, invariant=same)
        found += finished(part, run)
    return found if clock.small else [with_floor(row) for row in found]


def finished(part: str, find: Callable[[], Iterable[Row]]) -> list[Row]:
    """All rows of a part. One that fails is a row too: the others are still worth having."""
    found: list[Row] = []
    try:
        found.extend(find())
    except Exception as error:
        traceback.print_exc()
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        found.append(Row(part, "failed", found=said, floor="runs to its end", reached=False))
    return found


def measure(args: argparse.Namespace, clock: Clock, about: dict[str, Any]) -> list[Row]:
    """Every part, in turn; what the device was measured to do goes into `about`."""
    small = clock.small
    found = finished("tests", lambda: correctness.rows(args.out, small=small))
    with clock.device.use():
        limits = clock.limits()
        about["copy bandwidth"] = f"{limits.copy / 1e9:,.0f} GB/s"
        about["matrix rate"] = f"{limits.products / 1e12:,.1f} TFLOP/s"
        found += finished(invariants.PART, lambda: invariants.rows(clock))
        found += timings(clock, limits)
    name = INTERPRETED if small else "cuda"
    return found + finished(end_to_end.PART, lambda: end_to_end.rows(clock, args.model, name))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interpreted", action="store_true", help="without a GPU, tiny")
    parser.add_argument("--model", type=Path, help="a folder, for tokens a second end to end")
    parser.add_argument("--out", type=Path, default=Path("build/gpu-check"))
    args = parser.parse_args(argv)
    start = time.perf_counter()
    device = the_gpu(interpreted=args.interpreted)
    args.out.mkdir(parents=True, exist_ok=True)
    about = {
        "device": f"{device.name}, sm_{device.architecture}, {device.processors} processors",
        "torch": torch.__version__,
    }
    found = measure(args, Clock(device, small=args.interpreted), about)
    found.append(total(time.perf_counter() - start))
    page = markdown(about, found)
    (args.out / "gpu-check.md").write_text(page, encoding="utf-8")
    text = json.dumps(as_json(about, found), indent=2)
    (args.out / "gpu-check.json").write_text(text, encoding="utf-8")
    print(page)
    return 0 if all(row.reached for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
