"""Answers in their contexts and two models go in; every measure of every token comes out.

One teacher-forced pass a model and context gives the hidden states that choose the answers' tokens;
then both heads are streamed over the same tokens. A group of answers at a time: the logits of a
position are never held, and the hidden states of no more than ROWS tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .backends.base import HeadComparison, HeadScores
from .errors import NumericsError
from .outputs import F32, I32
from .shift_data import ARRAYS, Answer, Published, ShiftData
from .token_shift_plan import Plan, as_published
from .token_shift_published import (
    KEPT,
    align_published,
    published_answer,
    published_measures,
    published_text,
)
from .token_shift_states import States, narrow, wide

if TYPE_CHECKING:
    from .engine import Engine

ROWS = 4096  # tokens of answers in a group, where an answer has no more by itself
ANSWERS = 32  # in a group: what is lost at most where a run is killed

# (base hidden, targets, top_k, aligned hidden) -> what both heads say; rows count shared tokens
Compare = Callable[[F32, I32, int, F32], HeadComparison]


def groups(answers: Sequence[Answer], rows: int = ROWS) -> Iterator[list[Answer]]:
    """Neighbours, as many as one group of `rows` tokens holds."""
    group: list[Answer] = []
    for answer in answers:
        tokens = sum(len(a.token_ids) for a in group) + len(answer.token_ids)
        if group and (len(group) == ANSWERS or tokens > rows):
            yield group
            group = []
        group.append(answer)
    if group:
        yield group


def read(
    engine: Engine,
    what: str,
    group: Sequence[Answer],
    contexts: Sequence[Sequence[int]],
    ids: Sequence[Sequence[int]],
) -> NDArray[Any]:
    """Hidden states [n, C] that choose the tokens of each of the `ids`, behind each other, as the
    head reads them. `what` reads them is for errors."""
    full = [i for i, own in enumerate(ids) if own]
    if not full:
        return np.empty((0, engine.config.hidden_size), np.float32)
    states = engine.hidden_states(
        [[*contexts[i], *ids[i][:-1]] for i in full],
        [len(contexts[i]) - 1 for i in full],
        labels=[f"query {group[i].query!r} ({what})" for i in full],
    )
    return np.concatenate([narrow(own, engine.backend.hidden_dtype) for own in states])


def read_aligned(plan: Plan, engine: Engine, group: Sequence[Answer]) -> States:
    """What the aligned model makes of the answers."""
    return {
        name: read(
            engine, f"aligned, {name}", group, [a.aligned_context_ids[name] for a in group], ids
        )
        for as_named, ids in _asked(plan, group)
        for name in map(as_named, plan.aligned.prompts)
    }


def measure(
    plan: Plan, base: Engine, compare: Compare, group: Sequence[Answer], of_aligned: States
) -> ShiftData:
    """A group of answers; `of_aligned` is what `read_aligned` said of it."""
    exact, *again = _asked(plan, group)
    data = _assemble(plan, group, _each(plan, base, compare, group, of_aligned, exact, plan.top_k))
    for asked in again:
        found = _each(plan, base, compare, group, of_aligned, asked, KEPT)
        sizes = list(map(len, asked.ids))
        data = replace(data, published=published_rows(plan, data, sizes, found))
    return data


class _Reading(NamedTuple):
    """How prompts are named, and the tokens of each answer that are read."""

    named: Callable[[str], str]
    ids: list[list[int]]


def _asked(plan: Plan, group: Sequence[Answer]) -> list[_Reading]:
    """Ours, then the published code's where that is wanted."""
    asked = [_Reading(str, [a.token_ids for a in group])]
    if plan.published:
        asked.append(_Reading(as_published, [published_ids(plan, a) for a in group]))
    return asked


def _each(
    plan: Plan,
    base: Engine,
    compare: Compare,
    group: Sequence[Answer],
    of_aligned: States,
    asked: _Reading,
    top_k: int,
) -> list[HeadComparison]:
    """One comparison a context; none of nothing."""
    named, ids = asked
    top_k = min(top_k, len(plan.shared.base_ids))
    rows = plan.shared.to_rows(np.array([i for own in ids for i in own], np.int32))  # [n]
    last = {c.base: number for number, c in enumerate(plan.contexts)}
    held: dict[str, NDArray[Any]] = {}
    found = []
    for number, (_, mine, theirs) in enumerate(plan.contexts if rows.size else ()):
        if mine not in held:
            before = [a.base_context_ids[named(mine)] for a in group]
            own = list(map(plan.shared.to_base, ids))
            held[mine] = read(base, f"base, {mine}", group, before, own)
        # Another context may compare the same states: they go with the last of these.
        states = held.pop(mine) if last[mine] == number else held[mine]
        with _named(group, list(map(len, ids))):
            found.append(compare(wide(states), rows, top_k, wide(of_aligned[named(theirs)])))
    return found


@contextmanager
def _named(group: Sequence[Answer], sizes: Sequence[int]) -> Iterator[None]:
    """An error of a row says of which answer and position that is."""
    try:
        yield
    except NumericsError as error:
        ends = list(accumulate(sizes))
        which = int(np.searchsorted(ends, error.row, side="right"))
        position = error.row - ends[which] + sizes[which]
        raise NumericsError(
            f"query {group[which].query!r}: a head gives a value that is not finite at answer "
            f"token {position}; look for NaN or inf in the two checkpoints",
            layer=None,
            row=position,
        ) from error


def published_ids(plan: Plan, answer: Answer) -> list[int]:
    """Of an answer's tokens those at its beginning that stay the same where its text is tokenised
    again, by either model, as the published code does it."""
    mine, theirs = plan.base.tokenizer, plan.aligned.tokenizer
    given = answer.source == "text"
    text = answer.text if given else published_text(theirs, answer.token_ids)
    again = published_answer(theirs, text)
    of_base = published_answer(mine, published_text(theirs, again))
    same = align_published(answer.token_ids, again)
    same = min(same, align_published(plan.shared.to_base(answer.token_ids), of_base))
    return answer.token_ids[:same]


def published_rows(
    plan: Plan, data: ShiftData, sizes: Sequence[int], found: Sequence[HeadComparison]
) -> Published:
    """In the order of `data`; `sizes` are how many tokens of each answer were found again."""
    mine, theirs = plan.base.tokenizer, plan.aligned.tokenizer
    n = len(data.answer)
    rows = Published(np.full(n, -1, np.int32), *(np.full(n, np.nan, np.float32) for _ in "pk"))
    for number, c in enumerate(found):
        measures = published_measures(
            plan.shared.base_ids[c.base.top_ids],
            c.base.top_logprobs,
            plan.shared.aligned_ids[c.aligned.top_ids],
            c.aligned.top_logprobs,
            lambda i: published_text(mine, [i]),
            lambda i: published_text(theirs, [i]),
        )
        has = (data.context == number) & (data.position < np.array(sizes)[data.answer])
        for to, of in zip(rows, measures, strict=True):
            to[has] = of
    return rows


def _assemble(plan: Plan, group: Sequence[Answer], compared: Sequence[HeadComparison]) -> ShiftData:
    """Rows by answer, then context, then position, from one comparison a context."""
    ids = np.array([i for a in group for i in a.token_ids], np.int32)  # [n]
    sizes = np.array([len(a.token_ids) for a in group], np.int64)
    owner = np.repeat(np.arange(len(group)), sizes)  # [n]
    position = np.arange(len(ids)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # [n]
    # Rows of the comparisons, one below the other; stable, so that contexts and positions rise.
    columns = len(plan.contexts)
    order = np.argsort(np.tile(owner, columns), kind="stable")  # [N]
    arrays: dict[str, Any] = {
        "answer": np.tile(owner, columns),
        "context": np.repeat(np.arange(columns), len(ids)),
        "position": np.tile(position, columns),
        "token_id": np.tile(ids, columns),
    }
    arrays = {name: values[order].astype(np.int32) for name, values in arrays.items()}
    for name in (n for n in ARRAYS if n not in arrays):
        values = _column(name, compared, plan.top_k)[order]
        # Heads count the shared tokens; callers the aligned model's ids.
        arrays[name] = plan.shared.aligned_ids[values] if name.endswith("top_ids") else values
    every = [arrays[name].reshape(-1) for name in ("token_id", "base_top_ids", "aligned_top_ids")]
    text = plan.aligned.tokenizer.token_text
    return ShiftData(
        answers=list(group),
        contexts=plan.contexts,
        vocabulary={i: text(i) for i in np.unique(np.concatenate(every)).tolist()},
        **arrays,
    )


def _column(name: str, compared: Sequence[HeadComparison], top_k: int) -> Any:
    """[contexts * n] or [contexts * n, k] of one measure."""
    side, _, measure = name.partition("_")
    own = measure in HeadScores._fields
    if not compared:
        kind = np.int32 if measure in ("rank", "ties", "top_ids") else np.float32
        return np.empty((0, top_k) if measure.startswith("top") else 0, kind)
    return np.concatenate(
        [getattr(getattr(c, side), measure) if own else getattr(c, name) for c in compared]
    )


def join(parts: Sequence[ShiftData]) -> ShiftData:
    """Groups of one run as one, in their order."""
    first = parts[0]
    offsets = accumulate((len(p.answers) for p in parts[:-1]), initial=0)
    arrays = {n: np.concatenate([getattr(p, n) for p in parts]) for n in ARRAYS}
    counts = [len(p.answer) for p in parts]
    arrays["answer"] = arrays["answer"] + np.repeat(np.array(list(offsets), np.int32), counts)
    published = [p.published for p in parts if p.published is not None]
    joined = Published(*map(np.concatenate, zip(*published, strict=True))) if published else None
    return replace(
        first,
        answers=[a for p in parts for a in p.answers],
        vocabulary={k: v for p in parts for k, v in p.vocabulary.items()},
        published=joined,
        **arrays,
    )
