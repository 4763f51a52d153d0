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
from .engine_inputs import check_top
from .head import compare_heads
from .prompt import UrialPrompt
from .sampling import SamplingParams, fresh_seed
from .scheduler_requests import Generation
from .shift_data import Answer
from .sources import Probe, Skipped
from .token_shift import LeaveOut, ask_all, heads_in_memory, is_given, sampling, written
from .token_shift_files import FORMAT, arrow, key
from .token_shift_kept import RUN, Kept, locked
from .token_shift_measure import Compare, groups, measure, read_aligned
from .token_shift_models import Models
from .token_shift_plan import Asked, Plan, Side
from .token_shift_report import write_report

Show = Callable[[str, int, int], None]  # what is being done, how much of it is, how much there is


@dataclass(frozen=True)
class ShiftRun:
    """All that a run depends on besides its queries. `plan` says what is asked of the `models`,
    `params` how answers are sampled where the probes have none."""

    models: Models
    plan: Plan
    params: SamplingParams
    map_tokens: Mapping[str, str] = field(default_factory=dict)

    def into(
        self,
        folder: Path,
        probes: Sequence[Probe],
        show: Show = lambda *_: None,
        *,
        left_out: Sequence[Skipped] = (),
        leave_out: LeaveOut | None = None,
    ) -> dict[str, Any]:
        """Everything that is missing is computed, and the folder is finished. Returns its summary.

        `left_out`: rows of the input that are no probes, which the folder lists. `leave_out` is
        told of a probe that cannot be asked (too long, a token that a model lacks), which is then
        left out too; None raises what is wrong with it. ParameterError where the folder was begun
        with other parameters, or a probe of it has another query or answer now.
        """
        arrow()
        dropped = list(left_out)

        def drop(row: Skipped) -> None:
            dropped.append(row)
            if leave_out is not None:
                leave_out(row)

        asked = ask_all(self.plan, probes, drop if leave_out is not None else None)
        run = replace(self, params=_with_seed(self.params, folder / RUN))
        with locked(folder):
            with Kept(folder, probes) as kept:
                kept.settle(run._settings(given=is_given(probes[0])), self.models.names)
                (run._one_by_one if self.models.sequential else run._together)(kept, asked, show)
                kept.add_left_out(dropped)
                kept.finish()
            return write_report(folder)

    def _together(self, kept: Kept, asked: Sequence[Answer | Asked], show: Show) -> None:
        with self.models.opened() as (base, aligned), ExitStack() as stack:
            kept.settle(self._identity("base", base) | self._identity("aligned", aligned))
            todo = self._todo(kept, aligned, asked, show)
            compare = heads_in_memory(self.plan, base, aligned, stack)
            for group in _shown(todo, "measuring", show):
                states = read_aligned(self.plan, aligned, group)
                kept.add(measure(self.plan, base, compare, group, states))

    def _one_by_one(self, kept: Kept, asked: Sequence[Answer | Asked], show: Show) -> None:
        with self.models.aligned.open() as aligned:
            kept.settle(self._identity("aligned", aligned))
            todo = self._todo(kept, aligned, asked, show)
            for group in _shown(todo, "reading (aligned)", show):
                if kept.states(group) is None:
                    kept.add_states(group, read_aligned(self.plan, aligned, group))
        with ExitStack() as stack:
            base = stack.enter_context(self.models.base.open())
            kept.settle(self._identity("base", base))
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

    def _todo(
        self, kept: Kept, aligned: Engine, asked: Sequence[Answer | Asked], show: Show
    ) -> list[Answer]:
        """Answers that are not measured yet; the aligned model writes what it is asked for."""
        queries = [one for one in asked if isinstance(one, Asked)]
        answers = [one for one in asked if isinstance(one, Answer)]
        if queries:
            answers = self._generate(kept, aligned, queries, show)
        return [a for a in answers if key(a) not in kept.measured]

    def _generate(
        self, kept: Kept, aligned: Engine, asked: Sequence[Asked], show: Show
    ) -> list[Answer]:
        """Every answer that is not measured, those that an earlier run has finished included."""
        done, samples = kept.generated(), range(self.params.n)
        pending: dict[int, tuple[Asked, Generation]] = {}
        running = 2 * int(self.models.aligned.options.get("max_batch", 32))
        for number, one in enumerate(asked):
            own = one.probe.id
            if own not in done and not kept.measured.issuperset((own, s) for s in samples):
                params = sampling(self.plan, one, self.params)
                pending[number] = one, aligned.generation(one.first, params, one.probe.where)

        def keep_finished() -> None:
            # Requests leave the queue in order, so those that run are the first of these.
            for number, (one, request) in list(islice(pending.items(), running)):
                if request.finished:
                    del pending[number]
                    outputs = [sample.output() for sample in request.samples]
                    if request.error is None and all(o.finish_reason != "abort" for o in outputs):
                        done[one.probe.id] = [written(self.plan, one, o) for o in outputs]
                        kept.add_generated(one.probe, done[one.probe.id])
            show("answering", len(asked) - len(pending), len(asked))

        try:
            aligned.run([request for _, request in pending.values()], keep_finished)
        finally:
            keep_finished()
        return [answer for one in asked for answer in done.get(one.probe.id, [])]

    def _identity(self, side: str, engine: Engine) -> dict[str, object]:
        """Of a model, what its results depend on. An error before any work where it cannot report
        as many tokens as are wanted."""
        check_top("top_k", self.plan.top_k, engine.backend)
        files = (self.models.base if side == "base" else self.models.aligned).tokenizer_files()
        own = {**engine.identity, "build": engine.backend.build, "tokenizer_files": files}
        return {f"{side}_{name}": value for name, value in own.items()}

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
            **{
                f"{side.name}_prompts": {n: describe(p, side) for n, p in side.prompts.items()}
                for side in (self.plan.base, self.plan.aligned)
            },
            "map_tokens": dict(self.map_tokens),
            "shared_tokens": len(shared.base_ids),
            "whole_vocabulary": shared.whole,
        }


def describe(prompt: Any, side: Side) -> Any:
    """A prompt as run.json has it: its whole text, or what the prompt says of itself."""
    if prompt == "chat":
        return {"chat": side.tokenizer.chat_template}
    if isinstance(prompt, UrialPrompt):
        return {"urial": prompt.text}
    return prompt.describe() if hasattr(prompt, "describe") else prompt


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
