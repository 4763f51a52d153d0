"""`shift`: two models, or one under two contexts, in; what differs, token by token, out."""

from __future__ import annotations

from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ParameterError
from ..prompt import NAMED
from ..sources import FORMATS, MALFORMED, Probe, Probes, Skipped, read_probes
from .options import EngineOptions, SamplingOptions, console, note, urial_prompt, with_options

if TYPE_CHECKING:
    from ..token_shift import LeaveOut
    from ..token_shift_run import ShiftRun

NAMES = ", ".join(f"`{name}`" for name in ("chat", *NAMED, "urial"))
HOW = (
    f"{NAMES}, a text that holds {{query}}, a URIAL prefix file, a .json file of examples, or "
    "`given`: the prompt's text in --queries. Again for more; NAME:=PROMPT gives it a name."
)
Base = Annotated[str, typer.Option(help="Model whose ranks are reported.")]
Aligned = Annotated[str, typer.Option(help="Model that answers. The same one: two contexts.")]
BasePrompt = Annotated[
    list[str], typer.Option(help=f"How the base reads a query: `same` as the other, {HOW}")
]
AlignedPrompt = Annotated[list[str], typer.Option(help=f"How the aligned model reads it: {HOW}")]
TopK = Annotated[int, typer.Option(min=0, help="Likeliest tokens of each model to keep.")]
Queries = Annotated[
    Path,
    typer.Option(exists=True, dir_okay=False, help="Queries, with answers where these are given."),
]
Format = Annotated[str, typer.Option(help=f"Of --queries: {', '.join(FORMATS)}.")]
Malformed = Annotated[str, typer.Option(help=f"Malformed rows: {' or '.join(MALFORMED)} them.")]
Folder = Annotated[Path | None, typer.Option("--out", file_okay=False, help="Folder of the run.")]
Samples = Annotated[int, typer.Option(min=1, help="Answers to each query (with a temperature).")]
Published = Annotated[
    bool, typer.Option("--paper", help="Also as the published code counts, and what that changes.")
]
Sequential = Annotated[bool, typer.Option("--sequential", help="Never both models in memory.")]
MapToken = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TOKEN=BASE", help="A token of the aligned model that is one of the base."
    ),
]


@with_options
def shift(
    base: Base,
    aligned: Aligned,
    queries: Queries,
    engine: EngineOptions,
    sampling: SamplingOptions,
    out: Folder = None,
    base_prompt: BasePrompt = ["zero-shot", "urial"],  # noqa: B006  (typer takes it as a default)
    aligned_prompt: AlignedPrompt = ["chat"],  # noqa: B006
    format: Format = "auto",
    malformed: Malformed = "refuse",
    samples: Samples = 1,
    top_k: TopK = 10,
    paper: Published = False,
    sequential: Sequential = False,
    map_token: MapToken = None,
) -> None:
    """Token shift: the rank of each token of the aligned model's answers under the base model.

    With --out, a run that was killed is taken up, and more queries are added to it. The folder has
    page.html, plots, summary.json, answers.jsonl, tokens.parquet and run.json. Where a temperature
    is given without a seed, one is drawn for the whole run and kept.
    """
    if sequential and out is None:
        raise ParameterError("--sequential needs --out: a folder that hidden states are kept in")
    lacking = [name for name in ("pyarrow", "matplotlib", "sacrebleu") if find_spec(name) is None]
    if out is not None and lacking:
        raise ParameterError(
            f"--out needs {', '.join(lacking)}: pip install 'urial-engine[analysis]'"
        )
    params = sampling.params(n=samples)
    read = _read(queries, format, malformed)

    from ..token_shift_models import Model, Models
    from ..token_shift_plan import Plan
    from ..token_shift_run import ShiftRun

    options = asdict(engine)
    models = Models(
        Model(base, options, _prompts("base", base_prompt)),
        Model(aligned, options, _prompts("aligned", aligned_prompt)),
        sequential,
    )
    same = dict(_pair(pair) for pair in map_token or [])
    plan = Plan.make(
        models.base.side("base"),
        models.aligned.side("aligned"),
        top_k,
        map_tokens=same,
        published=paper,
    )
    run = ShiftRun(models, plan, params, same)
    leave_out = _say if malformed == "skip" else None
    _keep(run, out, read, leave_out) if out else _show(run, read.probes, leave_out)


def _keep(run: ShiftRun, out: Path, read: Probes, leave_out: LeaveOut | None) -> None:
    from .shift_bar import run_bar
    from .shift_view import print_summary

    with run_bar() as show:
        summary = run.into(out, read.probes, show, left_out=read.skipped, leave_out=leave_out)
    print_summary(console(), summary)
    note(f"{out / 'page.html'} shows it all", title="done:", style="bold green")


def _show(run: ShiftRun, probes: list[Probe], leave_out: LeaveOut | None) -> None:
    from ..token_shift import shift_of
    from .shift_view import print_shift

    with run.models.opened() as (base, aligned):
        shown = console().is_terminal
        shift = shift_of(
            run.plan, base, aligned, probes, run.params, progress=shown, leave_out=leave_out
        )
    print_shift(console(), shift)


def _read(path: Path, format: str, malformed: str) -> Probes:
    """The queries; what of them was left out is said."""
    read = read_probes(path, format=format, malformed=malformed)
    for row in read.skipped:
        _say(row)
    return read


def _say(row: Skipped) -> None:
    note(f"left out: {row.where}: {row.why}")


def _prompts(side: str, specs: list[str]) -> dict[str, Any]:
    """By name; what has none is called after itself."""
    prompts: dict[str, Any] = {}
    for spec in specs:
        name, given, prompt = spec.partition(":=")
        if not given or "{" in name or name != name.strip() or prompt[:1].isspace() or not name:
            prompt = spec  # a text may hold := too
            is_file = not (prompt in ("chat", "same", "given", *NAMED) or "{query}" in prompt)
            name = Path(prompt).stem if is_file else prompt
        if name in prompts:
            raise ParameterError(f"--{side}-prompt {spec}: two prompts are called {name}")
        prompts[name] = _prompt(prompt)
    return prompts


def _prompt(spec: str) -> Any:
    if spec in ("chat", "same", "given", *NAMED) or "{query}" in spec:
        return spec
    if spec.endswith(".json"):
        from ..prompt_examples import ExamplePrompt

        return ExamplePrompt.load(spec)
    return urial_prompt("default" if spec == "urial" else spec)


def _pair(spec: str) -> tuple[str, str]:
    token, equals, name = spec.partition("=")
    if not (token and equals and name):
        raise ParameterError(f"--map-token {spec}: write TOKEN=BASE, such as '<|im_end|>=</s>'")
    return token, name
