"""Times whole answers through the engine, as a user asks for them: a model's folder goes in; tokens
a second come out, for batches of questions behind one prefix that all of them share."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu_check.clock import Clock
from benchmarks.gpu_check.report import Row
from benchmarks.workload import Workload
from urial_engine import Engine, SamplingParams, UrialPrompt

PART = "end to end"


def rows(clock: Clock, model: Path | None, device: str) -> list[Row]:
    """`model`: None says that it is missing."""
    if model is None:
        return [Row(PART, "answers through the engine", found="skipped: needs --model DIR")]
    texts = Workload.load(None, small=clock.small)
    batches: tuple[int, ...] = (1, 8, 32)
    if clock.small:
        batches = (1, 2)
        texts = replace(texts, prompt=UrialPrompt(texts.prompt.text[:40]), new_batch=2)
    tokens = texts.new_batch
    params, runs = SamplingParams(max_tokens=tokens, ignore_eos=True), itertools.count()
    found = []
    with Engine(model, prefix=texts.prompt, device=device) as engine:
        for batch in batches:

            def call(batch: int = batch) -> None:
                engine.generate(texts.suffixes(next(runs))[:batch], params)

            took = clock.wall(call, repeats=3)
            what = f"{model.name}: {tokens} tokens at batch {batch}, prefix shared"
            found.append(Row(PART, what, wall=took, tokens=batch * tokens / took))
    return found
