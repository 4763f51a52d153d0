"""What several commands share: options in, an open engine, a prompt or a message out."""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

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
RepetitionPenalty = Annotated[float, typer.Option(help="1 is off; URIAL uses 1.1 to 1.15.")]
PromptOption = Annotated[
    str, typer.Option("--prompt", help="A URIAL prefix file, or `default`: ours.")
]
Threads = Annotated[int | None, typer.Option(help="By default as many as there are cores.")]
Isa = Annotated[str, typer.Option(help="Instruction set; `inspect` shows what there is.")]
Seed = Annotated[int | None, typer.Option(help="For sampling; without it each prompt draws one.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any other sampling parameter, in JSON."),
]
PrefixDir = Annotated[
    Path | None, typer.Option(file_okay=False, help="Keeps the prefix's cache in this folder.")
]
KvCacheGib = Annotated[
    float | None, typer.Option(help="Memory for the KV-cache; half of what is free by default.")
]
MaxModelLen = Annotated[
    int | None, typer.Option(help="Tokens of a text, at most; the model's context by default.")
]


@dataclass(frozen=True)
class EngineOptions:
    """The options that every command with a model has."""

    device: Annotated[str, typer.Option(help="cpu, cuda, or reference: slow, in fp64.")] = "auto"
    dtype: Annotated[str, typer.Option(help="bfloat16, float32, or on a GPU float16.")] = "auto"
    threads: Threads = None
    isa: Isa = "auto"
    prefix_dir: PrefixDir = None
    max_batch: Annotated[int, typer.Option(help="Samples that run at the same time.")] = 32
    kv_cache_gib: KvCacheGib = None
    max_model_len: MaxModelLen = None
    invariant: Annotated[
        bool, typer.Option(help="On a GPU: results that no bit of depends on the batch.")
    ] = False

    def open(self, model: str, prompt: object = None) -> Engine:
        """An engine whose prefix is this prompt's, where it is a `UrialPrompt`."""
        from ..engine import Engine
        from ..prompt import UrialPrompt

        prefix = prompt if isinstance(prompt, UrialPrompt) else None
        return Engine(model, prefix=prefix, **asdict(self))


@dataclass(frozen=True)
class SamplingOptions:
    """The options of commands that generate."""

    max_tokens: MaxTokens = 256
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    seed: Seed = None
    settings: Settings = None

    def params(self, **more: Any) -> SamplingParams:
        """--set wins."""
        from ..sampling import SamplingParams

        own = asdict(self)
        for setting in own.pop("settings") or []:
            name, equals, value = setting.partition("=")
            if not equals:
                raise ParameterError(f"--set {setting}: write NAME=VALUE, such as --set top_p=0.9")
            more[name] = _value(value)
        return SamplingParams.from_dict({**own, **more})


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, in place of each parameter of the kinds above, the options of that kind."""
    own = inspect.signature(command, eval_str=True).parameters
    kinds: dict[str, Any] = {n: p.annotation for n, p in own.items() if is_dataclass(p.annotation)}
    groups = {name: _options_of(kind) for name, kind in kinds.items()}
    options = [p.replace(kind=p.KEYWORD_ONLY) for name, p in own.items() if name not in kinds]
    options += [option for group in groups.values() for option in group]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = kinds[name](**{option.name: values.pop(option.name) for option in group})
        command(**values)

    del run.__wrapped__  # the signature is what follows, not that
    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run


def _options_of(kind: Any) -> list[inspect.Parameter]:
    hints, only = get_type_hints(kind, include_extras=True), inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(field.name, only, default=field.default, annotation=hints[field.name])
        for field in fields(kind)
    ]


def urial_prompt(spec: str) -> UrialPrompt:
    """`default`, or a file."""
    from ..prompt import UrialPrompt

    return UrialPrompt.default() if spec == "default" else UrialPrompt.load(spec)


def any_prompt(spec: str) -> UrialPrompt | str:
    """`chat` and a template with {query} stay as they are, all else is a URIAL prompt."""
    return spec if spec == "chat" or "{query}" in spec else urial_prompt(spec)


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text  # without quotes


def cache_folder() -> Path:
    """Where this user's programs keep what they can make again."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "urial-engine"


def console(*, stderr: bool = False) -> Console:
    """The terminal, or whatever stands in its place; lines are folded to its width."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=False)


def note(message: str, *, title: str = "note:", style: str = "bold yellow") -> None:
    """One line on stderr."""
    from rich.text import Text

    console(stderr=True).print(Text.assemble((title, style), " ", message), soft_wrap=True)
