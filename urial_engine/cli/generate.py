"""`generate`: rows with prompts in, rows with completions out, resumable."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ParameterError
from ..jsonl import Row, read_rows
from .options import (
    EngineOptions,
    Model,
    RowsIn,
    RowsOut,
    SamplingOptions,
    any_prompt,
    with_options,
)

if TYPE_CHECKING:
    from ..engine_inputs import Prompt
    from ..outputs import CompletionOutput
    from ..prompt import UrialPrompt
    from ..scheduler_requests import Generation

Form = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        help="How a row's `query` is asked: `default` or a file (URIAL), `chat`, or a text that "
        "holds {query}. Without it rows have a `prompt` or `prompt_token_ids`.",
    ),
]
Samples = Annotated[int, typer.Option("--n", help="Samples of each prompt.")]


@with_options
def generate(
    model: Model,
    source: RowsIn,
    out: RowsOut,
    engine: EngineOptions,
    sampling: SamplingOptions,
    prompt: Form = None,
    n: Samples = 1,
) -> None:
    """Continue the prompts of a JSON Lines file, or take up a run that was killed.

    A row of --in has an `id` (else its line number) and a `prompt`, or `prompt_token_ids`, or with
    --prompt a `query`. A row of --out has the `id`, the `prompt` after the URIAL prefix,
    `outputs` and the `seed`; rows stand there in the order in which they were finished.
    """
    params = sampling.params(n=n)
    form = None if prompt is None else any_prompt(prompt)
    rows = read_rows(source)
    prompts = {row.id: _read(row, asked=form is not None) for row in rows}

    from ..engine_outputs import request_output
    from ..prompt import UrialPrompt, prompt_form
    from .batch import Fields, run_rows

    urial = form if isinstance(form, UrialPrompt) else None
    if urial is not None:
        params = replace(params, stop=(*params.stop_strings, *urial.stop))
    with engine.open(model, form) as opened:
        if form is not None:
            ask = prompt_form(form, opened.tokenizer, prefix=opened.prefix)
            prompts = {key: ask(str(query)) for key, query in prompts.items()}

        def begin(row: Row) -> Fields:
            given = prompts[row.id]
            name = "prompt" if isinstance(given, str) else "prompt_token_ids"
            return {"id": row.id, name: given}

        def request(row: Row) -> Generation:
            return opened.generation(prompts[row.id], params, row.where)

        def end(done: Generation) -> Fields | None:
            output = request_output(done, None, opened.tokenizer)
            shown = [_shown(sample, urial) for sample in output.outputs]
            return {"outputs": shown, "seed": output.seed} if output.finished else None

        run_rows(
            opened,
            rows,
            out,
            {"command": "generate", **asdict(params)},
            begin=begin,
            request=request,
            end=end,
            max_batch=engine.max_batch,
        )


def _read(row: Row, *, asked: bool) -> Prompt:
    """What the row asks for, checked."""
    if asked and "query" not in row.fields:
        raise ParameterError(f"{row.where}: with --prompt, every row needs a query")
    if not asked and "query" in row.fields:
        raise ParameterError(f"{row.where}: a query needs --prompt, which says how it is asked")
    name = row.one_of("prompt", "prompt_token_ids", "query")
    return row.token_ids(name) if name == "prompt_token_ids" else row.text(name)


def _shown(sample: CompletionOutput, urial: UrialPrompt | None) -> dict[str, Any]:
    """With a URIAL prompt also the answer, without what belongs to the prompt's form."""
    names = ("text", "token_ids", "finish_reason", "stop_reason", "cumulative_logprob")
    answer = {} if urial is None else {"answer": urial.clean(sample.text)}
    return {**answer, **{name: getattr(sample, name) for name in names}}
