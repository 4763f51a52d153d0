"""The API of text-generation-inference: a body goes in; its JSON, or its stream of tokens, comes
out.

As there, the text holds the stop sequence that ended it, and an answer is greedy unless something
says that it is sampled. A text in URIAL's form is answered in it: up to the closing fence.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from importlib.metadata import version

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..engine_outputs import prompt_logprobs_of
from ..prompt import UrialPrompt, in_urial_form
from ..sampling import SamplingParams
from ..scheduler_requests import Generation
from .answers import FOR_FENCE, Piece, Token, written
from .models import Asked, Served, beside
from .openai_forms import FIGURE, Object
from .refusal import Refusal, bad
from .replies import event, stream, whole
from .schema import STREAMED, TgiBody, TgiParameters
from .state import State
from .worker import FOR_WHOLE

USUAL_TOKENS = 100
STATUS = {400: 422, 504: 424, 500: 424}  # by ours; the others are the same
KINDS = {422: "validation", 429: "overloaded", 424: "generation", 503: "overloaded"}


@dataclass(frozen=True, slots=True)
class Call:
    served: Served
    body: TgiBody
    asked: Asked
    request: Generation
    best_of: bool


def failed(refusal: Refusal) -> Object:
    """An error as TGI's clients read it."""
    return {"error": str(refusal), "error_type": KINDS.get(status(refusal), refusal.kind)}


def status(refusal: Refusal) -> int:
    return STATUS.get(refusal.status, refusal.status)


def router(state: State) -> APIRouter:
    api = APIRouter(tags=["TGI"])

    @api.post("/generate")
    async def generate(body: TgiBody, request: Request) -> Response:
        return await whole(request, _whole(state, await _call(state, body)))

    @api.post("/generate_stream", response_class=Response, responses=STREAMED)
    async def generate_stream(body: TgiBody, request: Request) -> Response:
        return await _stream(state, body, request)

    @api.post("/", responses=STREAMED)
    async def either(body: TgiBody, request: Request) -> Response:
        if body.stream:
            return await _stream(state, body, request)
        return await whole(request, _whole(state, await _call(state, body), as_list=True))

    @api.get("/info")
    async def info() -> Object:
        return _info(state)

    return api


def _info(state: State) -> Object:
    served, limits = state.models.main, state.limits
    context, about = served.engine.context, served.engine.info
    return {
        "model_id": served.name,
        "model_sha": None,
        "model_dtype": about["dtype"],
        "model_device_type": about["device"],
        "max_concurrent_requests": state.worker.room,
        "max_best_of": limits.max_n,
        "max_stop_sequences": limits.max_stop,
        "max_input_tokens": context - 1,
        "max_total_tokens": context,
        "router": "urial-engine",
        "version": version("urial-engine"),
    }


async def _call(state: State, body: TgiBody) -> Call:
    body.pass_over_unknown(state.passed_over)
    given, most_of = body.parameters, state.limits.max_n
    best_of = given.best_of or 1
    if best_of > most_of:
        raise bad(f"best_of={best_of}: at most {most_of} samples are made here", "best_of")
    if best_of > 1 and given.seed is not None:
        raise bad("best_of with a seed: the samples of one seed are not TGI's; leave it out")
    if given.truncate and given.urial_prompt:
        raise bad("truncate would cut off the urial_prompt; leave one out", "truncate")
    served = state.served(body.model)
    asked = await state.models.text(served, given.urial_prompt, body.inputs)
    if asked.prefix and in_urial_form(body.inputs):
        asked = replace(asked, urial=UrialPrompt(asked.prefix.text or ""))
    most = state.limits.new_tokens(given.max_new_tokens, USUAL_TOKENS)
    params = state.limits.check(_params(given, best_of, most))

    def made() -> Generation:
        request = state.generation(served, asked, params, "inputs")
        if given.truncate is None or len(request.ids) <= given.truncate:
            return request
        ids = request.ids[-given.truncate :]  # the last of them, as TGI does
        return served.engine.generation(ids, params, "inputs", stream=True)

    request = await beside(len(body.inputs), made)
    return Call(served, body, asked, request, best_of > 1)


def _params(given: TgiParameters, best_of: int, max_tokens: int) -> SamplingParams:
    warped = given.temperature not in (None, 1.0) or given.top_k or given.top_p not in (None, 1.0)
    sampled = bool(given.do_sample or warped)
    if best_of > 1 and not sampled:
        raise bad("best_of needs do_sample=true: greedy samples are all equal", "best_of")
    if given.temperature == 0:
        raise bad("temperature must be above 0; leave it and do_sample out for greedy")
    return SamplingParams(
        n=best_of,
        temperature=(given.temperature or 1.0) if sampled else 0.0,
        top_k=given.top_k or 0,
        top_p=1.0 if given.top_p is None else given.top_p,
        repetition_penalty=1.0 if given.repetition_penalty is None else given.repetition_penalty,
        repetition_penalty_scope=given.repetition_penalty_scope or "all",
        frequency_penalty=given.frequency_penalty or 0.0,
        max_tokens=max_tokens,
        stop=given.stop or (),
        include_stop_str_in_output=True,
        seed=given.seed,
        logprobs=given.top_n_tokens or 0,
        prompt_logprobs=0 if given.decoder_input_details else None,
    )


async def _whole(state: State, call: Call, *, as_list: bool = False) -> Object | list[Object]:
    given = call.body.parameters
    samples: list[list[Piece]] = [[] for _ in call.request.samples]
    every = FOR_FENCE if call.asked.urial else FOR_WHOLE
    async with aclosing(_pieces(state, call, every)) as told:
        async for pieces in told:
            for piece in pieces:
                samples[piece.index].append(piece)
    rows = sum(map(len, samples)) * (1 + (given.top_n_tokens or 0)) + len(call.request.ids)
    out = await beside(rows * FIGURE, lambda: _reply(call, samples))
    return [out] if as_list else out


def _reply(call: Call, samples: Sequence[Sequence[Piece]]) -> Object:
    given = call.body.parameters
    sequences = sorted((_sequence(call, own) for own in samples), key=_mean_logprob, reverse=True)
    best, *others = sequences
    out: Object = {"generated_text": best["generated_text"]}
    if given.details or given.decoder_input_details:
        out["details"] = {k: v for k, v in best.items() if k != "generated_text"}
        if call.best_of:
            out["details"]["best_of_sequences"] = others
    return out


async def _stream(state: State, body: TgiBody, request: Request) -> Response:
    if (body.parameters.best_of or 1) > 1:
        raise bad("best_of cannot be streamed", "best_of")
    if body.parameters.decoder_input_details:
        raise bad("decoder_input_details cannot be streamed", "decoder_input_details")
    return await stream(request, _events(state, await _call(state, body)), failed)


async def _events(state: State, call: Call) -> AsyncGenerator[bytes, None]:
    so_far: list[Piece] = []
    async with aclosing(_pieces(state, call, 1)) as told:
        async for pieces in told:
            events = []
            for piece in pieces:
                so_far.append(piece)
                events.append(event(_event(call, piece, so_far)))
            yield b"".join(events)


def _event(call: Call, piece: Piece, so_far: Sequence[Piece]) -> Object:
    (token,) = piece.tokens
    out = {"index": len(so_far), "token": _token(call, piece, token), "generated_text": None}
    if call.body.parameters.top_n_tokens:
        out["top_tokens"] = _top(call, token)
    out["details"] = None
    if piece.finish_reason is not None:
        own = _sequence(call, so_far)
        names = ("finish_reason", "generated_tokens", "seed")
        out["generated_text"] = own["generated_text"]
        if call.body.parameters.details:
            out["details"] = {n: own[n] for n in names} | {"input_length": len(call.request.ids)}
    return out


async def _pieces(state: State, call: Call, every: int) -> AsyncGenerator[list[Piece], None]:
    until = state.limits.until(None)
    with state.running(call.served, [call.request], until, every) as (job,):
        async with aclosing(written(job, call.asked.urial, None)) as told:
            async for pieces in told:
                yield pieces


def _sequence(call: Call, pieces: Sequence[Piece]) -> Object:
    """A whole sample, with its details."""
    given, request = call.body.parameters, call.request
    tokens = [(piece, token) for piece in pieces for token in piece.tokens]
    before = call.body.inputs if given.return_full_text else ""
    return {
        "generated_text": before + "".join(piece.text for piece in pieces),
        "finish_reason": _reason(pieces[-1]),
        "generated_tokens": len(tokens),
        "seed": request.samples[0].seed if request.params.temperature else None,
        "prefill": _prefill(call) if given.decoder_input_details else [],
        "tokens": [_token(call, *one) for one in tokens],
        **({"top_tokens": [_top(call, t) for _, t in tokens]} if given.top_n_tokens else {}),
    }


def _reason(last: Piece) -> str:
    if last.finish_reason != "stop":
        return last.finish_reason or "length"
    return "eos_token" if last.stop_reason is None else "stop_sequence"


def _prefill(call: Call) -> list[Object]:
    tokenizer, request = call.served.engine.tokenizer, call.request
    known = prompt_logprobs_of(request, tokenizer) or []
    return [
        {
            "id": token,
            "text": tokenizer.token_text(token),
            "logprob": logprobs and logprobs[token].logprob,
        }
        for token, logprobs in zip(request.ids, known, strict=True)
    ]


def _token(call: Call, piece: Piece, token: Token) -> Object:
    """Of tokens that are text the texts join to the answer."""
    tokenizer = call.served.engine.tokenizer
    special = tokenizer.is_special(token.id)
    own = (token.logprobs or {})[token.id]
    text = piece.text or (tokenizer.token_text(token.id) if special else "")
    return {
        "id": token.id,
        "text": text,
        "logprob": own.logprob,
        "special": special,
        "rank": own.rank,
    }


def _top(call: Call, token: Token) -> list[Object]:
    tokenizer = call.served.engine.tokenizer
    entries = list((token.logprobs or {}).items())
    top = entries if len(entries) == call.body.parameters.top_n_tokens else entries[1:]
    return [
        {
            "id": i,
            "text": one.decoded_token,
            "logprob": one.logprob,
            "special": tokenizer.is_special(i),
        }
        for i, one in sorted(top, key=lambda pair: (-pair[1].logprob, pair[0]))
    ]


def _mean_logprob(sequence: Object) -> float:
    tokens = sequence["tokens"]
    return float(sum(token["logprob"] for token in tokens) / max(len(tokens), 1))
