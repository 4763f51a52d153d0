"""Token shifts made up from random numbers, for tests of what is computed from them."""

from __future__ import annotations

import numpy as np

from urial_engine.shift_data import Answer, Context, Published, ShiftData

SIZE = 400  # tokens of the vocabulary
OPENINGS = (" Sure", " Thank", " However", "Hello", " sorry", " cannot")
PLAIN = (
    " the",
    " a",
    " sea",
    " of",
    "s",
    ",",
    ".",
    "\n",
    " is",
    " time",
    " e",
    "é",
    "<b>",
    " &amp;",
)


def made_shift(
    answers: int = 4,
    tokens: int = 12,
    *,
    contexts: tuple[str, ...] = ("zero-shot", "urial"),
    top_k: int = 4,
    seed: int = 0,
    published: bool = False,
) -> ShiftData:
    """Answers of up to `tokens` tokens (the first has as many, one of four has none) over a
    vocabulary of 400. Early tokens are shifted more often than late ones, and a later context
    shifts less than an earlier one."""
    random = np.random.default_rng(seed)
    words = [*OPENINGS, *PLAIN]
    vocabulary = {i: words[i] if i < len(words) else f" word{i}" for i in range(SIZE)}
    told = _answers(random, answers, tokens, contexts, vocabulary)
    blocks = [(i, c) for i in range(answers) for c in range(len(contexts))]
    lengths = [len(told[i].token_ids) for i, _ in blocks]
    n = sum(lengths)
    context = np.repeat([c for _, c in blocks], lengths).astype(np.int32)
    position = np.array([p for size in lengths for p in range(size)], np.int32)
    chance = 0.7 / (1 + 0.3 * position) / (1 + context)
    rank = np.where(random.random(n) < chance, random.geometric(0.05, n), 1).astype(np.int32)

    def floats(*shape: int) -> np.ndarray:
        return random.exponential(1.0, shape).astype(np.float32)

    def top() -> np.ndarray:
        return np.argsort(random.random((n, SIZE)), axis=1)[:, :top_k].astype(np.int32)

    def top_logprobs() -> np.ndarray:
        falling = np.cumsum(floats(n, top_k), axis=1)
        return (-0.3 - falling).astype(np.float32)

    return ShiftData(
        answers=told,
        contexts=tuple(Context(name, name, "chat") for name in contexts),
        answer=np.repeat([i for i, _ in blocks], lengths).astype(np.int32),
        context=context,
        position=position,
        token_id=np.array([t for i, _ in blocks for t in told[i].token_ids], np.int32),
        base_rank=rank,
        base_ties=(random.random(n) < 0.01).astype(np.int32),
        base_logprob=-floats(n) * np.log1p(rank).astype(np.float32),
        base_entropy=floats(n),
        base_top_ids=top(),
        base_top_logprobs=top_logprobs(),
        aligned_rank=np.ones(n, np.int32),
        aligned_ties=np.zeros(n, np.int32),
        aligned_logprob=-floats(n) / 4,
        aligned_entropy=floats(n),
        aligned_top_ids=top(),
        aligned_top_logprobs=top_logprobs(),
        kl_aligned_base=floats(n) * np.log(rank + 0.5).astype(np.float32) ** 2,
        kl_base_aligned=floats(n),
        vocabulary=vocabulary,
        published=Published(
            np.minimum(rank - 1, 10).astype(np.int32), np.exp(-floats(n)), floats(n)
        )
        if published
        else None,
    )


def _answers(
    random: np.random.Generator,
    count: int,
    tokens: int,
    contexts: tuple[str, ...],
    vocabulary: dict[int, str],
) -> list[Answer]:
    sizes = [tokens, *(int(n) for n in random.integers(1, tokens + 1, count - 1))]
    told = []
    for i, size in enumerate(sizes):
        ids = random.choice(SIZE, 0 if i % 4 == 3 else size, p=_frequencies(SIZE)).tolist()
        told.append(
            Answer(
                id=f"row {i}" if i % 2 else i,
                query=f"What is number {i}?",
                text="".join(vocabulary[t] for t in ids),
                token_ids=ids,
                pieces=[vocabulary[t] for t in ids],
                source="generated" if i % 2 else "text",
                aligned_context_ids={"chat": [1, 2, 3]},
                base_context_ids={name: [1, 5 + c] for c, name in enumerate(contexts)},
                finish_reason="stop" if i % 2 else None,
                dataset=("lima", "truthful_qa", None)[i % 3],
            )
        )
    return told


def _frequencies(count: int) -> np.ndarray:
    """Falling as words' do."""
    weights = 1 / (1 + np.arange(count))
    return weights / weights.sum()
