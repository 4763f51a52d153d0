"""`answer`: questions in, answers for people out, each as it is written."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    EngineOptions,
    MaxTokens,
    Model,
    PromptOption,
    RepetitionPenalty,
    SamplingOptions,
    urial_prompt,
    with_options,
)

if TYPE_CHECKING:
    from ..engine import Engine
    from ..prompt import UrialPrompt
    from ..sampling import SamplingParams

Questions = Annotated[
    list[str] | None,
    typer.Argument(metavar="[QUESTION]...", help="By default, lines of the standard input."),
]
Stream = Annotated[
    bool | None,
    typer.Option(
        help="Show an answer while it is written, or all at once in a batch.",
        show_default="stream to a terminal",
    ),
]
PARTIAL_FENCE = re.compile(r"(^|\n)`{1,2}\Z")


@dataclass(frozen=True)
class Sampling(SamplingOptions):
    """Greedy with a penalty, which with a long prefix must leave out the prompt's common words."""

    max_tokens: MaxTokens = 512
    repetition_penalty: RepetitionPenalty = 1.1

    def params(self, **more: Any) -> SamplingParams:
        return super().params(repetition_penalty_scope="output", **more)


@with_options
def answer(
    model: Model,
    engine: EngineOptions,
    sampling: Sampling,
    questions: Questions = None,
    prompt: PromptOption = "default",
    stream: Stream = None,
) -> None:
    """Answer questions with a URIAL prompt."""
    params = sampling.params()
    with engine.open(model, urial_prompt(prompt)) as opened:
        assert opened.prompt is not None
        params = replace(params, stop=(*params.stop_strings, *opened.prompt.stop))
        asked = iter(questions) if questions else _lines()
        if sys.stdout.isatty() if stream is None else stream:
            for question in asked:
                pieces = _stream(opened, opened.prompt, question, params)
                _show(question, pieces, typed=not questions and sys.stdin.isatty())
        else:
            _answer_together(opened, opened.prompt, list(asked), params)


def _answer_together(
    engine: Engine, prompt: UrialPrompt, questions: list[str], params: SamplingParams
) -> None:
    outputs = engine.generate([prompt.render(question) for question in questions], params)
    for question, output in zip(questions, outputs, strict=True):
        if output.finished:
            _show(question, iter([prompt.clean(output.outputs[0].text)]))
    if not all(output.finished for output in outputs):
        raise KeyboardInterrupt  # which ended it early


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


def _stream(
    engine: Engine, prompt: UrialPrompt, question: str, params: SamplingParams
) -> Iterator[str]:
    """The cleaned answer in pieces. What may still turn out to be its end is held back."""
    text = shown = ""
    for event in engine.stream(prompt.render(question), params):
        text += event.text
        clean = prompt.clean(text if event.finished else PARTIAL_FENCE.sub("", text))
        yield clean[len(shown) :]
        shown = max(shown, clean, key=len)


def _show(question: str, pieces: Iterator[str], *, typed: bool = False) -> None:
    """A question that was just typed stands there already."""
    if not typed:
        typer.secho(f"▸ {question}", bold=True, fg="cyan")
    try:
        for piece in pieces:
            typer.echo(piece, nl=False)
    finally:
        typer.echo("\n")
