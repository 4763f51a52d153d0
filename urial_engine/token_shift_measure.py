"""Answers in their contexts and two models go in; every measure of every token comes out.

One teacher-forced pass a model and context gives the hidden states that choose the answers' tokens;
then both heads are streamed over the same tokens. A group of answers at a time: the logits of a
position are never held, and the hidden states of no more than ROWS tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from typing import Any, Protocol

import numpy as np

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

ROWS = 4096  # tokens of answers in a group, where an answer has no more by itself
ANSWERS = 32  # in a group: what is lost at most where a run is killed

# (base hidden, targets, top_k, aligned hidden) -> what both heads say; rows count shared tokens
Compare = Callable[[F32, I32, int, F32], HeadComparison]


class Reads(Protocol):
    """An engine, as far as it reads texts."""

    def hidden_states(
        self, ids_list: Sequence[Sequence[int]], first_positions: Sequence[int]
    ) -> list[F32]: ...


def groups(answers: Sequence[Answer]) -> Iterator[list[Answer]]:
    """Neighbours, as many as one group holds."""
    group: list[Answer] = []
    for answer in answers:
        tokens = sum(len(a.token_ids) for a in group) + len(answer.token_ids)
        if group and (len(group) == ANSWERS or tokens > ROWS):
            yield group
            group = []
        group.append(answer)
    if group:
        yield group


def read(engine: Reads, contexts: Sequence[Sequence[int]], ids: Sequence[Sequence[int]]) -> F32:
    """Hidden states [n, C] that choose the tokens of each of the `ids`, behind each other."""
    pairs = [(list(c), list(i)) for c, i in zip(contexts, ids, strict=True) if i]
    if not pairs:
        return np.empty((0, 0), np.float32)
    texts = [before + own[:-1] for before, own in pairs]
    return np.concatenate(engine.hidden_states(texts, [len(c) - 1 for c, _ in pairs]))


def read_aligned(plan: Plan, engine: Reads, group: Sequence[Answer]) -> dict[str, F32]:
    """By the name of the prompt: what the aligned model makes of the answers."""
    asked = {name: [a.token_ids for a in group] for name in plan.aligned.prompts}
    if plan.published:
        again = [published_ids(plan, a) for a in group]
        asked |= {as_published(name): again for name in plan.aligned.prompts}
    return {
        name: read(engine, [a.aligned_context_ids[name] for a in group], ids)
        for name, ids in asked.items()
    }


def measure(
    plan: Plan,
    base: Reads,
    compare: Compare,
    group: Sequence[Answer],
    of_aligned: Mapping[str, F32],
) -> ShiftData:
    """A group of answers; `of_aligned` is what `read_aligned` said of it."""
    ids = [a.token_ids for a in group]
    data = _assemble(plan, group, _each(plan, base, compare, group, (ids, of_aligned, plan.top_k)))
    if not plan.published:
        return data
    again = [published_ids(plan, a) for a in group]
    states = {name: of_aligned[as_published(name)] for name in plan.aligned.prompts}
    kept = min(KEPT, len(plan.shared.base_ids))
    found = _each(plan, base, compare, group, (again, states, kept), as_published)
    return replace(data, published=published_rows(plan, data, list(map(len, again)), found))


def _each(
    plan: Plan,
    base: Reads,
    compare: Compare,
    group: Sequence[Answer],
    asked: tuple[Sequence[Sequence[int]], Mapping[str, F32], int],
    name: Callable[[str], str] = str,
) -> list[HeadComparison]:
    """One comparison a context, of (ids of each answer, aligned states, top k); none of nothing."""
    ids, of_aligned, top_k = asked
    rows = plan.shared.to_rows(np.array([i for own in ids for i in own], np.int32))  # [n]
    hidden: dict[str, F32] = {}
    found = []
    for context in plan.contexts if rows.size else ():
        if context.base not in hidden:
            before = [a.base_context_ids[name(context.base)] for a in group]
            hidden[context.base] = read(base, before, list(map(plan.shared.to_base, ids)))
        states = hidden[context.base], of_aligned[context.aligned]
        with _named(group, list(map(len, ids))):
            found.append(compare(states[0], rows, top_k, states[1]))
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
