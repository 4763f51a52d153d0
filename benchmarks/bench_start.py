"""Times the way from nothing to the first token: `python -m benchmarks.bench_start [MODEL]`.

Each run is a process of its own, with the prefix on disk. Leaves the median of each stage; beside
it what no engine could do without: reading the weights out of the page cache, and touching as much
fresh memory. `cold` starts with the model's files dropped from the page cache.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.limits import machine
from benchmarks.workload import ROOT, Workload, arguments, read_arguments
from urial_engine.checkpoint import Checkpoint

PIECE = 1 << 20  # bytes read at a time
RUNS, COLD = 5, 2
STAGES = ("interpreter", "imports", "tokenizer", "weights", "prefix", "tokenise", "first token")
# What is measured: one clock for all processes, and an engine used as anybody would.
PROGRAM = """
import time
marks = [time.monotonic()]
import json, pathlib, sys
from urial_engine import Engine, SamplingParams, UrialPrompt
from urial_engine import engine_base as steps

def mark_after(owner, name):
    def call(*args, **more):
        out = inner(*args, **more)
        marks.append(time.monotonic())
        return out
    inner = getattr(owner, name)
    setattr(owner, name, call)

for owner, name in ((steps.Tokenizer, "load"), (steps, "open_backend"), (steps.EngineBase, "pin")):
    mark_after(owner, name)
asked = json.loads(sys.argv[1])
prompt = UrialPrompt.load(asked["prefix"])
marks.append(time.monotonic())
with Engine(asked["model"], prefix=prompt, **asked["engine"]) as engine:
    request = engine.generation(prompt.render(asked["query"]), SamplingParams(max_tokens=1), "it")
    marks.append(time.monotonic())
    engine.run([request])
    marks.append(time.monotonic())
    status = pathlib.Path("/proc/self/status").read_text().split()
    blocks = -(-len(request.ids) // engine.backend.block_size)
    print(json.dumps({
        "marks": marks,
        "peak_bytes": 1024 * int(status[status.index("VmHWM:") + 1]),
        "kv_bytes": blocks * engine.backend.block_bytes,
        "restore": 1e3 * engine.info["prefix_seconds"],
        **{key: engine.info[key] for key in ("weight_bytes", "prefix_source", "prefix_tokens")},
    }))
"""


def start(asked: dict[str, Any]) -> dict[str, Any]:
    """One process: ms of each stage, and what it says of itself."""
    began = time.monotonic()
    command = [sys.executable, "-c", PROGRAM, json.dumps(asked)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    said: dict[str, Any] = json.loads(done.stdout)
    times = [began, *said.pop("marks")]
    spans = [1e3 * (after - before) for before, after in pairwise(times)]
    return {**said, **dict(zip(STAGES, spans, strict=True)), "total": sum(spans)}


def answer(asked: dict[str, Any]) -> float:
    """Milliseconds of a whole `urial-engine answer` of one token, its end included."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in asked["engine"].items()]
    options += [f"--prompt={asked['prefix']}", "--max-tokens=1", "--no-stream"]
    code = "from urial_engine.cli import main; main()"
    began = time.monotonic()
    command = [sys.executable, "-c", code, "answer", asked["model"], asked["query"], *options]
    subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return 1e3 * (time.monotonic() - began)


def timed(threads: int, work: Callable[[int], None]) -> float:
    """Milliseconds until work(0) .. work(threads - 1) are done."""
    with ThreadPoolExecutor(threads) as pool:
        began = time.monotonic()
        list(pool.map(work, range(threads)))
        return 1e3 * (time.monotonic() - began)


def read(files: list[Path], threads: int) -> float:
    """Milliseconds in which the files are read, each thread its share of each."""

    def work(thread: int) -> None:
        buffer = bytearray(PIECE)
        for path in files:
            size = -(-path.stat().st_size // threads)
            with closing(FileIO(path)) as file:
                for at in range(thread * size, (thread + 1) * size, PIECE):
                    os.preadv(file.fileno(), [buffer], at)

    return timed(threads, work)


def touch(size: int, threads: int) -> float:
    """Milliseconds in which as much memory is taken from the system and written."""
    memory, share = np.empty(size, np.uint8), -(-size // threads)

    def work(thread: int) -> None:
        memory[thread * share : (thread + 1) * share] = 1

    return timed(threads, work)


def drop(files: list[Path]) -> None:
    """Out of the page cache, as far as the system follows."""
    for path in files:
        with closing(FileIO(path)) as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(args: Any) -> dict[str, Any]:
    """Everything, as it is written to JSON; times in milliseconds."""
    texts = Workload.load(args.data, small=args.small)
    with Checkpoint.open(args.model) as checkpoint:
        files = sorted({checkpoint.info(name).file for name in checkpoint.names()})
        beside = [path for path in checkpoint.folder.iterdir() if path.is_file()]
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "prefix.txt"
        prefix.write_bytes(texts.prompt.text.encode())
        engine = {"dtype": args.dtype, "threads": args.threads, "isa": args.isa}
        asked = {
            "model": args.model,
            "prefix": str(prefix),
            "query": texts.questions[0],
            "engine": {**engine, "prefix_dir": folder},
        }
        size = start(asked)["weight_bytes"]  # it stores the prefix
        stored = list(Path(folder).glob("*.safetensors"))
        prefix_bytes = sum(path.stat().st_size for path in stored)
        runs = [one(asked, files, stored, size) for _ in range(1 if args.small else RUNS)]
        cold = []
        for _ in range(1 if args.small else COLD):
            drop([*beside, *stored])
            cold.append(start(asked)["total"])
    if {run["prefix_source"] for run in runs} != {"restored"}:
        raise RuntimeError("the prefix was computed again: this is not what is measured")
    times = [name for name, value in runs[0].items() if isinstance(value, float)]
    return {
        "model": Path(args.model).name,
        "file_bytes": sum(path.stat().st_size for path in files),
        "prefix_bytes": prefix_bytes,
        **{name: runs[0][name] for name in ("weight_bytes", "prefix_tokens", "kv_bytes")},
        "peak_bytes": max(run["peak_bytes"] for run in runs),
        "ms": {name: round(statistics.median(run[name] for run in runs), 1) for name in times},
        "cold_ms": round(statistics.median(cold), 1),
        "runs": len(runs),
        "engine": engine,
        "machine": machine(),
    }


def one(asked: dict[str, Any], files: list[Path], stored: list[Path], size: int) -> dict[str, Any]:
    """A run, and in the same moments what it is compared with."""
    threads = asked["engine"]["threads"]
    return {
        **start(asked),
        "command line": answer(asked),
        "read": read(files, 1),
        "read by all": read(files, threads),
        "read prefix": read(stored, 1),
        "fresh memory": touch(size, threads),
    }


def show(found: dict[str, Any]) -> None:
    ms, engine = found["ms"], found["engine"]
    print(
        f"{found['model']}, {engine['dtype']}, {engine['threads']} threads, prefix of "
        f"{found['prefix_tokens']} tokens on disk; medians of {found['runs']} runs, in ms"
    )
    notes = {
        "command line": "`answer` of one token, to its end",
        "read": f"{found['file_bytes'] / 1e6:,.0f} MB of weights out of the page cache, one thread",
        "read by all": "the same, by all threads",
        "restore": "of the stage `prefix`, without its tokenisation",
        "read prefix": f"{found['prefix_bytes'] / 1e6:,.0f} MB out of the page cache",
        "fresh memory": "as much as the weights, by all threads",
    }
    for name in (*STAGES, "total", *notes):
        print(f"{name:<14}{ms[name]:>9,.1f}   {notes.get(name, '')}".rstrip())
    print(f"{'cold':<14}{found['cold_ms']:>9,.1f}   total, without the files in the page cache")
    print(
        f"total: 1 s + {(ms['total'] - 1000) / ms['read']:.1f} x read; weights: "
        f"{ms['weights'] / ms['read']:.1f} x read; restore: "
        f"{ms['restore'] / ms['read prefix']:.1f} x read prefix"
    )
    over = found["peak_bytes"] - found["weight_bytes"] - found["kv_bytes"]
    print(
        f"peak {found['peak_bytes'] / 1e6:,.0f} MB: weights {found['weight_bytes'] / 1e6:,.0f}, KV "
        f"in use {found['kv_bytes'] / 1e6:,.0f}, all else {over / 1e6:,.0f}"
    )


def main(argv: list[str] | None = None) -> None:
    args = read_arguments(arguments(__doc__.splitlines()[0]), argv)
    found = measure(args)
    show(found)
    if args.json:
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
