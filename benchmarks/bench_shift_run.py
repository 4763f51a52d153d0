"""A kept run of the token shift against the scoring it cannot do without: time and memory.

`python -m benchmarks.bench_shift_run [MODEL]`: answers that are given, one base context. Each
figure is of a process of its own, in turn: `score` is one pass of `Engine.score` a model over the
same contexts and answers; `run` is all of a run, the opening of the model and the files included;
`report` is summary, plots and page (timed again). Memory is the peak beside weights and KV-cache,
which at full size is all in use.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.bench_token_shift import peak, touch_cache
from benchmarks.workload import Workload, arguments, read_arguments
from urial_engine import Engine
from urial_engine.sampling import SamplingParams
from urial_engine.sources import Probe
from urial_engine.token_shift_models import Model, Models
from urial_engine.token_shift_plan import Plan
from urial_engine.token_shift_report import write_report
from urial_engine.token_shift_run import ShiftRun

ANSWERS, TOKENS, TURNS, TOP_K = 200, 256, 3, 10
CACHE_GIB = 0.5


def work(args: Any) -> tuple[Models, Plan, list[Probe]]:
    """Answers cut from the prefix, and what is asked of one model under two prompts."""
    texts = Workload.load(args.data, small=args.small)
    answers, tokens = (4, 8) if args.small else (ANSWERS, TOKENS)
    options = {"dtype": args.dtype, "threads": args.threads, "isa": args.isa}
    options["kv_cache_gib"] = CACHE_GIB
    one = Model(args.model, options, {"zero-shot": "zero-shot"})
    models = Models(one, Model(args.model, options, {"plain": "Question: {query}\nAnswer:"}))
    plan = Plan.make(models.base.side("base"), models.aligned.side("aligned"), TOP_K)
    ids = plan.aligned.tokenizer.encode(texts.prompt.text) * 2
    step = max((len(ids) - tokens) // answers, 1)
    probes = [
        Probe(
            id=i + 1,
            query=f"{i}. {texts.questions[i % len(texts.questions)]}",
            answer=None,
            answer_token_ids=(ids * 2)[i * step : i * step + tokens],
            prompt=None,
            dataset=None,
            generator=None,
            sample=0,
            where=f"answer {i}",
        )
        for i in range(answers)
    ]
    return models, plan, probes


def score(args: Any) -> dict[str, float]:
    models, plan, probes = work(args)
    told = [plan.given(probe) for probe in probes]
    with models.base.open() as engine:
        touch_cache(engine)
        start = time.perf_counter()
        for contexts in (
            [a.aligned_context_ids["plain"] for a in told],
            [a.base_context_ids["zero-shot"] for a in told],
        ):
            engine.score(contexts, [a.token_ids for a in told], top_k=TOP_K)
        return {"seconds": time.perf_counter() - start}


def run(args: Any) -> dict[str, float]:
    models, plan, probes = work(args)
    with models.base.open() as engine:  # its size, and the files in the page cache
        own = held(engine)
    before = peak()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        ShiftRun(models, plan, SamplingParams()).into(Path(folder), probes)
        ran, high = time.perf_counter(), peak()
        write_report(Path(folder))  # once more, to know what of it this was
        done = time.perf_counter()
    return {
        "seconds": 2 * ran - start - done,
        "report": done - ran,
        "extra_MB": (high - own) / 1e6,
        "before_MB": before / 1e6,
    }


def held(engine: Engine) -> int:
    """Bytes of weights and of the whole KV-cache."""
    info = engine.info
    return int(str(info["weight_bytes"])) + int(str(info["kv_cache_bytes"]))


def measure(argv: list[str], turns: int) -> dict[str, Any]:
    """Medians of `turns` processes of each kind, in turn."""
    found: dict[str, list[dict[str, float]]] = {"score": [], "run": []}
    for _ in range(turns):
        for part, results in found.items():
            command = [sys.executable, "-m", "benchmarks.bench_shift_run", *argv, "--part", part]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    middle = {
        f"{part}_{name}": statistics.median(r[name] for r in results)
        for part, results in found.items()
        for name in results[0]
    }
    ratios = [
        r["seconds"] / s["seconds"] for s, r in zip(found["score"], found["run"], strict=True)
    ]
    return {**middle, "ratio": statistics.median(ratios), "ratios": ratios}


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("--part", choices=("score", "run"), help="one of them, in this process")
    args = read_arguments(parser, argv)
    if args.part:
        print(json.dumps({"score": score, "run": run}[args.part](args)), flush=True)
        return
    found = measure(list(argv), 1 if args.small else TURNS)
    print(f"scoring {found['score_seconds']:.2f} s, the run {found['run_seconds']:.2f} s:", end=" ")
    print(f"{found['ratio']:.3f} times ({', '.join(f'{r:.3f}' for r in found['ratios'])})")
    print(f"its report {found['run_report']:.2f} s")
    print(
        f"at most {found['run_extra_MB']:.0f} MB beside weights and KV-cache, report included; "
        f"the process held {found['run_before_MB']:.0f} MB at most before"
    )
    if args.json:
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
