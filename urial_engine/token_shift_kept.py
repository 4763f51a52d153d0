"""The folder of a run as it stands: what is finished of it comes out, finished work goes in.

One process at a time writes to it. Whenever that is ended, each file is whole or as it was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import ParameterError
from .json_values import Json
from .jsonl import Results, settle
from .outputs import F32
from .shift_data import Answer, Id, ShiftData
from .sources import Probe
from .token_shift_files import (
    ANSWERS,
    TOKENS,
    Key,
    key,
    read_answers,
    read_data,
    read_keys,
    write_data,
)
from .token_shift_measure import join
from .token_shift_spill import read_states, write_states

RUN, WORK, GENERATED = "run.json", "work", "generated.jsonl"


class Kept:
    """An open run. `answers`: what is measured already, in order; `notes`: for a person."""

    def __init__(self, folder: Path, probes: Sequence[Probe]) -> None:
        """ParameterError where another process has it, or a probe is not what it was."""
        self._folder, self._work = folder, folder / WORK
        self._work.mkdir(parents=True, exist_ok=True)
        expected = {p.id: {"id": p.id, "query": p.query} for p in probes}
        self._generated = Results(self._work / GENERATED, None, expected)
        try:
            self.notes = [self._generated.note] if self._generated.note else []
            self._parts = self._find_parts()
            self.answers = [a for pair in self._parts for a in _answers(*pair)]
            self.measured: set[Key] = {key(a) for a in self.answers}
            _check_same(folder, self.answers, probes)
        except BaseException:
            self.close()
            raise

    def settle(self, parameters: Json, names: Json | None = None) -> None:
        """ParameterError where the run was begun with other parameters; new ones are kept."""
        settle(self._folder / RUN, parameters, names or {})

    def generated(self) -> dict[Id, list[dict[str, Any]]]:
        """The samples of each query that the aligned model has answered, by the query's id."""
        rows = map(json.loads, (self._work / GENERATED).read_bytes().splitlines())
        return {row["id"]: row["outputs"] for row in rows}

    def add_generated(self, probe: Probe, outputs: Sequence[Json]) -> None:
        self._generated.write({"id": probe.id, "query": probe.query, "outputs": list(outputs)})

    def add(self, part: ShiftData) -> None:
        """A measured group, whose hidden states are then of no more use."""
        number = sum(1 for _ in self._work.glob("tokens-*.parquet"))
        pair = self._pair(number)
        write_data(part, *pair)
        self._parts.append(pair)
        self._states(part.answers).unlink(missing_ok=True)

    def states(self, group: Sequence[Answer]) -> dict[str, F32] | None:
        """What the aligned model made of these answers, where it is kept."""
        return read_states(self._states(group), list(map(key, group)))

    def add_states(self, group: Sequence[Answer], states: Mapping[str, F32], dtype: str) -> None:
        write_states(self._states(group), list(map(key, group)), states, dtype)

    def whole(self) -> ShiftData:
        """All that was measured, which is something."""
        return join([read_data(*pair) for pair in self._parts])

    def finish(self) -> None:
        """Everything stands in the folder's own files."""
        self.close()
        shutil.rmtree(self._work)

    def close(self) -> None:
        self._generated.close()

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pair(self, number: int) -> tuple[Path, Path]:
        return (
            self._work / f"answers-{number:05}.jsonl",
            self._work / f"tokens-{number:05}.parquet",
        )

    def _find_parts(self) -> list[tuple[Path, Path]]:
        """Files of answers and of tokens, in order: the finished ones, then those of work/ that
        these do not hold yet."""
        whole = self._folder / ANSWERS, self._folder / TOKENS
        parts = [whole] if whole[1].exists() else []
        held = set(read_keys(whole[1])) if parts else set()
        for number in range(sum(1 for _ in self._work.glob("tokens-*.parquet"))):
            pair = self._pair(number)
            parts += [] if held.issuperset(read_keys(pair[1])) else [pair]
        return parts

    def _states(self, group: Sequence[Answer]) -> Path:
        """A file of these answers alone: where more queries make another group, it is read anew."""
        name = hashlib.sha256(json.dumps(list(map(key, group))).encode()).hexdigest()[:16]
        return self._work / f"states-{name}.npz"


def _answers(answers: Path, tokens: Path) -> list[Answer]:
    known = {key(a): a for a in read_answers(answers)}
    return [known[k] for k in read_keys(tokens) if k in known]


def _check_same(folder: Path, answers: Sequence[Answer], probes: Sequence[Probe]) -> None:
    """A probe that was measured has the same query and, where it brings one, the same answer."""
    known = {key(a): a for a in answers}
    for probe in probes:
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
