"""The ASGI application: routes of all APIs under one door, which checks what comes through it."""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from importlib.metadata import version

import anyio
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import UrialError
from . import general, openai, ours, tgi
from .refusal import Refusal
from .replies import Json, told
from .schema import REFUSED, REFUSED_TGI
from .state import State

OPEN = re.compile(r"/|/health|/ready|/playground/.*")  # without a key
LOCAL = re.compile(rb"(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?", re.IGNORECASE)
PATIENCE = 16  # times the limit: as much of a body that is too long is read
TGI = frozenset({"/", "/generate", "/generate_stream", "/info"})
WORK = frozenset({"/", "/generate", "/generate_stream", "/v1/completions"})
WORK |= {"/v1/chat/completions", "/v1/score", "/v1/token_shift"}
ABOUT = (
    "Llama and Mistral with constant URIAL prefixes, scores and token shifts. Fields that are ours "
    "and not OpenAI's or TGI's: see docs/server.md."
)


def create_app(
    state: State, *, key: str | None = None, origins: Sequence[str] = (), local: bool = False
) -> ASGIApp:
    """key: what clients must send as a bearer. origins: pages of which may call from a browser.
    local: it is asked by the names of this machine alone."""
    app = FastAPI(
        title="urial-engine",
        version=version("urial-engine"),
        description=ABOUT,
        docs_url=None,  # pages that would fetch scripts from elsewhere
        redoc_url=None,
    )
    for routes in (general.router, openai.router, tgi.router, ours.router):
        refusals = REFUSED_TGI if routes is tgi.router else REFUSED
        app.include_router(routes(state), responses=refusals)
    app.include_router(general.page())
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    for kind in (Refusal, UrialError, Exception):
        app.add_exception_handler(kind, _failed)
    door = Door(app, state, key, local=local)
    if not origins:
        return door
    return CORSMiddleware(door, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])


class Door:
    """Keys, sizes of bodies, and the time in which they must come; counts what was answered."""

    def __init__(self, app: ASGIApp, state: State, key: str | None, *, local: bool) -> None:
        self._app = app
        self._state = state
        self._key = key
        self._local = local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._state.metrics.answered(_label(scope), message["status"])
            await send(message)

        try:
            headers = dict(scope["headers"])
            self._check_host(headers.get(b"host", b"localhost"))
            self._check_key(scope, headers.get(b"authorization", b""))
            body = await self._body(scope, receive)
            if scope["method"] == "POST" and path in WORK and not self._state.worker.failed:
                self._state.worker.check_queue()  # a full server looks at nothing more
        except Refusal as refusal:
            await _reply(path, refusal)(scope, receive, counted)
            return
        await self._app(scope, _replayed(body, receive), counted)

    def _check_host(self, host: bytes) -> None:
        """A page of elsewhere whose name is made to point here must not use what needs no key."""
        if self._local and not LOCAL.fullmatch(host):
            name = host.decode("latin-1")[:100]
            message = f"Host {name!r} is not this machine; to be asked by other names set --api-key"
            raise Refusal(403, "host_not_allowed", message)

    def _check_key(self, scope: Scope, given: bytes) -> None:
        look = scope["method"] in ("GET", "HEAD") and OPEN.fullmatch(scope["path"])
        if self._key is None or look:
            return
        scheme, _, token = given.partition(b" ")
        right = hmac.compare_digest(token.strip(), self._key.encode())
        if scheme.lower() != b"bearer" or not right:
            message = "this server needs its key: send it as `Authorization: Bearer KEY`"
            headers = {"WWW-Authenticate": "Bearer"}
            raise Refusal(401, "invalid_api_key", message, headers=headers)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """All of it. Refusal where it is too long, or too long on its way.

        A client reads no answer while it sends, so what is too long is read, and let go of, before
        that is said; but not without an end.
        """
        most, seconds = self._state.limits.max_body, self._state.limits.body_seconds
        too_large = Refusal(413, "body_too_large", f"a body has at most {most} bytes here")
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > PATIENCE * most:
            raise too_large
        parts, size = [], 0
        try:
            with anyio.fail_after(seconds):
                while (message := await receive())["type"] == "http.request":
                    part = message.get("body", b"")
                    size += len(part)
                    if size <= most:
                        parts.append(part)
                    if not message.get("more_body") or size > PATIENCE * most:
                        break
        except TimeoutError:
            slow = f"the body has not come within {seconds:g} s"
            raise Refusal(408, "body_too_slow", slow) from None
        if size > most:
            raise too_large
        return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body once more, at once; then whatever comes."""
    first = True

    async def again() -> Message:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again


def _label(scope: Scope) -> str:
    """The path as its route writes it: names that clients make up would each be counted alone."""
    path: str = scope["path"]
    return str(getattr(scope.get("route"), "path", path if path in WORK else "other"))


def _reply(path: str, refusal: Refusal) -> Response:
    failed = tgi.failed if path in TGI else openai.failed
    status = tgi.status(refusal) if path in TGI else refusal.status
    return Json(failed(refusal), status_code=status, headers=refusal.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return _reply(request.url.path, told(error))


async def _invalid(request: Request, error: Exception) -> Response:
    """A body of another form: what is wrong, and where. Nothing of it is repeated."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    first = found[0] if found else {"loc": (), "msg": "not valid"}
    param = ".".join(str(part) for part in first["loc"] if part != "body")[:200]
    message = f"{param}: {first['msg']}" if param else str(first["msg"])
    return _reply(
        request.url.path, Refusal(400, "invalid_request_error", message[:500], param or None)
    )


async def _http(request: Request, error: Exception) -> Response:
    """What the framework itself refuses: a path that is not there, another method."""
    assert isinstance(error, HTTPException)
    kind = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    message = f"{request.method} {request.url.path[:200]}: {error.detail}"
    headers = dict(error.headers or {})
    return _reply(request.url.path, Refusal(error.status_code, kind, message, headers=headers))
