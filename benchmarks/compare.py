"""This engine beside others on one workload: `python -m benchmarks.compare [MODEL] …`.

Each engine runs in a process of its own, one after the other, and the round is repeated: what else
the machine does then hits all of them alike. Leaves the medians as a table in Markdown and all that
was measured as JSON. Another engine is a script that prints one line of JSON with the figures of
workload.py; scripts are found in the folder `--peers`.

    --peers DIR                the folder; hf.py in it (transformers) runs in this environment
    --peer 'NAME=PYTHON ARG …' run DIR/NAME.py by that interpreter, with those arguments instead of
                               the model's folder (an engine with a file format of its own)
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.workload import ROOT, SHARED, arguments, read_arguments

FIGURES = ("prefill", "ttft_ms", "decode_1", "urial_32", "score")
SMALLER_IS_BETTER = {"ttft_ms"}
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(slots=True)
class Contender:
    """An engine: how it is run, and what it said each time."""

    name: str
    command: list[str]
    runs: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None

    def run(self, threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(
            self.command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False
        )
        found = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode == 0 and found:
            self.runs.append(json.loads(found[-1]))
        else:
            said = done.stderr.strip().splitlines() or ["it printed no line of JSON"]
            self.error = f"exit code {done.returncode}: {said[-1]}"

    @property
    def shown(self) -> str:
        return str(self.runs[0].get("peer", self.name)) if self.runs else self.name

    def values(self, figure: str) -> list[float]:
        return [run[figure] for run in self.runs if figure in run]


def contenders(args: argparse.Namespace) -> tuple[list[Contender], list[str]]:
    """Who runs, ourselves first, and why others do not."""
    own = [sys.executable, "-m", "benchmarks.bench_generate", args.model, "--json"]
    own += ["--dtype", args.dtype, "--threads", str(args.threads), "--isa", args.isa]
    own += ["--data", str(args.data)] if args.data else []
    own += ["--small"] if args.small else []
    found, skipped = [Contender("urial-engine", own)], []
    given = dict(text.split("=", 1) for text in args.peer)
    scripts = {path.stem: path for path in sorted(args.peers.glob("*.py"))} if args.peers else {}
    scripts.pop("workload", None)
    for name in sorted({"hf", *scripts, *given}):
        if name not in scripts:
            skipped.append(f"{name}: no {name}.py in the folder of peers")
        elif name in given:
            python, *rest = shlex.split(given[name])
            found.append(Contender(name, [python, str(scripts[name]), *(rest or [args.model])]))
        elif name != "hf":
            skipped.append(f"{name}: needs its own environment: --peer '{name}=PYTHON …'")
        elif find_spec("torch") and find_spec("transformers"):
            command = [sys.executable, str(scripts[name]), args.model, args.dtype]
            found.append(Contender(name, command))
        else:
            skipped.append(f"{name}: torch and transformers are not installed")
    return found, skipped


def race(entered: Sequence[Contender], repeats: int, threads: int) -> None:
    """All of them in turn, `repeats` times; who fails once is out."""
    for number in range(1, repeats + 1):
        for contender in entered:
            if contender.error is None:
                contender.run(threads)
                print(f"{number}/{repeats} {contender.name}: {summary(contender)}", flush=True)


def summary(contender: Contender) -> str:
    if contender.error is not None:
        return f"failed, {contender.error}"
    return ", ".join(f"{k} {contender.runs[-1][k]:,}" for k in FIGURES if k in contender.runs[-1])


def markdown(entered: Sequence[Contender], skipped: Sequence[str], repeats: int) -> str:
    """The whole page."""
    own = entered[0].runs[-1]
    model, engine, texts = own["model"], own["engine"], own["workload"]
    ran = [contender for contender in entered if contender.runs]
    lines = [
        f"# {model['name']}, {engine['dtype']}, {engine['threads']} threads",
        "",
        f"{model['parameters'] / 1e6:,.0f} million parameters; {texts['texts']} texts: a prefix of "
        f"{texts['prefix_tokens']} tokens, {texts['queries']} queries. Median of {repeats} runs "
        "(least to most), engines in turn. Tokens a second; ttft in milliseconds.",
        "",
        *table(["", *FIGURES], [[c.shown, *(cell(c.values(f)) for f in FIGURES)] for c in ran]),
        "",
        *table(
            ["as fast as", *FIGURES],
            [[c.shown, *(ratio(entered[0], c, f) for f in FIGURES)] for c in ran[1:]],
        ),
        "",
        *limits(entered[0]),
        "",
        *table(["machine", ""], [[k, v] for k, v in own["machine"].items()]),
        "",
    ]
    lines += [f"- not run: {reason}" for reason in skipped]
    lines += [f"- failed: {c.name}: {c.error}" for c in entered if c.error]
    return "\n".join(lines) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """In Markdown; nothing where there are no rows."""
    lines = [head, ["---"] * len(head), *rows] if rows else []
    return [f"| {' | '.join(line)} |" for line in lines]


def cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    return f"**{median(values):,.1f}** ({min(values):,.1f}–{max(values):,.1f})"


def ratio(own: Contender, other: Contender, figure: str) -> str:
    """How many times as fast we are."""
    if not (own.values(figure) and other.values(figure)):
        return "–"
    mine, theirs = median(own.values(figure)), median(other.values(figure))
    return f"{theirs / mine if figure in SMALLER_IS_BETTER else mine / theirs:.2f} ×"


def limits(own: Contender) -> list[str]:
    """Our figures against what the machine can do, each share that of its own run."""

    def middle(figure: str, key: str) -> float:
        return float(median(run["figures"][figure][key] for run in own.runs))

    read, arithmetic = (
        median(run["limits"][k] for run in own.runs) for k in ("read_GBps", "GFLOPs")
    )
    engine = own.runs[0]["engine"]
    rows = [
        [
            figure,
            f"{middle(figure, 'GBps'):.1f}",
            f"{middle(figure, 'of_read'):.0%}",
            f"{middle(figure, 'GFLOPs'):,.0f}",
            f"{middle(figure, 'of_arithmetic'):.1%}",
            f"{middle(figure, 'in_backend'):.0%}",
        ]
        for figure in FIGURES
    ]
    return [
        f"Limits in the same processes: {read:.1f} GB/s read, {arithmetic:,.0f} GFLOP/s in "
        f"{engine['dtype']} ({engine['isa']}).",
        "",
        *table(["", "GB/s", "of limit", "GFLOP/s", "of limit", "time in native code"], rows),
    ]


def options(argv: list[str] | None) -> argparse.Namespace:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, help="folder with the scripts of other engines")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON [ARG …]")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the two files")
    args = read_arguments(parser, argv)
    if args.peers is None and (SHARED / "peers").is_dir() and not args.small:
        args.peers = SHARED / "peers"
    if args.peers and not args.data:
        parser.error("other engines run on the published texts: name their folder, --data DIR")
    return args


def main(argv: list[str] | None = None) -> int:
    args = options(argv)
    entered, skipped = contenders(args)
    print(*(f"not run: {reason}" for reason in skipped), sep="\n")
    race(entered, args.repeats, args.threads)
    if not entered[0].runs:
        print(f"nothing to compare: we failed, {entered[0].error}", file=sys.stderr)
        return 1
    page = markdown(entered, skipped, args.repeats)
    args.out.mkdir(parents=True, exist_ok=True)
    name = f"generate-{entered[0].runs[0]['model']['name']}-{args.dtype}"
    (args.out / f"{name}.md").write_text(page, encoding="utf-8")
    data = {c.shown: {"runs": c.runs, "error": c.error} for c in entered}
    (args.out / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print(page)
    return 1 if any(contender.error for contender in entered) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
