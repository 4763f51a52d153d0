"""Questions and their answers in; the file that each benchmark's own judge reads out, of one run or
of its shards put together."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ParameterError
from ..json_values import Json
from ..jsonl import Id, write_atomically
from .questions import Question, Shard, digest, read_rows


def judged_row(
    suite: str, question: Question, answers: Sequence[str], generator: str, run: Json
) -> dict[str, Any]:
    """Exactly what the judge of the suite reads. `run`: all that the answers depend on.

    just-eval: the id of a row without one is its place in the file, as URIAL's code has it.
    mt-bench: the time stamp of FastChat's rows is 0, since the same run has the same bytes.
    """
    given = question.row.fields
    if suite == "mt-bench":
        return {
            "question_id": question.id,
            "answer_id": digest([run, question.id])[:22],
            "model_id": generator,
            "choices": [{"index": 0, "turns": list(answers)}],
            "tstamp": 0.0,
        }
    (answer,) = answers
    names = ("instruction", "source_id", "dataset")
    row = {name: given[name] for name in names if name in given}
    if suite == "just-eval":
        number = given.get("id", question.index)
        last = {"output": answer, "generator": generator, "datasplit": "just_eval"}
        return {"id": number, **row, **last}
    row.pop("source_id", None)
    split = {"datasplit": given["datasplit"]} if "datasplit" in given else {}
    return {**row, "output": answer, "generator": generator, **split}


def write_rows(path: Path, suite: str, rows: Sequence[Json]) -> None:
    """All at once: a JSON array, or for mt-bench a row on each line."""
    if suite == "mt-bench":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        text = json.dumps(rows, ensure_ascii=False, indent=2) + "\n"
    write_atomically(path, text.encode())


def turn_path(out: Path, turn: int) -> Path:
    """Where the answers of a turn are kept as each is finished; turns count from 1."""
    return out.with_name(f"{out.name}.turn{turn}.jsonl")


def read_turn(path: Path) -> dict[Id, dict[str, Any]]:
    """What a finished turn has, by id."""
    rows = map(json.loads, path.read_bytes().splitlines())
    return {row["id"]: row for row in rows}


def merge(out: Path, shards: Sequence[Path]) -> int:
    """Put the files of all shards together, in the order of the questions; how many rows it has.

    `ParameterError` where one is missing or there twice, is not of the same run, has not the rows
    that it must have, or would be replaced by the whole.
    """
    if out.resolve() in {path.resolve() for path in shards}:
        raise ParameterError(f"{out} is one of the shards; name another file for all of them")
    headers = {path: _header(path) for path in shards}
    _check_same(headers)
    by_number = {Shard.parse(str(header["shard"])): path for path, header in headers.items()}
    of, total = next(iter(by_number)).of, headers[shards[0]]["rows"]
    missing = sorted(set(range(1, of + 1)) - {shard.number for shard in by_number})
    if missing or len(by_number) < len(shards):
        numbers = ", ".join(str(headers[path]["shard"]) for path in shards)
        raise ParameterError(
            f"each of the shards 1/{of} to {of}/{of} is needed once, not {numbers}"
        )
    suite = str(headers[shards[0]]["suite"])
    rows: list[Json] = [{}] * int(str(total))
    for shard, path in by_number.items():
        own = [row.fields for row in read_rows(path, suite)]
        places = shard.take(range(len(rows)))
        if len(own) != len(places):
            raise ParameterError(f"{path} has {len(own)} rows, and shard {shard} {len(places)}")
        for place, row in zip(places, own, strict=True):
            rows[place] = row
    name = "question_id" if suite == "mt-bench" else "id"
    ids = [row[name] for row in rows if name in row]
    if double := [one for one, times in Counter(ids).items() if times > 1]:
        raise ParameterError(f"two shards have a row with the {name} {double[0]!r}")
    write_rows(out, suite, rows)
    return len(rows)


def _header(path: Path) -> dict[str, Any]:
    """With what a shard was made, as stands beside it."""
    first = turn_path(path, 1)
    header = first.with_name(first.name + ".run.json")
    try:
        made: dict[str, Any] = json.loads(header.read_bytes())
        _ = made["suite"], made["shard"], made["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ParameterError(
            f"{header} does not say with what {path} was made ({error}); keep it beside the shard"
        ) from None
    if not path.exists():
        raise ParameterError(f"{path} is not there: the run of shard {made['shard']} is not over")
    return made


def _check_same(headers: Mapping[Path, Mapping[str, Any]]) -> None:
    (first, wanted), *others = headers.items()
    for path, header in others:
        for name in sorted(wanted.keys() | header.keys()):
            one, two = wanted.get(name), header.get(name)
            if name == "shard":
                one, two = (Shard.parse(str(shard)).of for shard in (one, two))
            if one != two:
                raise ParameterError(
                    f"{first} and {path} are not of one run: {name} is {one!r:.60} and {two!r:.60}"
                )
