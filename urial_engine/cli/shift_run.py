"""The work of `shift`: input rows and two models in, measured answers out, kept as they come."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..jsonl import Results, Row
from ..prompt import UrialPrompt, prompt_form
from ..sampling import SamplingParams, fresh_seed
from ..token_shift import token_shift
from ..token_shift_result import TokenShift
from ..token_shift_rows import ANSWERS, write_tables
from .batch import Fields, depends_on, given_answer, rows_bar
from .options import console, note

if TYPE_CHECKING:
    from ..engine import Engine


@dataclass(frozen=True)
class Run:
    """All that the measures depend on besides the rows. Of a pair, the base's comes first."""

    models: tuple[Engine, Engine]
    forms: tuple[UrialPrompt | str, UrialPrompt | str]
    params: SamplingParams
    top_k: int

    def measure(self, rows: Sequence[Row], *, shown: bool) -> TokenShift:
        return token_shift(
            *self.models,
            [row.text("query") for row in rows],
            base_prompt=self.forms[0],
            aligned_prompt=self.forms[1],
            params=self.params,
            answers=[a for row in rows if (a := given_answer(row)) is not None] or None,
            top_k=self.top_k,
            progress=shown and console().is_terminal,
        )

    def kept(self, rows: Sequence[Row], out: Path, group: int) -> TokenShift:
        """`measure`, `group` rows at a time; the folder `out` keeps each group when it is done."""
        self._check(rows)
        out.mkdir(parents=True, exist_ok=True)
        run = replace(self, params=_with_seed(self.params, out / f"{ANSWERS}.run.json"))
        with Results(out / ANSWERS, run._parameters(rows), {r.id: _begin(r) for r in rows}) as file:
            if file.note:
                note(file.note)
            pending = [row for row in rows if row.id not in file.finished]
            with rows_bar(len(rows)) as show:
                for start in range(0, len(pending), group):
                    show(len(rows) - len(pending) + start)
                    some = pending[start : start + group]
                    found = run.measure(some, shown=False).rows()
                    for row, fields in zip(some, found, strict=True):
                        file.write({**fields, "id": row.id})
            # From the file, so that it does not matter which run wrote a row.
            whole = TokenShift.load(out)
            write_tables(out, whole.table(), whole.summary())
        note(f"{out} has it all", title="done:", style="bold green")
        return whole

    def _check(self, rows: Sequence[Row]) -> None:
        """Nothing is begun where a query is too long for a model that is to answer."""
        for engine, form in zip(self.models, self.forms, strict=True):
            ask = prompt_form(form, engine.tokenizer)
            for row in rows:
                if given_answer(row) is None:
                    given = ask(row.text("query"))
                    ids = engine.tokenizer.encode(given) if isinstance(given, str) else given
                    engine.generation(ids, self.params, row.where)

    def _parameters(self, rows: Sequence[Row]) -> Fields:
        """All that a row depends on besides the input's; how to sample, where that is done."""
        generated = given_answer(rows[0]) is None
        # The sampling has a top_k of its own.
        fields = {"command": "shift", "generated": generated, "kept_top_k": self.top_k}
        fields |= asdict(self.params) if generated else {}
        for side, engine, form in zip(("base", "aligned"), self.models, self.forms, strict=True):
            prompt = form.text if isinstance(form, UrialPrompt) else form
            own = {"prompt": prompt, **depends_on(engine)}
            fields |= {f"{side}_{name}": value for name, value in own.items()}
        return fields


def _begin(row: Row) -> Fields:
    """With what the result of this row begins."""
    given = given_answer(row)
    own = {} if given is None else {"text" if isinstance(given, str) else "token_ids": given}
    return {"id": row.id, "query": row.text("query"), **own}


def _with_seed(params: SamplingParams, header: Path) -> SamplingParams:
    """One seed for all of the run: that which it was begun with, else a fresh one."""
    if params.temperature == 0 or params.seed is not None:
        return params
    seed = fresh_seed()
    with suppress(OSError, ValueError, KeyError, TypeError):
        seed = int(json.loads(header.read_bytes())["seed"])
    return replace(params, seed=seed)
