"""What only this server has: scores and token shifts over HTTP, and prompts that are pinned."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..engine_inputs import as_list
from ..engine_outputs import score_output
from ..outputs import ScoreOutput
from ..prompt import NAMED, UrialPrompt
from ..sampling import SamplingParams
from ..shift_data import CLASSES, Answer
from ..sources import Probe
from ..token_shift import sampling, shift_of_answers, side_of, written
from ..token_shift_plan import SAME, Plan
from ..token_shift_result import TokenShift
from .models import CHAT, Served, beside
from .openai_forms import Object
from .refusal import bad, too_late
from .replies import Gone, Json, whole
from .schema import PinBody, PromptBody, ScoreBody, ShiftBody
from .state import MOST_FIGURES, State
from .worker import FOR_WHOLE

COLUMNS = (
    *("answer", "position", "token_id", "base_rank", "base_ties", "base_logprob", "base_entropy"),
    *("base_top_ids", "base_top_logprobs", "aligned_rank", "aligned_logprob", "aligned_entropy"),
    *("kl_aligned_base", "kl_base_aligned"),
)
MOST_ROWS = 16_384  # of one token shift: a row a token
ROWS_AT_ONCE = 512  # after which it is looked whether the client is still there
USUAL_TOKENS = 128  # of its answers


def router(state: State) -> APIRouter:
    api = APIRouter(tags=["urial-engine"])

    @api.post("/v1/score")
    async def score(body: ScoreBody, request: Request) -> Response:
        return await whole(request, _score(state, body))

    @api.post("/v1/token_shift")
    async def token_shift(body: ShiftBody, request: Request) -> Response:
        return await whole(request, _shift(state, body))

    @api.get("/v1/prompts")
    async def prompts() -> Response:
        return Json({"prompts": [_prompt(state, name) for name in state.models.prompts]})

    @api.put("/v1/prompts/{name}")
    async def put(name: str, body: PromptBody) -> Response:
        served = state.models.get(body.model)
        with state.worker.room_for(served.engine, 1):
            await state.models.put(served, name, body.text)
        return Json(_prompt(state, name))

    @api.delete("/v1/prompts/{name}")
    async def remove(name: str) -> Response:
        await state.models.remove(name)
        return Json({"name": name, "deleted": True})

    @api.post("/v1/prompts/{name}/pin")
    async def pin(name: str, body: PinBody) -> Response:
        served = state.models.get(body.model)
        with state.worker.room_for(served.engine, 1):
            await state.models.pin(served, name)
        return Json(_prompt(state, name))

    @api.delete("/v1/prompts/{name}/pin")
    async def unpin(name: str, model: str | None = None) -> Response:
        await state.models.unpin(state.models.get(model), name)
        return Json(_prompt(state, name))

    return api


def _prompt(state: State, name: str) -> Object:
    """A prompt, and where it stands in the cache of each model."""
    each = {}
    for served in state.models.all.values():
        pinned = served.pins.get(name)
        about = {} if pinned is None else dict(pinned.info)
        each[served.name] = {
            "state": "cold" if pinned is None else "pinned",
            "tokens": about.get("prefix_tokens"),
            "source": about.get("prefix_source"),
            "seconds": about.get("prefix_seconds"),
        }
    return {"name": name, "text": state.models.prompt(name).text, "models": each}


async def _score(state: State, body: ScoreBody) -> Object:
    body.pass_over_unknown(state.passed_over)
    prompts, continuations = as_list(body.prompt), as_list(body.continuation)
    if not prompts:
        raise bad("prompt is an empty list; give it at least one prompt", "prompt")
    if len(prompts) != len(continuations):
        raise bad(f"{len(prompts)} prompts and {len(continuations)} continuations: not pairs")
    served = state.served(body.model, len(prompts))
    asked = await state.models.text(served, body.urial_prompt, "")
    requests = await beside(
        sum(map(len, (*prompts, *continuations))),
        lambda: [
            served.engine.scoring(*pair, body.top_k, f"prompt {i}", prefix=asked.prefix)
            for i, pair in enumerate(zip(prompts, continuations, strict=True))
        ],
    )
    rows = sum(len(request.ids) - request.rows_from for request in requests)
    if rows * (1 + body.top_k) > MOST_FIGURES:
        message = (
            f"{rows} tokens with {body.top_k} others each: at most {MOST_FIGURES} in one request"
        )
        raise bad(message, "continuation")
    until = state.limits.until(body.deadline)
    with state.worker.begin(served.engine, requests, until, every=FOR_WHOLE) as jobs:
        for job in jobs:
            await job.done()
    state.metrics.scored(requests)
    scores = [score_output(request.scored) for request in requests if request.scored]
    results = await beside(
        rows * (1 + body.top_k), lambda: [_score_json(served, s) for s in scores]
    )
    return {"model": served.name, "results": results}


def _score_json(served: Served, score: ScoreOutput) -> Object:
    columns: Object = {f.name: getattr(score, f.name).tolist() for f in fields(ScoreOutput)}
    tokens = [served.engine.tokenizer.token_text(token) for token in columns["token_ids"]]
    return {**columns, "tokens": tokens}


async def _shift(state: State, body: ShiftBody) -> Object:
    """Answers are made as any other request's, so that they share steps and can be dropped; then
    both models read them, in a thread."""
    until = state.limits.until(body.deadline)
    body.pass_over_unknown(state.passed_over)
    base, aligned = (state.models.get(name) for name in (body.base, body.aligned))
    if len(body.queries) > state.limits.max_queries:
        raise bad(f"{len(body.queries)} queries: at most {state.limits.max_queries}", "queries")
    if body.answers is not None and len(body.answers) != len(body.queries):
        raise bad(f"{len(body.answers)} answers for {len(body.queries)} queries", "answers")
    of_base = side_of("base", base.engine, _prompt_of(state, "base_prompt", body.base_prompt))
    theirs = _prompt_of(state, "aligned_prompt", body.aligned_prompt)
    plan = Plan.make(of_base, side_of("aligned", aligned.engine, theirs), body.top_k)
    names = ("temperature", "repetition_penalty", "seed")
    most = state.limits.new_tokens(body.max_tokens, USUAL_TOKENS)
    params = SamplingParams(max_tokens=most, **{name: getattr(body, name) for name in names})
    params = state.limits.check(params)
    probes = [_probe(place, body) for place in range(len(body.queries))]
    if body.answers is None:
        answers = await _generated(state, plan, aligned, probes, params, until)
    else:
        size = sum(map(len, [*body.queries, *body.answers]))
        answers = await beside(size, lambda: [plan.given(probe) for probe in probes])
    if (rows := sum(len(answer.token_ids) for answer in answers)) > MOST_ROWS:
        raise bad(f"answers of {rows} tokens: at most {MOST_ROWS} in one request", "answers")
    admitted = body.answers is None  # with the requests that made them
    room = state.worker.room_for(aligned.engine, len(answers), admitted=admitted)
    with room, _wanted(until) as go_on:
        read = partial(shift_of_answers, plan, base.engine, aligned.engine, answers)
        shift = await asyncio.to_thread(read, rows=ROWS_AT_ONCE, before_each=go_on)
    return _shift_json(shift)


@contextmanager
def _wanted(until: float | None) -> Iterator[Callable[[], None]]:
    """For a thread, which nobody can cancel: asks whether the result is still waited for, and not
    later than `until`."""
    left = threading.Event()

    def go_on() -> None:
        if left.is_set():
            raise Gone
        if until is not None and time.monotonic() > until:
            raise too_late()

    try:
        yield go_on
    finally:
        left.set()


async def _generated(
    state: State,
    plan: Plan,
    aligned: Served,
    probes: Sequence[Probe],
    params: SamplingParams,
    until: float | None,
) -> list[Answer]:
    size = sum(len(probe.query) for probe in probes)
    asked = await beside(size, lambda: [plan.ask(probe) for probe in probes])
    requests = [
        aligned.engine.generation(one.first, sampling(plan, one, params), one.probe.where)
        for one in asked
    ]
    with state.running(aligned, requests, until, FOR_WHOLE) as jobs:
        for job in jobs:
            await job.done()
    samples = [request.samples[0].output() for request in requests]
    return [written(plan, one, sample) for one, sample in zip(asked, samples, strict=True)]


def _prompt_of(state: State, field: str, spec: str) -> UrialPrompt | str:
    """A prompt by its name; anything else is a form or a template, as `prompt_form` takes them."""
    if spec in state.models.prompts:
        return state.models.prompts[spec]
    if spec in (CHAT, SAME, *NAMED) or "{query}" in spec:
        return spec
    names = ", ".join((CHAT, SAME, *NAMED, *state.models.prompts))
    raise bad(f"{field}={spec!r}: one of {names}, or a template that holds {{query}}", field)


def _probe(place: int, body: ShiftBody) -> Probe:
    answer = body.answers[place] if body.answers else None
    text, ids = (answer, None) if isinstance(answer, str) else (None, answer)
    where = f"queries[{place}]"
    return Probe(place, body.queries[place], text, ids, None, None, None, 0, where)


def _shift_json(shift: TokenShift) -> Object:
    """A row a token, as columns; and what they come to."""
    columns = {name: getattr(shift, name).tolist() for name in COLUMNS}
    tokens = [piece for answer in shift.answers for piece in answer.pieces]
    classes = [CLASSES[i] for i in shift.shift_class.tolist()]
    answers = [
        {
            "query": a.query,
            "text": a.text,
            "token_ids": a.token_ids,
            "finish_reason": a.finish_reason,
        }
        for a in shift.answers
    ]
    rows = {**columns, "token": tokens, "shift_class": classes}
    return {
        "answers": answers,
        "rows": rows,
        "summary": {"ratios": shift.ratios(), "tokens": len(tokens)},
    }
