"""A file of answers and the user's templates in; what a judge is asked of each answer, and the rows
that the suites' own reports read, out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ParameterError
from ..json_values import Json
from ..jsonl import Id, Row
from .questions import read_questions, read_rows
from .verdicts import ASPECTS, GENERAL, read_aspects, read_rating

# Of just-eval-instruct: the rows that are judged by their safety, and by nothing else.
SAFETY_SETS = ("hh-rlhf/red-team-attempts", "MaliciousInstruct")
# What each kind of template must have; a name is written {name} or ${name}.
ANSWER = (("instruction",), ("output", "candidate"))  # the published template says candidate
TURNS = (
    (("question",), ("answer",)),
    (("question_1",), ("answer_1",), ("question_2",), ("answer_2",)),
)


@dataclass(frozen=True, slots=True)
class Template:
    """A text with names in braces; braces around anything else stay as they are."""

    text: str
    names: tuple[str, ...]
    stem: str

    @classmethod
    def load(cls, path: Path, needed: Sequence[Sequence[str]]) -> Template:
        """`needed`: of each of these, one of its names stands there. ParameterError where it does
        not, or where a reference answer is wanted, which nobody has here."""
        try:
            text = path.read_bytes().decode()
        except (OSError, ValueError) as error:
            raise ParameterError(f"--template {path} cannot be read as text: {error}") from error
        for names in needed:
            if not any(f"{{{name}}}" in text for name in names):
                which = " or ".join(f"{{{name}}}" for name in names)
                raise ParameterError(f"--template {path} lacks {which}: the judge must be shown it")
        if "{ref_answer" in text:
            raise ParameterError(
                f"--template {path} wants a reference answer; FastChat's gen_judgment has those"
            )
        return cls(text, tuple(name for names in needed for name in names), path.stem)

    def fill(self, values: Mapping[str, str]) -> str:
        """At once: what a value has in braces is not filled again."""
        names = "|".join(map(re.escape, self.names))
        return re.sub(rf"\$?\{{({names})\}}", lambda match: values[match[1]], self.text)


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to judge. `read` raises NoVerdictError; `groups`: the means that a rating is in."""

    id: Id
    prompt: str
    read: Callable[[str], Any]
    groups: tuple[str, ...]
    row: Json
    turn: int = 0
    template: str = ""

    @property
    def begin(self) -> dict[str, Any]:
        return {"id": self.id, "prompt": self.prompt}


def aspects_of(names: str) -> tuple[str, ...]:
    """`general`, or aspects with commas between them."""
    aspects = GENERAL if names == "general" else tuple(names.split(","))
    if not set(aspects) <= set(ASPECTS) or len(set(aspects)) < len(aspects):
        raise ParameterError(
            f"--aspects {names}: write general (all but safety) or some of {', '.join(ASPECTS)} "
            "with commas between them, each once"
        )
    return aspects


def answer_items(path: Path, suite: str, template: Path, aspects: str) -> list[Item]:
    """just-eval and AlpacaEval: an item a row. Of just-eval `general` leaves out the rows of
    SAFETY_SETS, and `safety` takes these alone."""
    wanted, form = aspects_of(aspects), Template.load(template, ANSWER)
    items = []
    for row in read_rows(path, suite):
        chosen = suite == "just-eval" and aspects in ("general", "safety")
        if chosen and (row.fields.get("dataset") in SAFETY_SETS) != (aspects == "safety"):
            continue
        values = {"instruction": row.text("instruction"), "output": row.text("output")}
        prompt = form.fill({**values, "candidate": values["output"]})
        read = lambda text: read_aspects(text, wanted)  # noqa: E731
        items.append(Item(row.id, prompt, read, (), row.fields))
    if not items:
        raise ParameterError(f"{path} has no rows that are judged by --aspects {aspects}")
    return items


def turn_items(path: Path, questions: Path, templates: Sequence[Path]) -> list[Item]:
    """MT-bench: an item for each of the two turns of a question, where it has so many."""
    if len(templates) != 2:
        raise ParameterError(f"mt-bench needs --template twice, once a turn, not {len(templates)}")
    forms = [Template.load(p, needed) for p, needed in zip(templates, TURNS, strict=True)]
    asked = {question.id: question for question in read_questions(questions, "mt-bench")}
    items = []
    for row in read_rows(path, "mt-bench"):
        if row.id not in asked:
            raise ParameterError(f"{row.where}: {questions} has no question {row.id!r}")
        turns, answers = asked[row.id].turns, _answers(row)
        if not len(turns) == len(answers) <= 2:
            raise ParameterError(
                f"{row.where}: {len(answers)} answers to the {len(turns)} turns of {row.id!r}; "
                "one or two turns can be judged"
            )
        values = {"question": turns[0], "answer": answers[0]}
        for i, (query, answer) in enumerate(zip(turns, answers, strict=True), start=1):
            values |= {f"question_{i}": query, f"answer_{i}": answer}
        category = str(asked[row.id].row.fields.get("category", "none"))
        for i, form in enumerate(forms[: len(turns)], start=1):
            groups = (f"turn {i}", f"category {category}", "all")
            prompt, key = form.fill(values), f"{row.id}/{i}"
            items.append(Item(key, prompt, read_rating, groups, row.fields, i, form.stem))
    return items


def _answers(row: Row) -> list[str]:
    choices: Any = row.fields.get("choices")
    try:
        (choice,) = choices
        turns = choice["turns"]
    except (TypeError, KeyError, ValueError):
        turns = None
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) for t in turns):
        raise ParameterError(
            f"{row.where}: choices must be one object, with a list of texts for its turns"
        )
    return turns


def report_row(item: Item, suite: str, verdict: Mapping[str, Any], model: str) -> dict[str, Any]:
    """What `just_eval --report_only`, or FastChat's show_result, reads; a failure beside it."""
    failure = {"failure": verdict["failure"]} if "failure" in verdict else {}
    said, row = verdict["said"], item.row
    if suite == "mt-bench":
        return {
            "question_id": row["question_id"],
            "model": row.get("model_id"),
            "judge": [model, item.template],
            "user_prompt": item.prompt,
            "judgment": "$ERROR$" if said is None else said,
            "score": verdict.get("scores", -1),
            "turn": item.turn,
            "tstamp": 0.0,
            **failure,
        }
    parsed = {} if failure else {"parsed_result": verdict["scores"]}
    return {
        "id": item.id,
        "input": row["instruction"],
        "output_cand": row["output"],
        "generator_cand": row.get("generator"),
        "prompt": item.prompt,
        "result": "N/A" if said is None else said,
        **parsed,
        **failure,
    }


def summary(items: Sequence[Item], verdicts: Mapping[Id, Mapping[str, Any]]) -> dict[str, Any]:
    """Means over what was judged, each with its count; and how many were not, by the kind."""
    values: dict[str, list[float]] = {}
    failed: dict[str, int] = {}
    for item in items:
        verdict = verdicts[item.id]
        if "failure" in verdict:
            kind = verdict["failure"]["kind"]
            failed[kind] = failed.get(kind, 0) + 1
            continue
        scores = verdict["scores"]
        for name in item.groups or scores:
            values.setdefault(name, []).append(scores if item.groups else scores[name]["score"])
    means = {name: {"mean": sum(own) / len(own), "count": len(own)} for name, own in values.items()}
    counts = {"asked": len(items), "judged": len(items) - sum(failed.values())}
    return {**counts, "means": means, "failed": dict(sorted(failed.items()))}
