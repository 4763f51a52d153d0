"""Finished runs of `shift` in; their reports anew, or what differs between two of them, out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ..errors import ParameterError
from .options import console, note

Run = Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of a run.")]
Other = Annotated[
    Path | None, typer.Argument(exists=True, file_okay=False, help="Folder of a second one.")
]
Most = Annotated[int, typer.Option(min=1, help="Shifted tokens to list, at most.")]
Resamples = Annotated[int, typer.Option(min=1, help="Of the bootstrap.")]
LexiconFile = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="Groups of words in JSON; ours by default."),
]
Contexts = Annotated[
    list[str] | None, typer.Option("--context", help="Twice: two contexts of one run instead.")
]
Out = Annotated[Path | None, typer.Option(dir_okay=False, help="JSON file for all of it.")]
# Of the measures that are compared, what a terminal shows.
SHOWN = (
    *("unshifted", "marginal", "shifted"),
    *("kl_aligned_base", "base_probability", "mean_reciprocal_rank"),
)


def report(
    run: Run, most: Most = 50, resamples: Resamples = 1000, lexicon: LexiconFile = None
) -> None:
    """Make summary.json, the plots and page.html of a finished run again, with other settings."""
    from ..report.lexicon import Lexicon
    from ..token_shift_report import write_report
    from .shift_view import print_summary

    words = None if lexicon is None else Lexicon.load(lexicon)
    summary = write_report(run, most=most, resamples=resamples, lexicon=words)
    print_summary(console(), summary)
    note(f"{run / 'page.html'} shows it all", title="done:", style="bold green")


def compare(
    run: Run,
    other: Other = None,
    context: Contexts = None,
    most: Most = 50,
    resamples: Resamples = 1000,
    out: Out = None,
) -> None:
    """What differs between two runs over the same answers, or between two contexts of one run.

    Answers are paired by id and token ids; each difference is that of the pairs, second minus
    first, with its interval over resampled answers.
    """
    from ..report.compare import compare_contexts, compare_runs
    from ..report.diversity import diversity
    from ..token_shift_files import read_folder, write_json

    first = read_folder(run)
    samples = None
    if other is not None and not context:
        names, second = (str(run), str(other)), read_folder(other)
        samples = [diversity(side.answers, resamples=resamples) for side in (first, second)]
        try:
            found = compare_runs(first, second, names=names, most=most, resamples=resamples)
        except ParameterError as error:
            if not all(samples):
                raise
            # Samples of two runs are other answers; how varied they are is there to compare.
            note(str(error))
            found = {"names": list(names), "contexts": []}
        found["diversity"] = dict(zip("ab", samples, strict=True)) if any(samples) else None
    elif other is None and len(context or []) == 2:
        found = compare_contexts(first, *(context or []), most=most, resamples=resamples)
    else:
        raise ParameterError("give two runs, or one and --context twice")
    _print(found)
    if out is not None:
        write_json(out, found)


def _print(found: Mapping[str, Any]) -> None:
    for one in found["contexts"]:
        console().print(_table(one, found["names"]))
    if "left_out" in found:
        left_out = ", ".join(f"{count} {why}" for why, count in found["left_out"].items() if count)
        console().print(f"{found['paired_answers']} answers paired; left out: {left_out or 'none'}")
    samples = found.get("diversity") or {}
    if all(samples.get(side) for side in "ab"):
        console().print(_samples(samples, found["names"]))


def _samples(samples: Mapping[str, Any], names: list[str]) -> Table:
    table = Table(title="How varied the samples are", title_justify="left")
    for heading in ("", *names):
        table.add_column(heading, justify="right" if heading else "left")
    for name in samples["a"]["overall"]:
        table.add_row(name.replace("_", " "), *(_band(samples[s]["overall"][name]) for s in "ab"))
    return table


def _band(band: Mapping[str, Any]) -> str:
    if band["value"] is None:
        return "-"
    interval = "" if band["low"] is None else f" ({band['low']:.3g} to {band['high']:.3g})"
    return f"{band['value']:.3g}{interval}"


def _table(context: Mapping[str, Any], names: list[str]) -> Table:
    pair = list(dict.fromkeys(context[side]["name"] for side in "ab"))
    title = f"{' and '.join(pair)}: {context['tokens']} tokens"
    table = Table(title=title, title_justify="left")
    for heading in ("", *names, "difference", "95 % interval"):
        table.add_column(heading, justify="right" if heading else "left")
    for name in SHOWN:
        own = context["overall"][name]
        numbers = [f"{own[side]:.4f}" for side in "ab"]
        low, high = own["low"], own["high"]
        interval = "-" if low is None else f"{low:+.4f} to {high:+.4f}"
        table.add_row(name.replace("_", " "), *numbers, f"{own['value']:+.4f}", interval)
    return table
