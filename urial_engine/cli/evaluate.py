"""`eval`: a benchmark's questions in, the rows that its judge reads out; these in, what a judge at
any OpenAI-compatible address says of them out. All of it is resumable."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ParameterError, PromptError
from ..prompt import NAMED, UrialPrompt
from .options import (
    EngineOptions,
    MaxTokens,
    Model,
    SamplingOptions,
    any_prompt,
    note,
    with_options,
)

if TYPE_CHECKING:
    from ..engine import Engine
    from ..evaluation.conversation import Conversation
    from ..evaluation.questions import Question
    from ..jsonl import Id
    from ..sampling import SamplingParams
    from ..scheduler_requests import Generation

Suite = Annotated[str, typer.Option(help="just-eval, alpaca-eval or mt-bench.")]
Questions = Annotated[
    Path,
    typer.Option("--in", exists=True, dir_okay=False, help="The benchmark's own file."),
]
Answers = Annotated[
    Path,
    typer.Option("--out", dir_okay=False, help="What its judge reads; rows are kept beside it."),
]
Form = Annotated[
    str,
    typer.Option(
        "--prompt",
        help=f"`default` or a file (URIAL), `chat`, {', '.join(f'`{n}`' for n in NAMED)}, or a "
        "text that holds {query}.",
    ),
]
ShardOption = Annotated[
    str, typer.Option("--shard", metavar="I/N", help="Answer every N-th row, from row I on.")
]
Generator = Annotated[
    str | None, typer.Option(help="Who answers, for the judge; the model's name by default.")
]
ByCategory = Annotated[
    bool,
    typer.Option("--category-temperatures", help="mt-bench: FastChat's of each category."),
]
AnswersOut = Annotated[Path, typer.Argument(dir_okay=False, help="File to write.")]
Shards = Annotated[
    list[Path], typer.Argument(dir_okay=False, help="Every shard's file, in any order.")
]
RunSeed = Annotated[
    int, typer.Option(help="Of sampled answers: each row draws from it and the row's id.")
]
MOST_NAMED = 5  # rows that cannot be asked, in the error


@dataclass(frozen=True)
class Sampling(SamplingOptions):
    """Greedy; with a temperature the same every time, since it has a seed."""

    max_tokens: MaxTokens = 2048
    seed: RunSeed = 0


@dataclass(frozen=True)
class Run:
    """Everything about a run that its questions share. `made`: all that the answers depend on."""

    engine: Engine
    form: Conversation
    params: SamplingParams
    by_category: bool

    def request(self, question: Question, turns: list[str], turn: int) -> Generation:
        """For an answer to `turns`. The answers that are still to come share what room is left."""
        label, later = question.row.where, question.turns[turn:]
        if not later:
            return self.engine.generation(
                self.form.render(turns), self._params(question, turn, self.engine.context), label
            )
        rest = [text for query in later for text in ("", query)]
        whole = self.engine.generation(self.form.render([*turns, *rest]), self.params, label)
        room = (self.engine.context - len(whole.ids)) // (len(later) + 1)
        if room < 1:
            raise PromptError(
                f"{label}: {len(whole.ids)} tokens of prompt and turns leave no room for "
                f"{len(later) + 1} answers in a context of {self.engine.context}"
            )
        return self.engine.generation(
            self.form.render(turns), self._params(question, turn, room), label
        )

    def _params(self, question: Question, turn: int, room: int) -> SamplingParams:
        from ..evaluation.questions import seed_of

        asked = self.params.max_tokens
        assert self.params.seed is not None, "it has a default"
        return replace(
            self.params,
            max_tokens=room if asked is None else min(asked, room),
            seed=seed_of(self.params.seed, question.id, turn),
            temperature=question.temperature if self.by_category else self.params.temperature,
            stop=(*self.params.stop_strings, *self.form.stop),
        )


@with_options
def answers(
    model: Model,
    suite: Suite,
    source: Questions,
    out: Answers,
    engine: EngineOptions,
    sampling: Sampling,
    prompt: Form = "default",
    shard: ShardOption = "1/1",
    generator: Generator = None,
    category_temperatures: ByCategory = False,
) -> None:
    """Answer a benchmark, and write exactly the rows that its judge reads.

    Answers are kept in OUT.turn1.jsonl (and .turn2) as each is finished, so that a run can be
    killed and started again; OUT is written when it is whole.
    """
    params = sampling.params()
    form: Any = prompt if prompt in NAMED else any_prompt(prompt)

    from ..evaluation.conversation import conversation
    from ..evaluation.questions import Shard, digest_of, read_questions

    check_folder(out)
    part, questions = Shard.parse(shard), read_questions(source, suite)
    if not (own := part.take(questions)):
        raise ParameterError(f"--shard {shard}: {source} has only {len(questions)} rows")
    _check(suite, params, category_temperatures)
    name = generator or Path(model).resolve().name
    several = any(len(question.turns) > 1 for question in questions)
    made = {
        "command": "eval answers",
        "suite": suite,
        "questions": digest_of(questions),
        "rows": len(questions),
        "form": "urial" if isinstance(form, UrialPrompt) else form,
        "generator": name,
        "category_temperatures": category_temperatures,
        **asdict(params),
    }
    with engine.open(model, form) as opened:
        run = Run(
            opened,
            conversation(form, opened.tokenizer, several=several),
            params,
            category_temperatures,
        )
        _answer(run, own, out, made, shard=str(part), max_batch=engine.max_batch)


def _answer(
    run: Run,
    questions: list[Question],
    out: Path,
    made: dict[str, Any],
    *,
    shard: str,
    max_batch: int,
) -> None:
    """Turn by turn: all that were answered so far are the history of the next."""
    from ..evaluation.answers import judged_row, read_turn, turn_path, write_rows

    history: dict[Id, list[str]] = {question.id: [] for question in questions}
    cut = 0
    for turn in range(1, max(len(question.turns) for question in questions) + 1):
        asked = [question for question in questions if len(question.turns) >= turn]
        for question in asked:
            history[question.id].append(question.turns[turn - 1])
        path = turn_path(out, turn)
        _one_turn(
            run, asked, history, turn, path, {**made, "shard": shard, "turn": turn}, max_batch
        )
        for key, row in read_turn(path).items():
            history[key].append(row["answer"])
            cut += row["finish_reason"] == "length"
    everything = {**made, **run.engine.identity, "prefix": run.engine.prefix}
    rows = [
        judged_row(made["suite"], q, history[q.id][1::2], made["generator"], everything)
        for q in questions
    ]
    write_rows(out, made["suite"], rows)
    if cut:
        note(f"{cut} answers had no end yet when they reached --max-tokens or the context's end")
    note(f"{out} has {len(rows)} rows for the judge", title="done:", style="bold green")


def _one_turn(
    run: Run,
    questions: list[Question],
    history: dict[Id, list[str]],
    turn: int,
    path: Path,
    made: dict[str, Any],
    max_batch: int,
) -> None:
    from ..engine_outputs import request_output
    from ..jsonl import Row
    from .batch import Fields, run_rows

    requests, wrong = {}, []
    for question in questions:
        try:
            requests[question.id] = run.request(question, history[question.id], turn)
        except PromptError as error:
            wrong.append(str(error))
    if wrong:  # all of them, before any work: the judge's file must have every row
        named = wrong[:MOST_NAMED] + ["…"] * (len(wrong) > MOST_NAMED)
        raise PromptError(
            f"{len(wrong)} of {len(questions)} rows cannot be asked; give a shorter --prompt, or a "
            f"--in without them: {'; '.join(named)}"
        )

    def begin(row: Row) -> Fields:
        return {"id": row.id, "prompt": run.form.render(history[row.id])}

    def end(done: Generation) -> Fields | None:
        output = request_output(done, None, run.engine.tokenizer)
        (sample,) = output.outputs
        answer = {"answer": run.form.clean(sample.text), "text": sample.text}
        reason = {"finish_reason": sample.finish_reason, "seed": output.seed}
        return {**answer, **reason} if output.finished else None

    rows = [question.row for question in questions]
    run_rows(
        run.engine,
        rows,
        path,
        made,
        begin=begin,
        request=lambda row: requests[row.id],
        end=end,
        max_batch=max_batch,
    )


def merge(out: AnswersOut, shards: Shards) -> None:
    """Put the files of all shards of one run together: the bytes of a run without shards."""
    from ..evaluation.answers import merge as merge_shards

    check_folder(out)
    rows = merge_shards(out, shards)
    note(f"{out} has {rows} rows for the judge", title="done:", style="bold green")


def check_folder(out: Path) -> None:
    """Where the file is to be written there must be a folder, before there is anything to write."""
    if not out.parent.is_dir():
        raise ParameterError(f"{out}: there is no folder {out.parent}; make it first")


def _check(suite: str, params: SamplingParams, by_category: bool) -> None:
    if params.n != 1:
        raise ParameterError(f"n={params.n}: the judges read one answer to each question")
    if by_category and suite != "mt-bench":
        raise ParameterError(f"--category-temperatures with --suite {suite}: only mt-bench has any")
    if by_category and params.temperature:
        raise ParameterError(
            f"--temperature {params.temperature} with --category-temperatures: give one of them"
        )
