"""OpenAI's two APIs: a body goes in; one JSON, or a stream of them, comes out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..engine_outputs import prompt_logprobs_of
from ..sampling import SamplingParams
from ..scheduler_requests import Generation
from .answers import FOR_FENCE, FOR_WHOLE, Piece, Token, written
from .merge import merged
from .models import Asked, Served, beside
from .openai_forms import ChatForm, CompletionForm, Form, Object, prompt_logprobs, usage
from .refusal import Refusal, bad
from .replies import DONE, event, stream, whole
from .schema import Asked as Body
from .schema import ChatBody, CompareWith, CompletionBody
from .shadow import Shadow
from .state import State
from .worker import Job

PASSED = (
    *("temperature", "top_p", "n", "max_tokens", "seed", "presence_penalty", "frequency_penalty"),
    *("top_k", "min_p", "repetition_penalty", "repetition_penalty_scope", "min_tokens", "stop"),
    *("stop_token_ids", "include_stop_str_in_output", "ignore_eos", "prompt_logprobs"),
)
MOST_LOGPROBS = 20


@dataclass(slots=True)
class Call:
    """One request of a client, checked: what runs for it, and how it is answered."""

    served: Served
    body: Body
    form: Form
    asked: list[Asked]
    requests: list[Generation]
    deadline: float | None
    shadow: Shadow | None
    echo: bool = False
    new_tokens: bool = True  # False: only the prompt is wanted
    told: int = 0  # tokens of answers so far: what came behind a closing fence is none of them


def failed(refusal: Refusal) -> Object:
    """An error as OpenAI's clients read it."""
    own = {"message": str(refusal), "type": refusal.kind, "param": refusal.param}
    return {"error": {**own, "code": refusal.kind}}


def router(state: State) -> APIRouter:
    api = APIRouter(tags=["OpenAI"])

    @api.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        return await _answer(state, request, await _completion_call(state, body))

    @api.post("/v1/chat/completions")
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        return await _answer(state, request, await _chat_call(state, body))

    return api


async def _completion_call(state: State, body: CompletionBody) -> Call:
    body.refuse_set("suffix", "logit_bias")
    if body.best_of not in (None, 1, body.n):
        raise bad(f"best_of={body.best_of}: samples are not ranked here; use n", "best_of")
    served = state.models.get(body.model)
    prompts = _prompts(body.prompt)
    asked = [await state.models.text(served, body.urial_prompt, prompt) for prompt in prompts]
    new_tokens = body.max_tokens != 0
    if not new_tokens and not body.echo:
        raise bad("max_tokens=0 answers nothing; with echo it gives the prompt", "max_tokens")
    more: dict[str, Any] = {} if new_tokens else {"max_tokens": 1}
    if body.logprobs is not None and body.echo and body.prompt_logprobs is None:
        more["prompt_logprobs"] = body.logprobs
    params = _params(state, body, logprobs=body.logprobs, **more)
    form = CompletionForm(served.name, served.engine.tokenizer, body.logprobs)
    call = await _call(state, body, served, form, asked, params)
    call.echo, call.new_tokens = body.echo, new_tokens
    if body.compare_with:
        call.shadow = await _shadow(state, call, body.compare_with, None)
    return call


async def _chat_call(state: State, body: ChatBody) -> Call:
    body.refuse_set("logit_bias", "tools", "functions")
    if (body.response_format or {}).get("type", "text") != "text":
        raise bad("response_format: only text is written here", "response_format")
    if body.top_logprobs and not body.logprobs:
        raise bad("top_logprobs needs logprobs=true", "top_logprobs")
    served = state.models.get(body.model)
    messages = [message.plain() for message in body.messages]
    asked = await state.models.chat(served, body.urial_prompt, messages)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    most = body.max_completion_tokens
    more = {"max_tokens": body.max_tokens if most is None else most}  # None: to the context's end
    params = _params(state, body, logprobs=logprobs, **more)
    form = ChatForm(served.name, served.engine.tokenizer, logprobs)
    call = await _call(state, body, served, form, [asked], params)
    if body.compare_with:
        call.shadow = await _shadow(state, call, body.compare_with, messages)
    return call


def _params(state: State, body: Body, **more: Any) -> SamplingParams:
    """Of what the client has said; temperature 1 where it says nothing, as OpenAI has it."""
    said = {name: value for name in PASSED if (value := getattr(body, name)) is not None}
    if (more["logprobs"] or 0) > MOST_LOGPROBS:
        raise bad(f"at most {MOST_LOGPROBS} log-probabilities a token", "logprobs")
    if (body.n or 1) > 1 and body.compare_with:
        raise bad("compare_with reads one sample; leave n out", "n")
    params = SamplingParams.from_dict({"temperature": 1.0, **said, **more})
    return state.limits.check(params)


async def _call(
    state: State,
    body: Body,
    served: Served,
    form: Form,
    asked: list[Asked],
    params: SamplingParams,
) -> Call:
    body.pass_over_unknown(state.passed_over)
    size = sum(len(one.prompt) for one in asked)
    requests = await beside(
        size,
        lambda: [
            state.generation(served, one, params, f"prompt {i}" if len(asked) > 1 else "prompt")
            for i, one in enumerate(asked)
        ],
    )
    return Call(served, body, form, asked, requests, state.limits.until(body.deadline), None)


async def _shadow(state: State, call: Call, wanted: CompareWith, messages: Any) -> Shadow:
    """The second reader of the same text or conversation."""
    other = state.models.get(wanted.model or call.served.name)
    Shadow.check(call.served, other)
    if len(call.requests) > 1:
        raise bad("compare_with reads one prompt", "compare_with")
    if messages is None:
        asked = await state.models.text(other, wanted.urial_prompt, call.asked[0].prompt)
    else:
        asked = await state.models.chat(other, wanted.urial_prompt, messages)
    return Shadow(state.worker, other, asked, call.deadline)


async def _answer(state: State, request: Request, call: Call) -> Response:
    if call.body.stream:
        return await stream(request, _events(state, call), failed)
    return await whole(request, _whole(state, call))


async def _whole(state: State, call: Call) -> Object:
    every = FOR_WHOLE
    if call.shadow or any(one.urial for one in call.asked):
        every = FOR_FENCE
    choices = []
    with state.running(call.served, call.requests, call.deadline, every) as jobs:
        for place, job in enumerate(jobs):
            samples: dict[int, list[Piece]] = defaultdict(list)
            async with aclosing(_pieces(call, place, job)) as told:
                async for pieces in told:
                    for piece in pieces:
                        samples[piece.index].append(piece)
            for index in sorted(samples):
                choice = call.form.choice(samples[index])
                choices.append({**choice, **_of_prompt(call, place)})
    total = usage(call.requests, call.told)
    return {**call.form.head(chunk=False), "choices": choices, "usage": total}


async def _events(state: State, call: Call) -> AsyncGenerator[bytes, None]:
    head, seen = call.form.head(chunk=True), set[int]()
    with state.running(call.served, call.requests, call.deadline) as jobs:
        each = [_pieces(call, place, job) for place, job in enumerate(jobs)]
        async with aclosing(merged(each)) as told:
            async for pieces in told:
                samples: dict[int, list[Piece]] = defaultdict(list)
                for piece in pieces:
                    samples[piece.index].append(piece)
                chunks = []
                for index, own in samples.items():
                    chunks.append(call.form.chunk(own, first=index not in seen))
                    seen.add(index)
                yield b"".join(event({**head, "choices": [chunk]}) for chunk in chunks)
    if call.body.usage_in_stream():
        total = usage(call.requests, call.told)
        yield event({**head, "choices": [], "usage": total})
    yield DONE


async def _pieces(call: Call, place: int, job: Job) -> AsyncGenerator[list[Piece], None]:
    """Of one prompt, with the indexes that its choices have among those of all prompts."""
    asked, request = call.asked[place], call.requests[place]
    first, echoed = place * len(request.samples), not call.echo
    async with aclosing(written(job, asked.urial, call.shadow)) as told:
        async for pieces in told:
            if not echoed:  # only now the prompt has been read, and its log-probabilities are known
                before = _prompt_pieces(call, place)
                last = None if call.new_tokens else "length"
                for sample in request.samples:
                    own = [replace(piece, index=first + sample.index) for piece in before]
                    yield [*own[:-1], replace(own[-1], finish_reason=last)]
                echoed = True
            if call.new_tokens:
                call.told += sum(len(piece.tokens) for piece in pieces)
                yield [replace(piece, index=first + piece.index) for piece in pieces]


def _prompt_pieces(call: Call, place: int) -> list[Piece]:
    """The prompt as its tokens, without the URIAL prompt before it."""
    asked, request, tokenizer = (
        call.asked[place],
        call.requests[place],
        call.served.engine.tokenizer,
    )
    skip = request.prefix
    ids = request.ids[skip:]
    if not ids:
        return [Piece(0, "", [], None, None)]
    known = prompt_logprobs_of(request, tokenizer) or [None] * len(request.ids)
    stream = tokenizer.stream(continues=skip > 0)
    texts = [stream.push(token) for token in ids]
    texts[-1] += stream.finish()
    if isinstance(asked.prompt, str) and "".join(texts) != asked.prompt:
        texts = [asked.prompt, *[""] * (len(ids) - 1)]  # its tokens do not say how it was written
    return [
        Piece(0, text, [Token(token, logprobs, None)], None, None)
        for text, token, logprobs in zip(texts, ids, known[skip:], strict=True)
    ]


def _of_prompt(call: Call, place: int) -> Object:
    if call.body.prompt_logprobs is None:
        return {}
    found = prompt_logprobs_of(call.requests[place], call.served.engine.tokenizer)
    return {"prompt_logprobs": prompt_logprobs(found or [])}


def _prompts(given: str | Sequence[Any]) -> list[str | list[int]]:
    """One or several, of text or of token ids."""
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        return [given]  # type: ignore[list-item]
    if not given:
        raise bad("prompt is an empty list; give it at least one prompt", "prompt")
    return list(given)
