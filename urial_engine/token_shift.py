"""Token distribution shift: what tuning (or prompting) changed, token by token.

Enters: a base and an aligned engine (or one engine twice, under two contexts) and queries. Leaves:
for every answer token the base model's rank, log-probabilities under both, KL both ways, entropies
and the base's top-k (arXiv 2312.01552, section 2), from one teacher-forced pass a model; the logits
of a position are never held.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .backends.base import HeadComparison
from .errors import NumericsError, ParameterError, PromptError
from .prompt import prompt_form
from .sampling import SamplingParams
from .token_shift_result import Answer, TokenShift

if TYPE_CHECKING:
    from .engine import Engine

GROUP = 32  # answers whose hidden states are held at once


class _Completion(NamedTuple):
    text: str
    token_ids: list[int]
    finish_reason: str | None


def token_shift(
    base: Engine,
    aligned: Engine,
    queries: str | Sequence[str],
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
    queries = [queries] if isinstance(queries, str) else queries
    if not 0 <= top_k <= base.config.vocab_size:
        raise ParameterError(
            f"top_k={top_k}: must be between 0 and the vocabulary's {base.config.vocab_size}"
        )
    if answers is not None and len(answers) != len(queries):
        raise ParameterError(f"{len(answers)} answers for {len(queries)} queries; give one each")
    _check_sizes(base, aligned)
    of_base = _contexts(base, base_prompt, queries)
    of_aligned = _contexts(aligned, aligned_prompt, queries)
    if answers is None:
        done = _generate(aligned, of_aligned, params or SamplingParams(max_tokens=256), progress)
    else:
        done = [_given(aligned, answer) for answer in answers]
    told = [
        Answer(query, c.text, c.token_ids, b, a, c.finish_reason)
        for query, c, b, a in zip(queries, done, of_base, of_aligned, strict=True)
    ]
    _check_tokens(base, aligned, told)
    return _assemble(aligned, told, list(_compare(base, aligned, told, top_k)), top_k)


def _contexts(engine: Engine, prompt: Any, queries: Sequence[str]) -> list[list[int]]:
    """What stands before each answer."""
    form, contexts = prompt_form(prompt, engine.tokenizer), []
    for query in queries:
        given = form(query)
        ids = engine.tokenizer.encode_prompt(given) if isinstance(given, str) else list(given)
        if not ids:
            raise PromptError(
                f"the context of query {query!r} has no tokens; one must stand before an answer"
            )
        contexts.append(ids)
    return contexts


def _given(aligned: Engine, answer: str | Sequence[int]) -> _Completion:
    if isinstance(answer, str):
        ids = aligned.tokenizer.encode(answer, add_special_tokens=False)
        return _Completion(answer, ids, None)
    return _Completion(aligned.tokenizer.decode(list(answer)), list(answer), None)


def _generate(
    aligned: Engine, contexts: list[list[int]], params: SamplingParams, progress: bool
) -> list[_Completion]:
    if params.n != 1:
        raise ParameterError(f"n={params.n}: token_shift follows one answer a query")
    outputs = aligned.generate(contexts, params, progress=progress) if contexts else []
    if not all(output.finished for output in outputs):
        # Ctrl-C: generate() came back early, and a cut answer would count as a whole one.
        raise KeyboardInterrupt
    first = [output.outputs[0] for output in outputs]
    return [_Completion(o.text, list(o.token_ids), o.finish_reason) for o in first]


def _check_sizes(base: Engine, aligned: Engine) -> None:
    mine, theirs = base.config.vocab_size, aligned.config.vocab_size
    if mine != theirs:
        raise ParameterError(
            f"the base model has {mine} tokens and the aligned one {theirs}; "
            "ranks and KL compare two distributions over one vocabulary"
        )


def _check_tokens(base: Engine, aligned: Engine, answers: list[Answer]) -> None:
    """The same id must be the same token in both, or a rank would be that of another word."""
    size = base.config.vocab_size
    for i in sorted({i for a in answers for i in a.token_ids}):
        if not 0 <= i < size:
            raise ParameterError(f"answer token id {i} is outside the vocabulary of {size}")
        mine, theirs = base.tokenizer.token_text(i), aligned.tokenizer.token_text(i)
        if mine != theirs:
            raise ParameterError(
                f"token id {i} is {theirs!r} in the aligned model and {mine!r} in the base model; "
                "a token shift needs two models of one vocabulary"
            )


def _compare(
    base: Engine, aligned: Engine, answers: list[Answer], top_k: int
) -> Iterator[HeadComparison]:
    """A group of answers at a time: one teacher-forced pass a model, then both heads at once."""
    answers = [a for a in answers if a.token_ids]
    for start in range(0, len(answers), GROUP):
        group = answers[start : start + GROUP]
        hidden = _read(base, group, [a.base_context_ids for a in group])
        other = _read(aligned, group, [a.aligned_context_ids for a in group])
        targets = np.array([i for a in group for i in a.token_ids], np.int32)  # [n]
        try:
            yield base.compare(hidden, targets, top_k, aligned, other)
        except NumericsError as error:
            ends = np.cumsum([len(a.token_ids) for a in group])
            which = int(np.searchsorted(ends, error.row, side="right"))
            position = error.row - int(ends[which]) + len(group[which].token_ids)
            raise NumericsError(
                f"query {group[which].query!r}: a head gives a value that is not finite at answer "
                f"token {position}; look for NaN or inf in the two checkpoints",
                layer=None,
                row=position,
            ) from error


def _read(engine: Engine, group: list[Answer], contexts: list[list[int]]) -> Any:
    """Hidden states [n, C] that choose the answers' tokens, all answers behind each other."""
    texts = [c + a.token_ids[:-1] for c, a in zip(contexts, group, strict=True)]
    return np.concatenate(engine.hidden_states(texts, [len(c) - 1 for c in contexts]))


def _assemble(
    aligned: Engine, answers: list[Answer], compared: list[HeadComparison], top_k: int
) -> TokenShift:
    lengths = [len(a.token_ids) for a in answers]
    ids = np.array([i for a in answers for i in a.token_ids], np.int32)  # [N]
    text = {i: aligned.tokenizer.token_text(i) for i in set(ids.tolist())}

    def column(
        name: str, head: str = "", dtype: type = np.float32, width: int | None = None
    ) -> Any:
        none: NDArray[Any] = np.empty((0,) if width is None else (0, width), dtype)
        parts = [getattr(getattr(c, head) if head else c, name) for c in compared]
        return np.concatenate([none, *parts])

    return TokenShift(
        answers=answers,
        answer=np.repeat(np.arange(len(answers), dtype=np.int32), lengths),
        position=np.array([p for n in lengths for p in range(n)], np.int32),
        token_id=ids,
        token=[text[i] for i in ids.tolist()],
        base_rank=column("rank", "base", np.int32),
        base_ties=column("ties", "base", np.int32),
        base_logprob=column("logprob", "base"),
        aligned_logprob=column("logprob", "aligned"),
        kl_aligned_base=column("kl_aligned_base"),
        kl_base_aligned=column("kl_base_aligned"),
        base_entropy=column("entropy", "base"),
        aligned_entropy=column("entropy", "aligned"),
        base_top_ids=column("top_ids", "base", np.int32, top_k),
        base_top_logprobs=column("top_logprobs", "base", np.float32, top_k),
    )
