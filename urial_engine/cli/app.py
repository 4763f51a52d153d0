"""All commands under one name, and what becomes of an error: one line on stderr, exit code 1."""

from __future__ import annotations

import errno
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import UrialError
from . import (
    answer,
    demo,
    evaluate,
    evaluate_judge,
    generate,
    model,
    prefix,
    runs,
    score,
    serve,
    shift,
)
from .options import note


class Commands(TyperGroup):
    """Shows an error of the engine, or of the system, without the traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (UrialError, OSError) as error:
            gone = getattr(error, "errno", None) == errno.EPIPE  # whoever read us has enough
            if ctx.params["debug"] or gone:
                raise
            message = str(error) or type(error).__name__
            note(message.replace("\n", " "), title="error:", style="bold red")
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
prefixes = typer.Typer(no_args_is_help=True)
evaluations = typer.Typer(no_args_is_help=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"urial-engine {version('urial-engine')}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", callback=_show_version, is_eager=True, help="Show it and leave."),
]


@app.callback()
def options(
    show_version: Version = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Llama and Mistral with a constant URIAL prefix, and the token shift of aligned models."""


app.command()(demo.demo)
app.command()(answer.answer)
app.command()(generate.generate)
app.command()(score.score)
app.command()(serve.serve)
app.command()(shift.shift)
app.command()(runs.report)
app.command()(runs.compare)
app.add_typer(prefixes, name="prefix", help="Prefixes whose cache is kept on disk.")
prefixes.command()(prefix.store)
prefixes.command("list")(prefix.list_stored)
prefixes.command()(prefix.verify)
prefixes.command()(prefix.clear)
app.add_typer(evaluations, name="eval", help="Benchmarks: answers for their judges, and a judge.")
evaluations.command()(evaluate.answers)
evaluations.command()(evaluate.merge)
evaluations.command()(evaluate_judge.judge)
app.command("import-gguf")(model.import_gguf)
app.command()(model.inspect)


def main() -> None:
    """Entry of the console script."""
    app()
