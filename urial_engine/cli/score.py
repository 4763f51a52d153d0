"""`score`: rows with a prompt and its continuation in, rows with ranks out, resumable."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Annotated

import typer

from ..jsonl import Row, read_rows
from .options import EngineOptions, Model, RowsIn, RowsOut, with_options

if TYPE_CHECKING:
    from ..engine_inputs import Prompt
    from ..scheduler_requests import Request

TopK = Annotated[int, typer.Option(min=0, help="How many of the likeliest tokens to report.")]
PARTS = ("prompt", "continuation")


@with_options
def score(
    model: Model, source: RowsIn, out: RowsOut, engine: EngineOptions, top_k: TopK = 0
) -> None:
    """What a model says of given texts, token by token. A run that was killed is taken up.

    A row of --in has an `id` (else its line number), `prompt` or `prompt_token_ids`, and
    `continuation` or `continuation_token_ids`. A row of --out repeats them and has, for each token
    of the continuation, `token_ids`, `rank`, `ties`, `logprob`, `entropy`, `top_ids` and
    `top_logprobs`; rows stand there in the order in which they were finished.
    """
    rows = read_rows(source)
    pairs = {row.id: (_read(row, PARTS[0]), _read(row, PARTS[1])) for row in rows}

    from ..engine_outputs import score_output
    from .batch import Fields, run_rows

    with engine.open(model) as opened:

        def begin(row: Row) -> Fields:
            named = {name for part in PARTS for name in (part, f"{part}_token_ids")}
            return {"id": row.id, **{k: v for k, v in row.fields.items() if k in named}}

        def request(row: Row) -> Request:
            return opened.scoring(*pairs[row.id], top_k, row.where)

        def end(done: Request) -> Fields | None:
            assert done.scored is not None
            if sum(len(part.rank) for part in done.scored.parts) < len(done.scored.targets):
                return None
            scores = score_output(done.scored)
            return {f.name: getattr(scores, f.name).tolist() for f in fields(scores)}

        run_rows(
            opened,
            rows,
            out,
            {"command": "score", "top_k": top_k},
            begin=begin,
            request=request,
            end=end,
            max_batch=engine.max_batch,
        )


def _read(row: Row, part: str) -> Prompt:
    name = row.one_of(part, f"{part}_token_ids")
    return row.text(name) if name == part else row.token_ids(name)
