"""Does a token shift find what was planted? `make validate-shift`, about two minutes a seed.

A seed has its style, its questions to tune on and others to ask. Leaves validate_shift.json,
validate_shift.md and the tuned models, which a later run of the same settings uses again. Ends with
code 1 where a check fails.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.limits import machine
from benchmarks.workload import ROOT, demo_model
from urial_engine import Engine, SamplingParams, TokenShift, token_shift

from .check import Measured, checks, control_figures, figures
from .exact import differences
from .plant import Plant, examples, split
from .report import markdown
from .tune import Recipe, tune, tuned_folder


@dataclass(frozen=True, slots=True)
class Size:
    tuned_on: int = 80  # questions
    held_out: int = 40
    new: int = 256  # tokens of an answer at most
    recipe: Recipe = field(default_factory=Recipe)


SMALL = Size(tuned_on=4, held_out=3, new=24, recipe=Recipe(epochs=1, batch=2, threads=1))


def shift_of(base: Engine, other: Engine, questions: list[str], new: int) -> TokenShift:
    """Both models under their own chat template; `other` answers greedily."""
    return token_shift(
        base,
        other,
        questions,
        base_prompt="chat",
        aligned_prompt="chat",
        params=SamplingParams(max_tokens=new),
        top_k=0,
    )


def measured_of(found: TokenShift, plant: Plant) -> Measured:
    planted = [plant.where(answer.token_ids) for answer in found.answers]
    return Measured(
        found.answer, found.position, found.token_id, found.base_rank, np.concatenate(planted)
    )


def run(seed: int, base: Engine, model: Path, size: Size, out: Path) -> dict[str, Any]:
    """All of one seed: plants, tunes, measures and judges."""
    plant = Plant.of(seed, base)
    tuned_on, held_out = split(seed, size.tuned_on, size.held_out)
    made = examples(base, plant, tuned_on)
    folder = tuned_folder(str(base.info["weights"]), made, seed, size.recipe, out)
    tuning = tune(model, made, seed, size.recipe, folder, partial(told, seed))
    with Engine(folder, threads=size.recipe.threads) as tuned:
        shift = shift_of(base, tuned, held_out, size.new)
        exact = differences(base, tuned, shift)
    control = shift_of(base, base, held_out, size.new)
    found = figures(measured_of(shift, plant), plant.firsts, plant.words, plant.marks)
    compared = control_figures(measured_of(control, plant))
    text = base.tokenizer.token_text
    return {
        "style": plant.style._asdict(),
        "tuning": tuning,
        "figures": {**found, "most_shifted": [[text(i), n] for i, n in found["most_shifted"]]},
        "control": compared,
        "exact": exact,
        "checks": [{**c._asdict(), "passed": c.passed} for c in checks(found, compared, exact)],
    }


def told(seed: int, step: int, steps: int, loss: float) -> None:
    print(f"seed {seed}: step {step} of {steps}, loss {loss:.3f}", flush=True)


def options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2", help="numbers, by commas (default: 0,1,2)")
    parser.add_argument("--model", type=Path, help="folder of the base (default: the demo's model)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "validate_shift")
    parser.add_argument("--small", action="store_true", help="a few steps only: does it run?")
    args = parser.parse_args(argv)
    try:
        args.seeds = [int(seed) for seed in args.seeds.split(",")]
    except ValueError:
        parser.error(f"--seeds {args.seeds}: must be whole numbers, by commas")
    if min(args.seeds) < 0:
        parser.error(f"--seeds {min(args.seeds)}: a seed is at least 0")
    return args


def main(argv: list[str] | None = None) -> int:
    args = options(argv)
    size, model = SMALL if args.small else Size(), args.model or demo_model()
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"machine": machine(), "size": asdict(size), "seeds": {}}
    with Engine(model, threads=size.recipe.threads) as base:
        found["model"] = Path(model).name
        for seed in args.seeds:
            found["seeds"][str(seed)] = run(seed, base, model, size, args.out)
    (args.out / "validate_shift.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    page = markdown(found)
    (args.out / "validate_shift.md").write_text(page, "utf-8")
    print(page)
    every = [check for seed in found["seeds"].values() for check in seed["checks"]]
    return 0 if all(check["passed"] for check in every) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
