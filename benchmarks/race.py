"""This engine and its peers on one workload: `make race`, or `python -m benchmarks.race [MODEL]`.

Each engine runs in a process and an environment of its own, one after the other, and the round is
repeated: what else the machine does then hits all of them alike. We measure what the machine can do
in each of our turns. Leaves a page, a picture and all that was measured, in benchmarks/results.
`make peers` makes the environments; a peer without one is named with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.peers.install import PEERS, Peer, PeerError
from benchmarks.race_chart import draw
from benchmarks.race_report import FIGURES, markdown
from benchmarks.workload import CACHE_TOKENS, ROOT, Workload, arguments, read_arguments
from urial_engine import _native

RESULTS = ROOT / "benchmarks" / "results"
STAT = Path("/proc/stat")
EVERYTHING, NO_AMX = "with all that the machine has", "without AMX"
RUNS = 8  # of the workload: no two share a query


@dataclass(slots=True)
class Contender:
    """An engine as it is entered: how it is run, in which tables it stands, what it said."""

    name: str
    command: list[str]
    groups: tuple[str, ...] = (EVERYTHING,)
    variables: dict[str, str] = field(default_factory=dict)
    own: bool = False
    runs: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None

    def run(self, threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **self.variables}
        start, before = time.monotonic(), others()
        done = subprocess.run(
            self.command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False
        )
        disturbed = (others() - before) / (time.monotonic() - start) / (os.cpu_count() or 1)
        found = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode == 0 and found:
            self.runs.append({**json.loads(found[-1]), "disturbed": round(max(disturbed, 0), 3)})
        else:
            said = done.stderr.strip().splitlines() or ["it printed no line of JSON"]
            self.error = f"exit code {done.returncode}: {said[-1]}"

    @property
    def shown(self) -> str:
        return str(self.runs[0]["peer"]) if self.runs else self.name

    def values(self, figure: str) -> list[float]:
        return [run[figure] for run in self.runs if figure in run]

    def middle(self, figure: str) -> float | None:
        values = self.values(figure)
        return median(values) if values else None


def others() -> float:
    """Processor seconds spent on this machine by all but us and our children that have ended."""
    fields = STAT.read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, fields[:8])
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return busy - sum(os.times()[:4])


def ourselves(args: argparse.Namespace) -> Iterator[Contender]:
    """Once for each instruction set."""
    for isa in args.isa.split(","):
        command = [sys.executable, "-m", "benchmarks.bench_generate", args.model, "--json"]
        command += ["--threads", str(args.threads), "--isa", isa]
        command += ["--data", str(args.data)] if args.data else []
        command += ["--small"] if args.small else []
        weaker = args.no_amx and isa not in ("auto", "amx_bf16")
        group = NO_AMX if weaker else EVERYTHING
        yield Contender(f"urial-engine {isa}", command, (group,), own=True)


def entries(peer: Peer, args: argparse.Namespace, workload: Path) -> Iterator[Contender]:
    """Once, or once more kept from AMX; who makes no use of that stands in both tables."""
    model = peer.model(Path(args.model))
    module = f"benchmarks.peers.{peer.name}"
    command = [peer.python(), "-m", module, str(workload), str(model)]
    both = args.no_amx and peer.no_amx is None
    yield Contender(peer.name, command, (EVERYTHING, NO_AMX) if both else (EVERYTHING,))
    if args.no_amx and peer.no_amx is not None:
        yield Contender(f"{peer.name}, {NO_AMX}", command, (NO_AMX,), peer.no_amx)


def contenders(args: argparse.Namespace, workload: Path) -> tuple[list[Contender], list[str]]:
    """Who runs, ourselves first, and why others do not."""
    found, skipped = [*ourselves(args)], []
    for name in args.peers:
        try:
            found += entries(PEERS[name], args, workload)
        except PeerError as error:
            skipped.append(f"{name}: {error}")
    return found, skipped


def write_workload(args: argparse.Namespace, file: Path) -> None:
    """The texts for the peers, as peers/common.py reads them."""
    texts = Workload.load(args.data, small=args.small)
    counts = {key: getattr(texts, key) for key in ("new", "new_batch", "scored", "answer_tokens")}
    content = {
        "prefix": texts.prompt.text,
        "runs": [texts.suffixes(run) for run in range(RUNS)],
        "answer": texts.prompt.text,
        **counts,
        "threads": args.threads,
        "cache_tokens": CACHE_TOKENS,
    }
    file.write_text(json.dumps(content), encoding="utf-8")


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
    last = contender.runs[-1]
    shown = [f"{figure} {last[figure]:,}" for figure in FIGURES if figure in last]
    return ", ".join([*shown, f"others took {last['disturbed']:.0%} of the machine"])


def options(argv: list[str] | None) -> argparse.Namespace:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--peers", default=",".join(PEERS), help="which, separated by commas")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-amx", action="store_true", help="once more, with AVX-512 at most")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the three files")
    args = read_arguments(parser, argv)
    args.peers = [name for name in args.peers.split(",") if name]
    if unknown := set(args.peers) - set(PEERS):
        parser.error(f"no peer is named {', '.join(sorted(unknown))} (known: {', '.join(PEERS)})")
    if args.dtype != "bfloat16":
        parser.error("the race is run in bfloat16")
    if args.no_amx and "amx_bf16" not in _native.available_isas():
        parser.error("--no-amx: this machine has none")
    if args.no_amx and args.isa == "auto":
        args.isa = "auto,avx512_bf16"
    return args


def save(entered: Sequence[Contender], skipped: Sequence[str], out: Path) -> str:
    """The three files; returns the page."""
    page = markdown(entered, skipped)
    out.mkdir(parents=True, exist_ok=True)
    name = f"race-{entered[0].runs[0]['model']['name']}"
    (out / f"{name}.md").write_text(page, encoding="utf-8")
    data = {c.name: {"groups": c.groups, "runs": c.runs, "error": c.error} for c in entered}
    (out / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    draw(entered, out / f"{name}.png")
    return page


def main(argv: list[str] | None = None) -> int:
    args = options(argv)
    with tempfile.TemporaryDirectory() as folder:
        workload = Path(folder, "workload.json")
        write_workload(args, workload)
        entered, skipped = contenders(args, workload)
        print(*(f"not run: {reason}" for reason in skipped), sep="\n")
        race(entered, args.repeats, args.threads)
    if not entered[0].runs:
        print(f"nothing to compare: we failed, {entered[0].error}", file=sys.stderr)
        return 1
    print(save(entered, skipped, args.out))
    return 1 if any(contender.error for contender in entered) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
