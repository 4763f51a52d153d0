"""Token distribution shift: what tuning (or prompting) changed, token by token (arXiv 2312.01552,
section 2).

Enters: a base and an aligned engine (or one engine twice, under two contexts) and queries. Leaves:
for every answer token the base model's rank, log-probabilities under both, KL both ways, entropies
and the base's top-k, computed in one teacher-forced pass a model; the logits of a position are
never held.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .backends.base import HeadComparison
from .errors import ParameterError, PromptError
from .prompt import prompt_form
from .sampling import SamplingParams

if TYPE_CHECKING:
    import pyarrow

    from .engine import Engine

CLASSES = ("unshifted", "marginal", "shifted")
GROUP = 32  # answers whose hidden states are held at once


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer with everything that was fed to the two models. Ids are the ground truth, texts
    are for people."""

    query: str
    text: str
    token_ids: list[int]
    base_context_ids: list[int]
    aligned_context_ids: list[int]
    finish_reason: str | None  # None for an answer that was given, not generated


@dataclass(frozen=True, slots=True)
class TokenShift:
    """A row an answer token, all answers in a row. `answer` and `position` (from 0) say where a
    row stands."""

    answers: list[Answer]
    answer: NDArray[np.int32]  # [N]
    position: NDArray[np.int32]  # [N]
    token_id: NDArray[np.int32]  # [N]
    token: list[str]  # [N]
    base_rank: NDArray[np.int32]  # [N] 1 = the base model's first choice
    base_ties: NDArray[np.int32]  # [N]
    base_logprob: NDArray[np.float32]  # [N] nats
    aligned_logprob: NDArray[np.float32]  # [N]
    kl_aligned_base: NDArray[np.float32]  # [N] KL(aligned || base) over the whole vocabulary
    kl_base_aligned: NDArray[np.float32]  # [N]
    base_entropy: NDArray[np.float32]  # [N]
    aligned_entropy: NDArray[np.float32]  # [N]
    base_top_ids: NDArray[np.int32]  # [N, k]
    base_top_logprobs: NDArray[np.float32]  # [N, k]

    @property
    def shift_class(self) -> NDArray[np.int8]:
        """[N] index into CLASSES: rank 1 unshifted, 2 and 3 marginal, above shifted."""
        return np.digitize(self.base_rank, (2, 4)).astype(np.int8)

    def ratios(self, rows: NDArray[np.bool_] | slice = slice(None)) -> dict[str, float]:
        """Share of each class among the rows; empty when there are none."""
        chosen = self.shift_class[rows]
        return (
            {name: float(np.mean(chosen == i)) for i, name in enumerate(CLASSES)}
            if chosen.size
            else {}
        )

    def summary(self, *, window: int = 16, most: int = 20) -> dict[str, Any]:
        """Class ratios overall and by `window` positions, mean KL, and the most shifted tokens
        with their counts."""
        shifted = self.shift_class == 2
        ids, counts = np.unique(self.token_id[shifted], return_counts=True)
        text = dict(zip(self.token_id.tolist(), self.token, strict=True))
        order = np.lexsort((ids, -counts))[:most]
        starts = range(0, int(self.position.max(initial=-1)) + 1, window)
        return {
            "answers": len(self.answers),
            "tokens": int(self.token_id.size),
            "overall": self.ratios(),
            "mean_kl_aligned_base": float(self.kl_aligned_base.mean())
            if self.token_id.size
            else 0.0,
            "by_position": [
                {"from": s, "to": s + window, **self._window(s, s + window)} for s in starts
            ],
            "most_shifted": [
                {"token": text[int(ids[i])], "token_id": int(ids[i]), "count": int(counts[i])}
                for i in order
            ],
        }

    def _window(self, begin: int, end: int) -> dict[str, Any]:
        rows = (self.position >= begin) & (self.position < end)
        kl = float(self.kl_aligned_base[rows].mean()) if rows.any() else 0.0
        return {"tokens": int(rows.sum()), "mean_kl_aligned_base": kl, **self.ratios(rows)}

    def table(self) -> pyarrow.Table:
        """A row a token, as `pyarrow.Table` (extra `analysis`). Top-k columns are lists."""
        try:
            import pyarrow as pa
        except ImportError as e:
            raise ParameterError(
                "a table needs pyarrow: pip install 'urial-engine[analysis]'"
            ) from e
        columns: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name != "answers":
                columns[f.name] = (
                    list(value) if isinstance(value, np.ndarray) and value.ndim == 2 else value
                )
        names = np.array(CLASSES, dtype=object)[self.shift_class]
        return pa.table({**columns, "shift_class": names.astype(str)})

    def save(self, folder: str | Path) -> None:
        """Write tokens.parquet (a row a token), answers.jsonl (a row an answer, contexts
        included), summary.json."""
        table = self.table()
        import pyarrow.parquet as parquet

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        parquet.write_table(table, folder / "tokens.parquet")
        rows = ({f.name: getattr(a, f.name) for f in fields(a)} for a in self.answers)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "answers.jsonl").write_text(lines, encoding="utf-8")
        summary = json.dumps(self.summary(), indent=1, ensure_ascii=False)
        (folder / "summary.json").write_text(summary + "\n", encoding="utf-8")


def token_shift(
    base: Engine,
    aligned: Engine,
    queries: Sequence[str],
    *,
    base_prompt: Any,
    aligned_prompt: Any = "chat",
    params: SamplingParams | None = None,
    answers: Sequence[str | Sequence[int]] | None = None,
    top_k: int = 10,
    progress: bool = False,
) -> TokenShift:
    """The aligned model answers each query under its own template; the base model reads the query
    under its template and the answer's token ids; each answer token gets its rank,
    log-probabilities and divergences.

    `base` and `aligned` may be one engine: then it is the prompt's shift that is measured. A
    prompt is a `UrialPrompt`, a template with {query}, "chat", or a callable. `answers` are token
    ids, or texts that the aligned tokenizer splits; None generates them (greedily unless `params`
    says otherwise). Raises `ParameterError` for two models that do not share a vocabulary.
    """
    if answers is not None and len(answers) != len(queries):
        raise ParameterError(f"{len(answers)} answers for {len(queries)} queries; give one each")
    if base.config.vocab_size != aligned.config.vocab_size:
        raise ParameterError(
            f"the base model has {base.config.vocab_size} tokens and the aligned one "
            f"{aligned.config.vocab_size}; "
            "ranks and KL compare two distributions over one vocabulary"
        )
    pairs = _contexts(base, aligned, queries, base_prompt, aligned_prompt)
    done = _given(aligned, queries, pairs, answers) if answers is not None else None
    if done is None:
        done = _generated(
            aligned, queries, pairs, params or SamplingParams(max_tokens=256), progress
        )
    _check_tokens(base, aligned, done)
    groups = range(0, len(done), GROUP)
    compared = [c for g in groups for c in _compare(base, aligned, done[g : g + GROUP], top_k)]
    return _assemble(aligned, done, compared, top_k)


def _context_ids(
    engine: Engine, form: Callable[[str], str | list[int]], query: str, chat: bool
) -> list[int]:
    """A chat template writes its own special tokens; everything else gets those of the tokenizer's
    configuration."""
    text = form(query)
    ids = (
        text
        if not isinstance(text, str)
        else engine.tokenizer.encode(text, add_special_tokens=not chat)
    )
    if not ids:
        raise PromptError(
            f"the context of query {query!r} has no tokens; "
            "at least one must stand before an answer"
        )
    return list(ids)


def _contexts(
    base: Engine, aligned: Engine, queries: Sequence[str], base_prompt: Any, aligned_prompt: Any
) -> list[tuple[list[int], list[int]]]:
    base_form = prompt_form(base_prompt, base.tokenizer)
    aligned_form = prompt_form(aligned_prompt, aligned.tokenizer)
    return [
        (
            _context_ids(base, base_form, q, base_prompt == "chat"),
            _context_ids(aligned, aligned_form, q, aligned_prompt == "chat"),
        )
        for q in queries
    ]


def _given(
    aligned: Engine,
    queries: Sequence[str],
    pairs: list[tuple[list[int], list[int]]],
    answers: Sequence[str | Sequence[int]],
) -> list[Answer]:
    out = []
    for query, (base_ids, aligned_ids), a in zip(queries, pairs, answers, strict=True):
        ids = (
            aligned.tokenizer.encode(a, add_special_tokens=False) if isinstance(a, str) else list(a)
        )
        text = a if isinstance(a, str) else aligned.tokenizer.decode(ids)
        out.append(Answer(query, text, ids, base_ids, aligned_ids, None))
    return out


def _generated(
    aligned: Engine,
    queries: Sequence[str],
    pairs: list[tuple[list[int], list[int]]],
    params: SamplingParams,
    progress: bool,
) -> list[Answer]:
    if params.n != 1:
        raise ParameterError(f"n={params.n}: token_shift follows one answer a query")
    outputs = aligned.generate([ids for _, ids in pairs], params, progress=progress)
    return [
        Answer(q, o.outputs[0].text, list(o.outputs[0].token_ids), b, a, o.outputs[0].finish_reason)
        for q, (b, a), o in zip(queries, pairs, outputs, strict=True)
    ]


def _check_tokens(base: Engine, aligned: Engine, answers: list[Answer]) -> None:
    """The same id must be the same token in both, or a rank would be that of another word."""
    for i in sorted({i for a in answers for i in a.token_ids}):
        if not 0 <= i < base.config.vocab_size:
            raise ParameterError(
                f"answer token id {i} is outside the vocabulary of {base.config.vocab_size}"
            )
        mine, theirs = base.tokenizer.token_text(i), aligned.tokenizer.token_text(i)
        if mine != theirs:
            raise ParameterError(
                f"token id {i} is {theirs!r} in the aligned model and {mine!r} in the base model; "
                "a token shift needs two models of one vocabulary"
            )


def _compare(
    base: Engine, aligned: Engine, group: list[Answer], top_k: int
) -> Iterator[HeadComparison]:
    """One teacher-forced pass a model over a group of answers, then both heads over the same
    tiles."""
    group = [a for a in group if a.token_ids]
    of_base = [a.base_context_ids + a.token_ids[:-1] for a in group]
    of_aligned = [a.aligned_context_ids + a.token_ids[:-1] for a in group]
    hidden = base.hidden_states(of_base, [len(a.base_context_ids) - 1 for a in group])
    other = aligned.hidden_states(of_aligned, [len(a.aligned_context_ids) - 1 for a in group])
    for a, h, o in zip(group, hidden, other, strict=True):
        targets = np.array(a.token_ids, dtype=np.int32)  # [n]
        yield base.compare(h, targets, top_k, aligned, o)


def _assemble(
    aligned: Engine, answers: list[Answer], compared: list[HeadComparison], top_k: int
) -> TokenShift:
    lengths = [len(a.token_ids) for a in answers]
    ids = np.array([i for a in answers for i in a.token_ids], dtype=np.int32)  # [N]

    def column(of: Callable[[HeadComparison], NDArray[Any]], empty: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([empty, *map(of, compared)])

    none_i, none_f = np.empty(0, np.int32), np.empty(0, np.float32)
    text = {int(i): aligned.tokenizer.token_text(int(i)) for i in np.unique(ids)}
    return TokenShift(
        answers=answers,
        answer=np.repeat(np.arange(len(answers), dtype=np.int32), lengths),
        position=np.concatenate([none_i, *(np.arange(n, dtype=np.int32) for n in lengths)]),
        token_id=ids,
        token=[text[int(i)] for i in ids],
        base_rank=column(lambda c: c.base.rank, none_i),
        base_ties=column(lambda c: c.base.ties, none_i),
        base_logprob=column(lambda c: c.base.logprob, none_f),
        aligned_logprob=column(lambda c: c.aligned.logprob, none_f),
        kl_aligned_base=column(lambda c: c.kl_aligned_base, none_f),
        kl_base_aligned=column(lambda c: c.kl_base_aligned, none_f),
        base_entropy=column(lambda c: c.base.entropy, none_f),
        aligned_entropy=column(lambda c: c.aligned.entropy, none_f),
        base_top_ids=column(lambda c: c.base.top_ids, np.empty((0, top_k), np.int32)),
        base_top_logprobs=column(lambda c: c.base.top_logprobs, np.empty((0, top_k), np.float32)),
    )
