"""The folder of a run as it stands: what is finished of it comes out, finished work goes in.

One process at a time has it, which holds a lock on the folder itself. Whenever that is ended, each
file is whole or as it was, and the next one removes what was half written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from .errors import ParameterError
from .json_values import Json
from .jsonl import Results, lock, settle, write_atomically
from .shift_data import Answer, Id, ShiftData
from .sources import Probe, Skipped
from .token_shift_files import (
    ANSWERS,
    SUMMARY,
    TOKENS,
    VOCABULARY,
    Key,
    answer_of,
    join_files,
    key,
    read_answers,
    read_keys,
    write_data,
)
from .token_shift_states import States, read_states, write_states

LOG = logging.getLogger(__name__)
RUN, WORK, GONE, LEFT_OUT = "run.json", "work", ".work-done", "left_out.jsonl"
GENERATED = "generated.jsonl"
PAGE, PLOTS = "page.html", "plots"
OURS = {RUN, ANSWERS, TOKENS, SUMMARY, VOCABULARY, LEFT_OUT, PAGE}
# What a write that was ended leaves beside its target: jsonl.replacing names it so. By folder.
HALF_WRITTEN = {
    "": re.compile(rf"(?:{'|'.join(map(re.escape, sorted(OURS)))})\.\d+"),
    WORK: re.compile(r"(?:answers|tokens|states)-\w+\.(?:jsonl|parquet|npz)\.\d+"),
    PLOTS: re.compile(r"\w+\.(?:png|svg)\.\d+"),
}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Nobody else has the folder, which is made. ParameterError where another process does."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


class Kept:
    """A run whose folder is locked. `measured`: the answers that it has measures of."""

    def __init__(self, folder: Path, probes: Sequence[Probe]) -> None:
        """ParameterError where a probe is not what it was, or a file is damaged."""
        self._folder, self._work = folder, folder / WORK
        _check_ours(folder)
        _tidy(folder)
        self._work.mkdir(exist_ok=True)
        expected = {p.id: {"id": p.id, "query": p.query} for p in probes}
        self._generated = Results(self._work / GENERATED, None, expected)
        try:
            if self._generated.note:
                LOG.warning(self._generated.note)
            self._parts = self._find_parts()
            answers = [a for pair in self._parts for a in _answers(*pair)]
            self.measured: set[Key] = {key(a) for a in answers}
            _check_same(folder, answers, probes)
            if not (self._parts or self._generated.finished or any(self._work.glob("states-*"))):
                # Parameters bind from the first result on, not from an attempt.
                (folder / RUN).unlink(missing_ok=True)
        except BaseException:
            self.close()
            raise

    def settle(self, parameters: Json, names: Json | None = None) -> None:
        """ParameterError where the run was begun with other parameters; new ones are kept."""
        settle(self._folder / RUN, parameters, names or {})

    def generated(self) -> dict[Id, list[Answer]]:
        """What the aligned model has answered, by the id of the query."""
        path, found = self._work / GENERATED, {}
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            row, where = json.loads(line), f"{path}:{number}"
            if not isinstance(row.get("answers"), list) or not row["answers"]:
                raise ParameterError(f"{where} has no answers; remove the line, or the file")
            found[row["id"]] = [answer_of(fields, where) for fields in row["answers"]]
        return found

    def add_generated(self, probe: Probe, answers: Sequence[Answer]) -> None:
        """All samples of one query."""
        row = {"id": probe.id, "query": probe.query, "answers": [asdict(a) for a in answers]}
        self._generated.write(row)

    def add(self, part: ShiftData) -> None:
        """A measured group, whose hidden states are then of no more use."""
        taken = [int(path.stem.rpartition("-")[2]) for path in self._work.glob("*-*.[jp]*")]
        pair = _pair(self._work, max(taken, default=-1) + 1)
        write_data(part, *pair)
        self._parts.append(pair)
        self._states(part.answers).unlink(missing_ok=True)

    def states(self, group: Sequence[Answer]) -> States | None:
        """What the aligned model made of these answers, where it is kept."""
        return read_states(self._states(group), _marks(group))

    def add_states(self, group: Sequence[Answer], states: States) -> None:
        write_states(self._states(group), _marks(group), states)

    def add_left_out(self, rows: Sequence[Skipped]) -> None:
        """Rows of the input that are no part of the run, and why; a list of all there ever were."""
        path = self._folder / LEFT_OUT
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        lines += [json.dumps(row._asdict(), ensure_ascii=False) for row in rows]
        if rows:
            text = "".join(f"{line}\n" for line in dict.fromkeys(lines))
            write_atomically(path, text.encode())

    def finish(self) -> None:
        """What was measured becomes the folder's own files, and work/ goes: all of it, or none."""
        join_files(self._parts, self._folder)
        self._generated.close()
        self._work.rename(self._folder / GONE)
        shutil.rmtree(self._folder / GONE)

    def close(self) -> None:
        """Nothing stays of a run that did nothing."""
        self._generated.close()
        names = [path.name for path in self._work.iterdir()] if self._work.exists() else []
        if names == [GENERATED] and not (self._work / GENERATED).stat().st_size:
            shutil.rmtree(self._work)

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _find_parts(self) -> list[tuple[Path, Path]]:
        """Files of answers and of tokens, in order: the finished ones, then those of work/ that
        these do not hold yet. A file of tokens is written when its group is complete."""
        whole = self._folder / ANSWERS, self._folder / TOKENS
        parts = [whole] if whole[1].exists() else []
        held = set(read_keys(whole[1])) if parts else set()
        for tokens in sorted(self._work.glob("tokens-*.parquet")):
            pair = _pair(self._work, int(tokens.stem.rpartition("-")[2]))
            parts += [] if held.issuperset(read_keys(tokens)) else [pair]
        return parts

    def _states(self, group: Sequence[Answer]) -> Path:
        """A file of these answers alone: where more queries make another group, it is read anew."""
        name = hashlib.sha256(json.dumps(list(map(key, group))).encode()).hexdigest()[:16]
        return self._work / f"states-{name}.npz"


def _check_ours(folder: Path) -> None:
    """Nothing is touched in a folder that holds something else."""
    names = {path.name for path in folder.iterdir()}
    begun = not names or (folder / WORK / GENERATED).exists()
    if RUN in names:
        try:
            begun = begun or json.loads((folder / RUN).read_bytes())["command"] == "shift"
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ParameterError(
                f"{folder / RUN} is not that of a run ({error!r}); give another --out"
            ) from None
    if not begun and (names - {WORK, GONE} or any((folder / WORK).glob("*"))):
        raise ParameterError(
            f"{folder} holds files and no run ({', '.join(sorted(names)[:3])}); give another --out"
        )


def _tidy(folder: Path) -> None:
    """What an ended process has left half written, or half removed."""
    for name, half in HALF_WRITTEN.items():
        if (folder / name).is_dir():
            for path in (folder / name).iterdir():
                if half.fullmatch(path.name):
                    path.unlink()
    shutil.rmtree(folder / GONE, ignore_errors=True)


def _pair(work: Path, number: int) -> tuple[Path, Path]:
    return work / f"answers-{number:05}.jsonl", work / f"tokens-{number:05}.parquet"


def _marks(group: Sequence[Answer]) -> list[str]:
    """What hidden states depend on: the answers, and what stood before them."""
    read = ([*key(a), a.token_ids, a.aligned_context_ids] for a in group)
    return [hashlib.sha256(json.dumps(one).encode()).hexdigest()[:16] for one in read]


def _answers(answers: Path, tokens: Path) -> list[Answer]:
    known: Mapping[Key, Answer] = {key(a): a for a in read_answers(answers)}
    return [known[k] for k in read_keys(tokens) if k in known]


def _check_same(folder: Path, answers: Sequence[Answer], probes: Sequence[Probe]) -> None:
    """A probe that was measured has the same query and, where it brings one, the same answer."""
    known = {key(a): a for a in answers}
    texts: dict[str, Id] = {str(a.id): a.id for a in answers}
    for probe in probes:
        if texts.setdefault(str(probe.id), probe.id) != probe.id:
            raise ParameterError(
                f"{probe.where}: the id {probe.id!r} is written as {texts[str(probe.id)]!r} is, "
                "and tables name answers so; give one of them another"
            )
        found = known.get((probe.id, probe.sample))
        if found is None:
            continue
        pairs: list[tuple[str, object, object]] = [("query", found.query, probe.query)]
        if probe.answer is not None:
            pairs += [("answer", found.text, probe.answer)]
        if probe.answer_token_ids is not None:
            pairs += [("token_ids", found.token_ids, probe.answer_token_ids)]
        for name, then, now in pairs:
            if then != now:
                raise ParameterError(
                    f"{probe.where}: {folder} holds the row {probe.id!r} with {name} = {then!r}, "
                    f"and the input now has {now!r}; give it an id of its own, or another --out"
                )
