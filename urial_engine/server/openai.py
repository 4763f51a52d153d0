"""OpenAI's two APIs: a body goes in; one JSON, or a stream of them, comes out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..engine_outputs import prompt_logprobs_of
from ..sampling import SamplingParams
from ..scheduler_requests import Generation
from .answers import FOR_FENCE, Piece, written
from .merge import merged
from .models import Asked, Served, beside
from .openai_forms import FIGURE, ChatForm, CompletionForm, Form, Object, prompt_logprobs, usage
from .refusal import TOO_LONG, Refusal, bad
from .replies import DONE, event, json_in_parts, stream, whole
from .schema import STREAMED, ChatBody, CompareWith, CompletionBody
from .schema import Asked as Body
from .shadow import Shadow
from .state import MOST_FIGURES, State
from .worker import FOR_WHOLE, Job

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
    figures: int  # log-probabilities of prompts
    shadow: Shadow | None = None
    echo: CompletionForm | None = None  # where its choices begin with their prompts
    new_tokens: bool = True  # False: only the prompt is wanted
    told: int = 0  # tokens of answers so far: what came behind a closing fence is none of them

    @property
    def size(self) -> int:
        """What is to be written, as `beside` asks."""
        each = 1 + (self.requests[0].params.logprobs or 0)
        return FIGURE * (self.figures + self.told * each)


def failed(refusal: Refusal) -> Object:
    """An error as OpenAI's clients read it."""
    kind = "invalid_request_error" if refusal.kind == TOO_LONG else refusal.kind
    own = {"message": str(refusal), "type": kind, "param": refusal.param}
    return {"error": {**own, "code": refusal.kind}}


def router(state: State) -> APIRouter:
    api = APIRouter(tags=["OpenAI"])

    @api.post("/v1/completions", responses=STREAMED)
    async def completions(body: CompletionBody, request: Request) -> Response:
        return await _answer(state, request, await _completion_call(state, body))

    @api.post("/v1/chat/completions", responses=STREAMED)
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        return await _answer(state, request, await _chat_call(state, body))

    return api


async def _completion_call(state: State, body: CompletionBody) -> Call:
    body.pass_over_unknown(state.passed_over)
    prompts = _prompts(body.prompt)
    served = state.served(body.model, len(prompts))
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
    call.echo, call.new_tokens = form if body.echo else None, new_tokens
    if body.compare_with:
        call.shadow = await _shadow(state, call, body.compare_with, None)
    return call


async def _chat_call(state: State, body: ChatBody) -> Call:
    body.pass_over_unknown(state.passed_over)
    if body.top_logprobs and not body.logprobs:
        raise bad("top_logprobs needs logprobs=true", "top_logprobs")
    served = state.served(body.model)
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
    if body.best_of not in (None, body.n or 1):
        raise bad(f"best_of={body.best_of}: samples are not ranked here; use n", "best_of")
    if body.stream and body.prompt_logprobs is not None:
        raise bad("prompt_logprobs are not told in a stream; leave one out", "prompt_logprobs")
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
    if (samples := len(asked) * params.n) > state.worker.room:
        raise bad(f"{samples} samples in one request; at most {state.worker.room} fit", "n")
    size = sum(len(one.prompt) for one in asked)
    requests = await beside(
        size,
        lambda: [
            state.generation(served, one, params, f"prompt {i}" if len(asked) > 1 else "prompt")
            for i, one in enumerate(asked)
        ],
    )
    figures = 0
    if params.prompt_logprobs is not None:
        tokens = sum(len(request.ids) for request in requests)
        figures = tokens * (1 + params.prompt_logprobs) * params.n
    if figures > MOST_FIGURES:
        message = f"{figures} log-probabilities of prompts: at most {MOST_FIGURES} in one request"
        raise bad(message, "prompt_logprobs")
    return Call(served, body, form, asked, requests, state.limits.until(body.deadline), figures)


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


async def _whole(state: State, call: Call) -> bytes:
    every = FOR_WHOLE
    if call.shadow or any(one.urial for one in call.asked):
        every = FOR_FENCE
    samples: dict[int, list[Piece]] = defaultdict(list)
    with state.running(call.served, call.requests, call.deadline, every) as jobs:
        async with aclosing(_all_pieces(call, jobs)) as told:
            async for pieces in told:
                for piece in pieces:
                    samples[piece.index].append(piece)
    return await beside(call.size, lambda: json_in_parts(_reply(call, samples)))


def _reply(call: Call, samples: Mapping[int, Sequence[Piece]]) -> Object:
    choices = [call.form.choice(samples[index]) for index in sorted(samples)]
    out = {**call.form.head(chunk=False), "choices": choices}
    out["usage"] = usage(call.requests, call.told)
    if call.body.prompt_logprobs is not None:
        tokenizer = call.served.engine.tokenizer
        found = [prompt_logprobs_of(request, tokenizer) or [] for request in call.requests]
        call.form.add_prompts(out, [prompt_logprobs(one) for one in found])
    return out


async def _events(state: State, call: Call) -> AsyncGenerator[bytes, None]:
    head, seen = call.form.head(chunk=True), set[int]()
    with state.running(call.served, call.requests, call.deadline) as jobs:
        async with aclosing(_all_pieces(call, jobs)) as told:
            async for pieces in told:
                samples: dict[int, list[Piece]] = defaultdict(list)
                for piece in pieces:
                    samples[piece.index].append(piece)
                chunks = []
                for index, own in samples.items():
                    chunks.append(call.form.chunk(own, first=index not in seen))
                    seen.add(index)
                yield b"".join(event({**head, "choices": [chunk]}) for chunk in chunks)
    if call.body.stream_options and call.body.stream_options.include_usage:
        total = usage(call.requests, call.told)
        yield event({**head, "choices": [], "usage": total})
    yield DONE


def _all_pieces(call: Call, jobs: Sequence[Job]) -> AsyncGenerator[list[Piece], None]:
    return merged([_pieces(call, place, job) for place, job in enumerate(jobs)])


async def _pieces(call: Call, place: int, job: Job) -> AsyncGenerator[list[Piece], None]:
    """Of one prompt, with the indexes that its choices have among those of all prompts."""
    first, begun = place * len(call.requests[place].samples), call.echo is None
    async with aclosing(written(job, call.asked[place].urial, call.shadow)) as told:
        async for pieces in told:
            if not begun:  # only now the prompt has been read, and its log-probabilities are known
                await _begin(call, place)
                begun = True
            if not call.new_tokens:
                pieces = [Piece(piece.index, "", [], "length", None) for piece in pieces]
            call.told += sum(len(piece.tokens) for piece in pieces)
            yield [replace(p, index=first + p.index) for p in pieces] if first else pieces


async def _begin(call: Call, place: int) -> None:
    """The choices of a prompt begin with it."""
    form, request = call.echo, call.requests[place]
    assert form is not None
    size = call.size + FIGURE * len(request.ids)
    echo = await beside(size, lambda: form.echo(request, call.asked[place].prompt))
    for sample in request.samples:
        form.begin(place * len(request.samples) + sample.index, echo)


def _prompts(given: str | Sequence[Any]) -> list[str | list[int]]:
    """One or several, of text or of token ids."""
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        return [given]  # type: ignore[list-item]
    if not given:
        raise bad("prompt is an empty list; give it at least one prompt", "prompt")
    return list(given)
