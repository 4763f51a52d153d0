"""`serve`: models over HTTP, for the clients of OpenAI, TGI and vLLM, and for people at a page."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ParameterError
from .options import EngineOptions, Model, note, with_options

if TYPE_CHECKING:
    from ..prompt import UrialPrompt

MIB = 1 << 20
Name = Annotated[str | None, typer.Option(help="What MODEL is called; its folder's name else.")]
More = Annotated[
    list[str] | None, typer.Option("--model", metavar="NAME=MODEL", help="One more model.")
]
Prompts = Annotated[
    list[str] | None,
    typer.Option("--prompt", metavar="[NAME=]FILE", help="A URIAL prefix file, kept in the cache."),
]
Host = Annotated[str, typer.Option(help="0.0.0.0 listens to the world; then set --api-key.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")]
Key = Annotated[str | None, typer.Option(envvar="URIAL_ENGINE_API_KEY", help="Clients send it.")]
Cors = Annotated[list[str] | None, typer.Option(help="A page's origin that may call us.")]
Queue = Annotated[int, typer.Option(min=0, help="Requests that may wait; more are refused.")]
Body = Annotated[float, typer.Option(min=0.001, help="Of one request, MiB.")]
NewTokens = Annotated[int | None, typer.Option(min=1, help="Of one answer, at most.")]
Samples = Annotated[int, typer.Option(min=1, help="Of one prompt, at most.")]
Stops = Annotated[int, typer.Option(min=0, help="Stop strings and tokens of one request.")]
Seconds = Annotated[float | None, typer.Option(min=0.001, help="After which a request is ended.")]
Drain = Annotated[float, typer.Option(min=0, help="For what runs, after SIGTERM.")]
LogPrompts = Annotated[bool, typer.Option("--log-prompts", help="Else no text is ever logged.")]


@with_options
def serve(
    model: Model,
    engine: EngineOptions,
    name: Name = None,
    more: More = None,
    prompts: Prompts = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key: Key = None,
    cors: Cors = None,
    max_queue: Queue = 256,
    max_body_mib: Body = 2.0,
    max_new_tokens: NewTokens = None,
    max_n: Samples = 16,
    max_stop: Stops = 16,
    deadline: Seconds = None,
    drain_seconds: Drain = 30.0,
    log_prompts: LogPrompts = False,
) -> None:
    """Serve models over HTTP until SIGTERM."""
    _check_installed()
    from contextlib import ExitStack
    from dataclasses import replace

    import uvloop

    from ..prompt import UrialPrompt
    from ..server.run import Options, on_loopback, serve
    from ..server.state import Limits

    if api_key is not None and not api_key.strip():
        raise ParameterError("--api-key (or URIAL_ENGINE_API_KEY) is empty; give one, or leave it")
    if not api_key and not on_loopback(host):
        note(f"--host {host} without --api-key: whoever reaches this machine may use the models")
    limits = Limits(
        max_body=int(max_body_mib * MIB),
        max_new_tokens=max_new_tokens,
        max_n=max_n,
        max_stop=max_stop,
        deadline=deadline,
    )
    options = Options(
        host=host,
        port=port,
        limits=limits,
        max_queue=max_queue,
        drain_seconds=drain_seconds,
        key=api_key,
        origins=cors or (),
        log_prompts=log_prompts,
        prefix_dir=engine.prefix_dir,
    )
    named = {name or Path(model).resolve().name: model, **_pairs("--model", more)}
    given = _prompts(prompts)
    with ExitStack() as stack:
        own = replace(engine, prefix_dir=None)  # the server itself stores prompts there
        engines = {n: stack.enter_context(own.open(path)) for n, path in named.items()}
        every = {**given, "default": given.get("default") or UrialPrompt.default()}
        uvloop.run(serve(engines, every, list(given), options, _ready))


def _check_installed() -> None:
    needed = ("fastapi", "httptools", "prometheus_client", "uvicorn", "uvloop")
    if lacking := [name for name in needed if find_spec(name) is None]:
        raise ParameterError(
            f"serve needs {', '.join(lacking)}: pip install 'urial-engine[server]'"
        )


def _ready(address: str) -> None:
    note(address, title="ready:", style="bold green")


def _pairs(option: str, given: list[str] | None) -> dict[str, str]:
    pairs = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise ParameterError(f"{option} {text}: write NAME=MODEL")
        pairs[name] = value
    return pairs


def _prompts(given: list[str] | None) -> dict[str, UrialPrompt]:
    from ..prompt import UrialPrompt

    found = {}
    for text in given or []:
        name, equals, file = text.partition("=")
        path = file if equals else text
        found[name if equals else Path(text).stem] = UrialPrompt.load(path)
    return found
