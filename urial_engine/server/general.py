"""What belongs to no one's API: models, tokens, health, metrics, and the playground's page."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, PlainTextResponse, Response

from .models import CHAT, beside
from .openai_forms import FIGURE, Object
from .refusal import Refusal, bad, busy
from .replies import Json
from .schema import DetokenizeBody, TokenizeBody
from .state import State

DATA = Path(__file__).resolve().parents[1] / "data"
# Nothing from elsewhere, and no script or style that stands in the page itself.
POLICY = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
MOST_TOKENS = 1 << 17  # of /tokenize and /detokenize
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def router(state: State) -> APIRouter:
    api = APIRouter(tags=["general"])

    @api.get("/v1/models")
    async def models() -> Response:
        return Json({"object": "list", "data": [_model(state, n) for n in state.models.all]})

    @api.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        return Json(_model(state, name))

    @api.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> Response:
        return Json(await _tokenize(state, body))

    @api.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> Response:
        return Json(await _detokenize(state, body))

    @api.get("/health", response_class=PlainTextResponse)
    async def health() -> Response:
        if not state.worker.healthy:
            raise Refusal(500, "server_error", "a model has failed; restart the server")
        return PlainTextResponse("ok")

    @api.get("/ready", response_class=PlainTextResponse)
    async def ready() -> Response:
        if state.worker.draining:
            raise busy(503, "draining", "the server is about to end", 5)
        return PlainTextResponse("ready")

    @api.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(state.metrics.text(), media_type=METRICS_TYPE)

    return api


def page() -> APIRouter:
    """Its files by their names: nothing else can be asked for."""
    api = APIRouter(include_in_schema=False)
    every = (DATA / "look.css", *sorted((DATA / "playground").iterdir()))
    files = {file.name: file for file in every if file.is_file()}
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}

    @api.get("/")
    async def index(request: Request) -> Response:
        return FileResponse(files["index.html"], headers=headers)

    @api.get("/playground/{name}")
    async def file(name: str) -> Response:
        if name not in files:
            raise Refusal(404, "not_found", f"the playground has no file {name!r}")
        return FileResponse(files[name], headers=headers)

    return api


def _model(state: State, name: str) -> Object:
    served = state.models.get(name)
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "urial-engine",
        "max_model_len": served.engine.context,
        "chat_template": served.engine.tokenizer.chat_template is not None,
    }


async def _tokenize(state: State, body: TokenizeBody) -> Object:
    body.pass_over_unknown(state.passed_over)
    served, special = state.models.get(body.model), body.add_special_tokens
    tokenizer = served.engine.tokenizer
    if (body.prompt is None) == (body.messages is None):
        raise bad("give either prompt or messages")
    if body.messages is not None:
        if special:
            raise bad("add_special_tokens: a chat template writes its own", "add_special_tokens")
        messages = [message.plain() for message in body.messages]
        ids = (await state.models.chat(served, CHAT, messages)).prompt
        assert not isinstance(ids, str)
    else:
        text, special = body.prompt or "", special is not False
        ids = await beside(len(text), lambda: tokenizer.encode(text, add_special_tokens=special))
    _check_count(len(ids), "prompt")
    texts = await beside(len(ids) * FIGURE, lambda: [tokenizer.token_text(token) for token in ids])
    return {
        "count": len(ids),
        "max_model_len": served.engine.context,
        "tokens": ids,
        "token_strs": texts,
    }


async def _detokenize(state: State, body: DetokenizeBody) -> Object:
    body.pass_over_unknown(state.passed_over)
    engine, ids = state.models.get(body.model).engine, body.tokens
    size = engine.config.vocab_size
    _check_count(len(ids), "tokens")
    if outside := [token for token in ids if token >= size]:
        raise bad(f"tokens: {outside[0]}: the vocabulary has {size} tokens", "tokens")
    decode = partial(engine.tokenizer.decode, ids, skip_special_tokens=False)
    return {"prompt": await beside(len(ids) * FIGURE, decode)}


def _check_count(count: int, param: str) -> None:
    if count > MOST_TOKENS:
        raise bad(f"{param}: {count} tokens: at most {MOST_TOKENS} at once", param)
