"""A token shift that is kept as it comes: queries and two models go in; a folder comes out.

The folder can be taken up wherever a run was ended, and given more queries. run.json says with what
it was made; work/ has what is not yet finished: generated.jsonl (answers as they are finished), a
pair of files for each group of answers that was measured, and, where the two models are opened one
after the other, the aligned model's hidden states. At the end all of that becomes the files of
`token_shift_files`, which are those of an unbroken run, and work/ goes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from .engine import Engine
from .head import compare_heads
from .prompt import UrialPrompt
from .sampling import SamplingParams, fresh_seed
from .scheduler_requests import Generation
from .shift_data import Answer
from .sources import Probe
from .token_shift import heads_in_memory, is_given, question, written
from .token_shift_files import FORMAT, arrow, key, write_tables
from .token_shift_kept import RUN, Kept
from .token_shift_measure import Compare, groups, measure, read_aligned
from .token_shift_models import Models
from .token_shift_plan import Plan
from .token_shift_result import TokenShift

OUTPUT = ("token_ids", "text", "finish_reason", "sample")  # of a generated answer, as it is kept
Show = Callable[[str, int, int], None]  # what is being done, how much of it is, how much there is


@dataclass(frozen=True)
class ShiftRun:
    """All that a run depends on besides its queries. `plan` says what is asked of the `models`,
    `params` how answers are sampled where the probes have none."""

    models: Models
    plan: Plan
    params: SamplingParams
    map_tokens: Mapping[str, str] = field(default_factory=dict)

    def into(self, folder: Path, probes: Sequence[Probe], show: Show) -> TokenShift:
        """Everything that is missing is computed, and the folder has its tables; `write_report`
        makes the rest of them. Returns all of it.

        ParameterError where the folder was begun with other parameters, or a probe of it has
        another query or answer now.
        """
        arrow()
        given = is_given(probes[0])
        told = [self.plan.given(probe) for probe in probes] if given else []
        for probe in probes:  # nothing is begun where a query is too long
            self.plan.room(probe)
        run = replace(self, params=_with_seed(self.params, folder / RUN))
        with Kept(folder, probes) as kept:
            models = {"base": self.models.base, "aligned": self.models.aligned}
            names = {f"{side}_model": Path(model.path).name for side, model in models.items()}
            kept.settle(run._settings(given=given), names)
            work = run._one_by_one if self.models.sequential else run._together
            work(kept, probes, told, show)
            shift = TokenShift.of(kept.whole())
            write_tables(shift, folder)
            kept.finish()
        return shift

    def _together(
        self, kept: Kept, probes: Sequence[Probe], told: Sequence[Answer], show: Show
    ) -> None:
        with self.models.opened() as (base, aligned), ExitStack() as stack:
            kept.settle(_identity("base", base) | _identity("aligned", aligned))
            todo = _missing(kept, told or self._generate(kept, aligned, probes, show))
            compare = heads_in_memory(self.plan, base, aligned, stack)
            for group in _shown(todo, "measuring", show):
                states = read_aligned(self.plan, aligned, group)
                kept.add(measure(self.plan, base, compare, group, states))

    def _one_by_one(
        self, kept: Kept, probes: Sequence[Probe], told: Sequence[Answer], show: Show
    ) -> None:
        with self.models.aligned.open() as aligned:
            kept.settle(_identity("aligned", aligned))
            todo = _missing(kept, told or self._generate(kept, aligned, probes, show))
            for group in _shown(todo, "reading (aligned)", show):
                if kept.states(group) is None:
                    states = read_aligned(self.plan, aligned, group)
                    kept.add_states(group, states, aligned.backend.hidden_dtype)
        with ExitStack() as stack:
            base = stack.enter_context(self.models.base.open())
            kept.settle(_identity("base", base))
            compare = self._head_beside(base, stack)
            for group in _shown(todo, "measuring", show):
                kept_states = kept.states(group)
                assert kept_states is not None, "written above, under the run's lock"
                kept.add(measure(self.plan, base, compare, group, kept_states))

    def _head_beside(self, base: Engine, stack: ExitStack) -> Compare:
        """The base model, and of the aligned one its head alone."""
        shared = self.plan.shared
        rows = None if shared.whole else shared.aligned_ids
        aligned = stack.enter_context(self.models.aligned.open_head(rows))
        own = base if shared.whole else stack.enter_context(base.open_head(shared.base_ids))
        return lambda hidden, targets, k, other: compare_heads(
            own, hidden, targets, k, aligned, other
        )

    def _generate(
        self, kept: Kept, aligned: Engine, probes: Sequence[Probe], show: Show
    ) -> list[Answer]:
        """Every answer, those that an earlier run has finished included."""
        done = kept.generated()
        samples = range(self.params.n)
        whole = {p.id for p in probes if kept.measured.issuperset((p.id, s) for s in samples)}
        pending: dict[int, tuple[Probe, Generation]] = {}
        running = 2 * int(self.models.aligned.options.get("max_batch", 32))
        for number, probe in enumerate(probes):
            if probe.id not in done and probe.id not in whole:
                ids, own = question(self.plan, probe, self.params)
                pending[number] = probe, aligned.generation(ids, own, probe.where)

        def keep_finished() -> None:
            # Requests leave the queue in order, so those that run are the first of these.
            for number, (probe, one) in list(islice(pending.items(), running)):
                if one.finished:
                    del pending[number]
                    outputs = [sample.output() for sample in one.samples]
                    if one.error is None and all(o.finish_reason != "abort" for o in outputs):
                        told = [written(self.plan, probe, output) for output in outputs]
                        kept.add_generated(
                            probe, [{n: getattr(a, n) for n in OUTPUT} for a in told]
                        )
            show("answering", len(probes) - len(pending), len(probes))

        try:
            aligned.run([one for _, one in pending.values()], keep_finished)
        finally:
            keep_finished()
        done = kept.generated()
        return [
            self.plan.answer(probe, **output)
            for probe in probes
            for output in done.get(probe.id, [])
        ]

    def _settings(self, *, given: bool) -> dict[str, Any]:
        """All that a row depends on beside the queries and the models themselves; how to sample,
        where that is done."""
        sampling = {} if given else {f"sampling_{n}": v for n, v in asdict(self.params).items()}
        shared = self.plan.shared
        return {
            "command": "shift",
            "format": FORMAT,
            "version": version("urial-engine"),
            "generated": not given,
            **sampling,
            "top_k": self.plan.top_k,
            "published": self.plan.published,
            "contexts": [c._asdict() for c in self.plan.contexts],
            "base_prompts": {n: describe(p) for n, p in self.plan.base.prompts.items()},
            "aligned_prompts": {n: describe(p) for n, p in self.plan.aligned.prompts.items()},
            "map_tokens": dict(self.map_tokens),
            "shared_tokens": len(shared.base_ids),
            "whole_vocabulary": shared.whole,
        }


def describe(prompt: Any) -> Any:
    """A prompt as run.json has it: its whole text, or what the prompt says of itself."""
    if isinstance(prompt, UrialPrompt):
        return {"urial": prompt.text}
    return prompt.describe() if hasattr(prompt, "describe") else prompt


def _identity(side: str, engine: Engine) -> dict[str, object]:
    own = {**engine.identity, "build": engine.backend.build}
    return {f"{side}_{name}": value for name, value in own.items()}


def _missing(kept: Kept, answers: Sequence[Answer]) -> list[Answer]:
    return [a for a in answers if key(a) not in kept.measured]


def _shown(answers: Sequence[Answer], what: str, show: Show) -> Iterator[list[Answer]]:
    """Groups, and how many tokens of them are done."""
    total, done = sum(len(a.token_ids) for a in answers), 0
    for group in groups(answers):
        show(what, done, total)
        yield group
        done += sum(len(a.token_ids) for a in group)
    show(what, done, total)


def _with_seed(params: SamplingParams, header: Path) -> SamplingParams:
    """One seed for all of the run: that which it was begun with, else a fresh one."""
    if params.temperature == 0 or params.seed is not None:
        return params
    seed = fresh_seed()
    with suppress(OSError, ValueError, KeyError, TypeError):
        seed = int(json.loads(header.read_bytes())["sampling_seed"])
    return replace(params, seed=seed)
