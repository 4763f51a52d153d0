"""`eval judge`: answers and a template in; scores, a table of their means, and failures out."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ParameterError, UrialError
from .evaluate import Suite, check_folder
from .options import console, note

if TYPE_CHECKING:
    from ..evaluation.judged import Item

AnswersIn = Annotated[
    Path, typer.Option("--in", exists=True, dir_okay=False, help="What `eval answers` wrote.")
]
Verdicts = Annotated[
    Path, typer.Option("--out", dir_okay=False, help="File to write; verdicts are kept beside it.")
]
Templates = Annotated[
    list[Path],
    typer.Option(
        "--template",
        exists=True,
        dir_okay=False,
        help="Text that the judge reads, with {instruction} and {output}. mt-bench: twice, with "
        "{question} and {answer}, then {question_1}, {answer_1}, {question_2} and {answer_2}.",
    ),
]
Address = Annotated[str, typer.Option(help="Of any OpenAI-compatible server: http://…/v1.")]
JudgeModel = Annotated[str, typer.Option("--model", help="The judge's name there.")]
Aspects = Annotated[
    str, typer.Option(help="`general` (five of them), `safety`, or several with commas.")
]
MtQuestions = Annotated[
    Path | None,
    typer.Option("--questions", exists=True, dir_okay=False, help="mt-bench: question.jsonl."),
]
KeyVariable = Annotated[
    str | None, typer.Option(metavar="NAME", help="Environment variable that holds the key.")
]
Concurrency = Annotated[int, typer.Option(min=1, help="Requests at the same time.")]
Retries = Annotated[int, typer.Option(min=0, help="Of a request that the server could not serve.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds for a request.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Field of the requests, in JSON; null leaves it out."
    ),
]
RetryFailures = Annotated[bool, typer.Option("--retry-failures", help="Ask for these again.")]
BODY: Mapping[str, Any] = {"temperature": 0, "max_tokens": 2048}


def judge(
    suite: Suite,
    template: Templates,
    source: AnswersIn,
    out: Verdicts,
    address: Address,
    model: JudgeModel,
    aspects: Aspects = "general",
    questions: MtQuestions = None,
    api_key_env: KeyVariable = None,
    concurrency: Concurrency = 8,
    retries: Retries = 3,
    timeout: Timeout = 120.0,
    settings: Settings = None,
    retry_failures: RetryFailures = False,
) -> None:
    """Have answers judged, and take up a run that was killed.

    A verdict that cannot be read is a failure: it is kept with its reason, counted, and asked for
    again with --retry-failures. OUT.summary.json has the means and the failures.
    """
    if find_spec("openai") is None:
        raise ParameterError("eval judge needs openai: pip install 'urial-engine[evaluation]'")

    from ..evaluation.answers import write_rows
    from ..evaluation.judge import Judge, judge_into
    from ..evaluation.judged import report_row, summary
    from ..jsonl import write_atomically
    from .batch import rows_bar

    check_folder(out)
    body = _body(settings or [])
    items = _items(suite, source, template, aspects, questions)
    key = None if api_key_env is None else _key(api_key_env)
    asked = Judge(address, model, key, concurrency, retries, timeout, body)
    made = {"command": "eval judge", "suite": suite, "model": model, "body": body}
    if suite != "mt-bench":
        made["aspects"] = aspects
    kept = out.with_name(f"{out.name}.rows.jsonl")
    with rows_bar(len(items)) as show:
        verdicts = judge_into(
            kept, items, asked, made, retry_failures=retry_failures, show=show, say=note
        )
    write_rows(out, suite, [report_row(i, suite, verdicts[i.id], model) for i in items])
    found = {"suite": suite, "judge": model, **summary(items, verdicts)}
    text = json.dumps(found, ensure_ascii=False, indent=1)
    write_atomically(out.with_name(f"{out.name}.summary.json"), f"{text}\n".encode())
    _print(found)
    if not found["judged"]:
        raise UrialError(f"nothing judged: {out} has what the judge said, and why it is no verdict")
    note(f"{out} has {found['judged']} of {len(items)} judged", title="done:", style="bold green")


def _items(
    suite: str, source: Path, templates: list[Path], aspects: str, questions: Path | None
) -> list[Item]:
    from ..evaluation.judged import answer_items, turn_items

    if suite == "mt-bench":
        if questions is None:
            raise ParameterError("mt-bench needs --questions: its answers do not repeat them")
        return turn_items(source, questions, templates)
    if questions is not None or len(templates) != 1:
        raise ParameterError(f"--suite {suite} takes one --template, and no --questions")
    return answer_items(source, suite, templates[0], aspects)


def _body(settings: list[str]) -> dict[str, Any]:
    body = dict(BODY)
    for setting in settings:
        name, _, value = setting.partition("=")
        try:
            body[name] = json.loads(value)
        except ValueError:
            raise ParameterError(
                f"--set {setting}: write NAME=VALUE with a value in JSON, such as seed=1"
            ) from None
    return {name: value for name, value in body.items() if value is not None}


def _key(variable: str) -> str:
    if not (key := os.environ.get(variable)):
        raise ParameterError(f"--api-key-env {variable}: there is no such environment variable")
    return key


def _print(found: Mapping[str, Any]) -> None:
    from rich.table import Table

    table = Table(title=f"Judged by {found['judge']}", title_justify="left")
    for heading in ("", "mean", "answers"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, own in found["means"].items():
        table.add_row(name, f"{own['mean']:.3f}", str(own["count"]))
    if found["means"]:
        console().print(table)
    for kind, count in found["failed"].items():
        console().print(f"{count} of {found['asked']} failed: {kind}")
