"""All growth curves: `python -m benchmarks.growth [--only NAME …]`, about ten minutes.

Every point is a process of its own; the points of an experiment, and what its expectation is made
of, are measured in turn, several rounds. A process beside which others worked runs again. Leaves
growth.json, growth.md and growth.png. With `--only`, what else growth.json holds stays.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.growth import memory, models, point
from benchmarks.growth.curves import EXPERIMENTS, Experiment
from benchmarks.growth.page import markdown
from benchmarks.growth.plot import draw
from benchmarks.growth.quiet import DISTURBED, least_disturbed
from benchmarks.limits import machine
from benchmarks.workload import ROOT, Workload, arguments, read_arguments

RESULTS = ROOT / "benchmarks" / "results"
MODELS = ROOT / "build" / "growth"
WORKLOADS = "workloads"
ATTEMPTS = 3  # where something else kept the machine busy
NAMES = (*(experiment.name for experiment in EXPERIMENTS), WORKLOADS)


def process(module: str, *options: object) -> dict[str, Any]:
    """The line of JSON that a module prints. What it says when it fails is shown."""
    command = [sys.executable, "-m", f"benchmarks.growth.{module}", *map(str, options)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(experiment: Experiment, args: argparse.Namespace) -> dict[str, Any]:
    """All points of an experiment, `rounds` runs of each: runs by value, by name."""
    values = experiment.small if args.small else experiment.values
    beside = values if experiment.beside == "limits" else (0,)
    wanted = [(experiment.beside, v) for v in beside] + [(experiment.name, v) for v in values]
    found: dict[str, Any] = {experiment.beside: {}, experiment.name: {}}
    base = models.shape(small=args.small)
    for number in range(args.rounds):
        for name, value in wanted:
            shape = experiment.shape(value, args.small) if name != "prices" else base
            threads = experiment.threads(value, args.threads)
            options = [models.make(args.models, shape), name, value, "--threads", threads]
            options += ["--isa", args.isa]
            options += ["--small"] if args.small else []
            call = partial(process, "point", *options)
            made, others = least_disturbed(call, attempts=1 if args.small else ATTEMPTS)
            found[name].setdefault(str(value), []).append({**made, "others": round(others, 2)})
            note = f" ({others:.2f} processors busy with other work)" if others > DISTURBED else ""
            print(f"{number + 1}/{args.rounds} {name} {value}: {told(made)}{note}", flush=True)
    return found


def told(made: dict[str, Any]) -> str:
    took = (f"{figure} {parts['all']:.4g} s" for figure, parts in made["seconds"].items())
    return ", ".join([*took, f"peak {made['bytes']['peak'] / 1e6:,.0f} MB"])


def run_workloads(args: argparse.Namespace) -> dict[str, Any]:
    """The memory of each workload of workload.py on the model that is named."""
    texts = Workload.load(args.data, small=args.small)
    options = [args.model, "--dtype", args.dtype, "--threads", args.threads, "--isa", args.isa]
    options += ["--data", args.data] if args.data else []
    options += ["--small"] if args.small else []
    found = {}
    for name in memory.WORKLOADS:
        found[name] = process("memory", *options, "--workload", name)
        print(f"{name}: {found[name]}", flush=True)
    about = {"model": Path(args.model).name, "dtype": args.dtype, "texts": texts.source}
    return {**about, "runs": found}


def options(argv: list[str] | None) -> argparse.Namespace:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", type=Path, default=MODELS, help="where the models are made")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the three files")
    return read_arguments(parser, argv)


def main(argv: list[str] | None = None) -> int:
    args = options(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "growth.json"
    about = {
        "machine": machine(),
        "threads": args.threads,
        "rounds": args.rounds,
        "shape": models.shape(small=args.small),
        "sizes": asdict(point.SMALL if args.small else point.FULL),
    }
    found = {**about, "experiments": {}}
    if set(args.only) != set(NAMES) and file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
        if differs := [name for name in about if found[name] != about[name]]:
            names = ", ".join(differs)
            raise SystemExit(f"{file.name} was made with another {names}: leave --only out")
    for experiment in (e for e in EXPERIMENTS if e.name in args.only):
        found["experiments"][experiment.name] = run(experiment, args)
    if WORKLOADS in args.only:
        found[WORKLOADS] = run_workloads(args)
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    page = markdown(found)
    (args.out / "growth.md").write_text(page, encoding="utf-8")
    draw(found, args.out / "growth.png")
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
