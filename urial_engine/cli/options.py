"""What several commands share: options in, an open engine, a prompt or a message out."""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import ParameterError

if TYPE_CHECKING:
    from rich.console import Console

    from ..engine import Engine
    from ..prompt import UrialPrompt
    from ..sampling import SamplingParams

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Folder of a model, or its id on the Hugging Face hub."),
]
RowsIn = Annotated[
    Path, typer.Option("--in", exists=True, dir_okay=False, help="JSON Lines to read.")
]
RowsOut = Annotated[
    Path, typer.Option("--out", dir_okay=False, help="JSON Lines to write, or to continue.")
]
MaxTokens = Annotated[int, typer.Option(help="Tokens of an answer, at most.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
RepetitionPenalty = Annotated[float, typer.Option(help="1 is off; the method uses 1.1 to 1.15.")]
Seed = Annotated[int | None, typer.Option(help="For sampling; without it each prompt draws one.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any other sampling parameter, in JSON."),
]
Prompt = Annotated[str, typer.Option("--prompt", help="A URIAL prefix file, or `default`: ours.")]
Device = Annotated[str, typer.Option(help="cpu, or reference: slow, in fp64.")]
Dtype = Annotated[str, typer.Option(help="bfloat16 or float32.")]
Threads = Annotated[int | None, typer.Option(help="By default as many as there are cores.")]
Isa = Annotated[str, typer.Option(help="Instruction set; `inspect` shows what there is.")]
PrefixDir = Annotated[
    Path | None, typer.Option(file_okay=False, help="Keeps the prefix's cache in this folder.")
]
MaxBatch = Annotated[int, typer.Option(min=1, help="Samples that run at the same time.")]
KvCacheGib = Annotated[
    float | None, typer.Option(help="Memory for the KV-cache; half of what is free by default.")
]
Read = Annotated[
    Literal["mmap", "sequential"], typer.Option(help="`sequential` is faster on network disks.")
]


@dataclass(frozen=True)
class EngineOptions:
    """The options that every command with a model has."""

    device: Device = "auto"
    dtype: Dtype = "auto"
    threads: Threads = None
    isa: Isa = "auto"
    prefix_dir: PrefixDir = None
    max_batch: MaxBatch = 32
    kv_cache_gib: KvCacheGib = None
    read: Read = "mmap"

    def open(self, model: str, prefix: object = None) -> Engine:
        """An engine whose prefix is this prompt, where it is a `UrialPrompt`."""
        from ..engine import Engine
        from ..prompt import UrialPrompt

        fixed = prefix if isinstance(prefix, UrialPrompt) else None
        if self.prefix_dir is not None and fixed is None:
            raise ParameterError("--prefix-dir needs a URIAL prompt, whose prefix it keeps")
        return Engine(model, prefix=fixed, **asdict(self))


def with_engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options above, which it receives as its parameter `engine`."""
    own = inspect.signature(command, eval_str=True).parameters
    options = inspect.signature(EngineOptions, eval_str=True).parameters
    kept = [p.replace(kind=p.KEYWORD_ONLY) for name, p in own.items() if name != "engine"]
    added = [p.replace(kind=p.KEYWORD_ONLY) for p in options.values()]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        chosen = {name: values.pop(name) for name in options}
        command(**values, engine=EngineOptions(**chosen))

    del run.__wrapped__  # the signature is what follows, not that
    run.__signature__ = inspect.Signature([*kept, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*kept, *added)}
    return run


def urial_prompt(spec: str) -> UrialPrompt:
    """`default`, or a file."""
    from ..prompt import UrialPrompt

    return UrialPrompt.default() if spec == "default" else UrialPrompt.load(spec)


def any_prompt(spec: str) -> UrialPrompt | str:
    """`chat` and a template with {query} stay as they are, all else is a URIAL prompt."""
    return spec if spec == "chat" or "{query}" in spec else urial_prompt(spec)


def sampling_params(settings: list[str] | None, **known: Any) -> SamplingParams:
    """From the options of their own and the NAME=VALUE of --set, which win."""
    from ..sampling import SamplingParams

    fields = dict(known)
    for setting in settings or []:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ParameterError(f"--set {setting}: write NAME=VALUE, such as --set top_p=0.9")
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value  # a text without quotes
    return SamplingParams.from_dict(fields)


def cache_folder() -> Path:
    """Where this user's programs keep what they can make again."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "urial-engine"


def console(*, stderr: bool = False) -> Console:
    """The terminal, or whatever stands in its place, as wide as its lines need."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=False)


def note(message: str, *, title: str = "note:", style: str = "bold yellow") -> None:
    """One line on stderr."""
    from rich.text import Text

    console(stderr=True).print(Text.assemble((title, style), " ", message), soft_wrap=True)
