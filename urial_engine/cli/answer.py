"""`answer`: questions in, answers for people out, each as it is written."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from .options import (
    EngineOptions,
    MaxTokens,
    Model,
    Prompt,
    RepetitionPenalty,
    Seed,
    Set,
    Temperature,
    sampling_params,
    urial_prompt,
    with_engine_options,
)

if TYPE_CHECKING:
    from ..engine import Engine
    from ..sampling import SamplingParams

Questions = Annotated[
    list[str] | None, typer.Argument(help="By default one on each line of the standard input.")
]
Stream = Annotated[
    bool | None,
    typer.Option(
        help="Show an answer while it is written, or all at once in a batch.",
        show_default="stream to a terminal",
    ),
]
PARTIAL_FENCE = re.compile(r"(^|\n)`{1,2}\Z")


@with_engine_options
def answer(
    model: Model,
    engine: EngineOptions,
    questions: Questions = None,
    prompt: Prompt = "default",
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.0,
    repetition_penalty: RepetitionPenalty = 1.1,
    seed: Seed = None,
    settings: Set = None,
    stream: Stream = None,
) -> None:
    """Answer questions with a URIAL prompt."""
    params = sampling_params(
        settings,
        max_tokens=max_tokens,
        temperature=temperature,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    with engine.open(model, urial_prompt(prompt)) as opened:
        asked = iter(questions) if questions else _lines()
        if sys.stdout.isatty() if stream is None else stream:
            for question in asked:
                _show(question, _stream(opened, question, params))
        else:
            together = list(asked)
            for question, text in zip(together, opened.answer(together, params), strict=True):
                _show(question, iter([text]))


def _lines() -> Iterator[str]:
    """Questions from the standard input, as they come. A person sees what is waited for."""
    while True:
        if sys.stdin.isatty():
            typer.echo("? ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _stream(engine: Engine, question: str, params: SamplingParams) -> Iterator[str]:
    """The cleaned answer in pieces. What may still turn out to be its end is held back."""
    prompt = engine.prompt
    assert prompt is not None
    params = replace(params, stop=(*params.stop_strings, *prompt.stop))
    text = shown = ""
    for event in engine.stream(prompt.render(question), params):
        text += event.text
        safe = text if event.finished else PARTIAL_FENCE.sub("", text)
        clean = prompt.clean(safe)
        yield clean[len(shown) :]
        shown = clean if len(clean) > len(shown) else shown


def _show(question: str, pieces: Iterator[str]) -> None:
    typer.secho(f"▸ {question}", bold=True, fg="cyan")
    for piece in pieces:
        typer.echo(piece, nl=False)
    typer.echo("\n")
