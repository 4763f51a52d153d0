"""`shift`: two models, or one under two contexts, in; what differs, token by token, out."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ParameterError
from ..jsonl import Row, read_rows
from .batch import given_answer
from .options import EngineOptions, SamplingOptions, any_prompt, console, with_options

if TYPE_CHECKING:
    from ..engine import Engine
    from ..prompt import UrialPrompt

HOW = "`default` or a file (URIAL), `chat`, or a text that holds {query}."
Base = Annotated[str, typer.Option(help="Model whose ranks are reported.")]
Aligned = Annotated[str, typer.Option(help="Model that answers. The same one: two contexts.")]
BasePrompt = Annotated[str, typer.Option(help=f"How the base reads a query: {HOW}")]
AlignedPrompt = Annotated[str, typer.Option(help=f"How the aligned model reads it: {HOW}")]
TopK = Annotated[int, typer.Option(min=0, help="The base's likeliest tokens to keep.")]
Queries = Annotated[
    Path,
    typer.Option(
        exists=True,
        dir_okay=False,
        help="JSON Lines with `query`, and `answer` or `answer_token_ids` where these are given; "
        "any other file has a query on each line.",
    ),
]
Folder = Annotated[
    Path | None, typer.Option("--out", file_okay=False, help="Folder for all of it.")
]


@with_options
def shift(
    base: Base,
    aligned: Aligned,
    queries: Queries,
    engine: EngineOptions,
    sampling: SamplingOptions,
    out: Folder = None,
    base_prompt: BasePrompt = "default",
    aligned_prompt: AlignedPrompt = "chat",
    top_k: TopK = 10,
) -> None:
    """Token shift: the rank of each token of the aligned model's answers under the base model.

    With --out, a run that was killed is taken up: answers.jsonl has a row for each query whose
    answer is measured, tokens.parquet and summary.json are made when it has all of them. Where a
    temperature is given without a seed, one is drawn for the whole run and kept.
    """
    if out is not None and find_spec("pyarrow") is None:
        raise ParameterError("--out needs pyarrow: pip install 'urial-engine[analysis]'")
    params = sampling.params()
    rows = _read(queries)
    forms = any_prompt(base_prompt), any_prompt(aligned_prompt)

    from .shift_run import Run
    from .shift_view import print_shift

    with ExitStack() as stack:
        models = [stack.enter_context(_open(engine, base, forms[0]))]
        if not _same(base, aligned):
            models.append(stack.enter_context(_open(engine, aligned, forms[1])))
        run = Run((models[0], models[-1]), forms, params, top_k)
        whole = run.kept(rows, out, engine.max_batch) if out else run.measure(rows, shown=True)
        print_shift(console(), whole, models[-1].tokenizer)


def _open(engine: EngineOptions, model: str, form: UrialPrompt | str) -> Engine:
    """Only a URIAL prompt has a prefix that could be kept."""
    return (replace(engine, prefix_dir=None) if isinstance(form, str) else engine).open(model, form)


def _same(base: str, aligned: str) -> bool:
    return base == aligned or Path(base).resolve() == Path(aligned).resolve()


def _read(path: Path) -> list[Row]:
    """The queries, checked; all have an answer, or none."""
    if path.suffix != ".jsonl":
        lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        rows = [Row(i, {"query": text}, f"{path}:{i}") for i, text in lines if text.strip()]
    else:
        rows = read_rows(path)
    if not [row.text("query") for row in rows]:
        raise ParameterError(f"{path} has no queries")
    given = sum(given_answer(row) is not None for row in rows)
    if given not in (0, len(rows)):
        raise ParameterError(f"{path}: {given} of {len(rows)} rows have an answer")
    return rows
