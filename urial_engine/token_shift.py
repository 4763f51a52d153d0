"""Token distribution shift: what tuning (or prompting) changed, token by token.

Enters: a base and an aligned engine (or one engine twice, under two contexts) and queries. Leaves:
for every answer token the base model's rank, log-probabilities under both, KL both ways, entropies
and the top-k of both (arXiv 2312.01552, section 2), from one teacher-forced pass a model and
context; the logits of a position are never held.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from .engine_inputs import check_top
from .errors import ParameterError, PromptError
from .head import compare_heads
from .outputs import CompletionOutput
from .prompt import UrialPrompt
from .sampling import SamplingParams
from .shift_data import Answer
from .sources import Probe, Skipped
from .token_shift_measure import ROWS, Compare, groups, join, measure, read_aligned
from .token_shift_plan import Asked, Plan, Side, named_prompts, pieces_of
from .token_shift_result import TokenShift

if TYPE_CHECKING:
    from .engine import Engine

LeaveOut = Callable[[Skipped], None]


def token_shift(
    base: Engine,
    aligned: Engine,
    queries: str | Sequence[str],
    *,
    base_prompt: Any,
    aligned_prompt: Any = "chat",
    params: SamplingParams | None = None,
    answers: Sequence[str | Sequence[int]] | None = None,
    top_k: int = 10,
    map_tokens: Mapping[str, str] | None = None,
    published: bool = False,
    progress: bool = False,
) -> TokenShift:
    """The aligned model answers each query under its own template; the base model reads the query
    under its template and the answer's token ids; each answer token gets its rank,
    log-probabilities and divergences.

    `base` and `aligned` may be one engine: then it is the prompt's shift that is measured. A prompt
    is what `prompt_form` takes, or "same" for the base: what the aligned model reads. A mapping of
    names to prompts measures each of them, a context a pair; the first of the aligned ones writes
    the answers. `answers` are token ids, or texts that the aligned tokenizer splits; None generates
    them (greedily unless `params` says otherwise; `params.n` of each query).

    Raises `ParameterError` for two models that do not share a vocabulary; see `SharedVocabulary`
    for what is shared, and `map_tokens`. `published` measures once more in the conventions of the
    published analysis code, see `Published`.
    """
    sides = side_of("base", base, base_prompt), side_of("aligned", aligned, aligned_prompt)
    plan = Plan.make(*sides, top_k, map_tokens=map_tokens, published=published)
    probes = _probes(queries, answers)
    params = params or SamplingParams(max_tokens=256)
    return shift_of(plan, base, aligned, probes, params, progress=progress)


def shift_of(
    plan: Plan,
    base: Engine,
    aligned: Engine,
    probes: Sequence[Probe],
    params: SamplingParams,
    *,
    progress: bool = False,
    leave_out: LeaveOut | None = None,
) -> TokenShift:
    """What the plan asks of two open engines; answers are generated where the probes have none."""
    for engine in (base, aligned):
        check_top("top_k", plan.top_k, engine.backend)
    asked = ask_all(plan, probes, leave_out)
    told = [one for one in asked if isinstance(one, Answer)]
    if queries := [one for one in asked if isinstance(one, Asked)]:
        told = _generate(plan, aligned, queries, params, progress)
    return shift_of_answers(plan, base, aligned, told)


def shift_of_answers(
    plan: Plan,
    base: Engine,
    aligned: Engine,
    answers: Sequence[Answer],
    *,
    rows: int = ROWS,
    before_each: Callable[[], None] = lambda: None,
) -> TokenShift:
    """Both engines read the answers in their contexts, as many at a time as have `rows` tokens;
    what `before_each` of these groups raises ends it."""
    with ExitStack() as stack:
        compare = heads_in_memory(plan, base, aligned, stack)
        parts = []
        for group in [*groups(answers, rows)] or [[]]:
            before_each()
            of_aligned = read_aligned(plan, aligned, group)
            parts.append(measure(plan, base, compare, group, of_aligned))
    return TokenShift.of(join(parts))


def ask_all(
    plan: Plan, probes: Sequence[Probe], leave_out: LeaveOut | None
) -> list[Answer | Asked]:
    """What stands to be measured, or to be answered before: nothing is begun before all are asked.

    `leave_out` is told of a probe that cannot be asked (too long, a token that a model lacks); None
    raises what is wrong with it.
    """
    asked: list[Answer | Asked] = []
    for probe in probes:
        try:
            asked.append(plan.given(probe) if is_given(probe) else plan.ask(probe))
        except (ParameterError, PromptError) as error:
            if leave_out is None:
                raise
            why = str(error).removeprefix(probe.where).removeprefix(": ").strip()
            leave_out(Skipped(probe.where, why))
    if probes and not asked:
        raise ParameterError(f"none of the {len(probes)} queries can be asked")
    return asked


def side_of(name: str, engine: Engine, prompts: Any) -> Side:
    """The texts of an engine."""
    named = named_prompts(prompts)
    return Side(name, engine.tokenizer, engine.context, engine.config.vocab_size, named)


def heads_in_memory(plan: Plan, base: Engine, aligned: Engine, stack: ExitStack) -> Compare:
    """Both engines' own heads; where the vocabularies differ, heads of the shared tokens."""
    heads = (
        [base, aligned]
        if plan.shared.whole
        else [
            stack.enter_context(engine.open_head(rows))
            for engine, rows in ((base, plan.shared.base_ids), (aligned, plan.shared.aligned_ids))
        ]
    )
    return lambda hidden, targets, k, other: compare_heads(
        heads[0], hidden, targets, k, heads[1], other
    )


def _probes(
    queries: str | Sequence[str], answers: Sequence[str | Sequence[int]] | None
) -> list[Probe]:
    queries = [queries] if isinstance(queries, str) else list(queries)
    if answers is not None and len(answers) != len(queries):
        raise ParameterError(f"{len(answers)} answers for {len(queries)} queries; give one each")
    given: Sequence[Any] = answers if answers is not None else [None] * len(queries)
    return [
        Probe(
            id=i + 1,
            query=query,
            answer=own if isinstance(own, str) else None,
            answer_token_ids=None if own is None or isinstance(own, str) else list(own),
            prompt=None,
            dataset=None,
            generator=None,
            sample=0,
            where=f"queries[{i}]",
        )
        for i, (query, own) in enumerate(zip(queries, given, strict=True))
    ]


def _generate(
    plan: Plan, aligned: Engine, asked: Sequence[Asked], params: SamplingParams, progress: bool
) -> list[Answer]:
    """Under the first of the aligned prompts."""
    each = [sampling(plan, one, params) for one in asked]
    prompts = [one.first for one in asked]
    outputs = aligned.generate(prompts, each, progress=progress) if prompts else []
    if not all(output.finished for output in outputs):
        # Ctrl-C: generate() came back early, and a cut answer would count as a whole one.
        raise KeyboardInterrupt
    return [
        written(plan, one, output)
        for one, outcome in zip(asked, outputs, strict=True)
        for output in outcome.outputs
    ]


def is_given(probe: Probe) -> bool:
    """Whether it brings an answer; of a file all do, or none."""
    return probe.answer is not None or probe.answer_token_ids is not None


def sampling(plan: Plan, asked: Asked, params: SamplingParams) -> SamplingParams:
    """How one query is answered: no longer than every context has room for, in URIAL's form with
    its stop strings, and with random numbers of its own."""
    room, seed, stop = asked.room, params.seed, params.stop_strings
    most = room if params.max_tokens is None else min(params.max_tokens, room)
    if seed is not None and params.temperature > 0:
        # Numbers depend on seed and position alone: queries with one seed would share them.
        text = json.dumps([seed, asked.probe.id])
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
    if plan.between_fences(asked.probe):
        stop = (*stop, *(s for s in UrialPrompt("").stop if s not in stop))
    return replace(params, max_tokens=most, seed=seed, stop=stop)


def written(plan: Plan, asked: Asked, output: CompletionOutput) -> Answer:
    """An answer as it was generated; in URIAL's form without the fence that closes it, and all that
    follows."""
    ids, text, reason = output.token_ids, output.text, output.finish_reason
    if plan.between_fences(asked.probe):
        text = UrialPrompt("").clean(text)
        pieces = pieces_of(plan.aligned.tokenizer, ids, special=False)
        ends = list(accumulate(map(len, pieces)))
        start = "".join(pieces).find(text)
        assert start >= 0, "a cleaned text is a part of it"
        ids = ids[: bisect_left(ends, start + len(text)) + 1] if text else []
        reason = "stop" if len(ids) < len(output.token_ids) else reason
    return plan.answer(asked, ids, text=text, finish_reason=reason, sample=output.index)
