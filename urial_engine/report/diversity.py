"""Several answers to each query go in; how varied they are comes out (after arXiv 2406.17692).

Every measure is one of a query's samples together; over queries it is averaged, and its interval
comes from resampled queries.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from ..errors import ParameterError
from ..shift_data import Answer, Id
from .bootstrap import Bootstrap, ratio

# U+0300 to U+036F: accents that Unicode has no one letter for.
WORD = re.compile(r"[\w\u0300-\u036f]+(?:'[\w\u0300-\u036f]+)*")
Words = list[str]
Bleu = Callable[[str, Sequence[str]], float]  # of a text against others, 0 to 1

# One line a measure, in the order in which they are reported.
DEFINITIONS = {
    "tokens": "mean length of an answer in tokens of the aligned model",
    "words": "mean length of an answer in words",
    "jaccard": "words that two answers share over all words of the two (sets), mean over pairs;"
    " 1 for two without words",
    "distinct_1": "different words over all words, of all answers to the query together",
    "distinct_2": "the same of runs of two words within an answer",
    "distinct_3": "the same of runs of three words within an answer",
    "self_bleu": "BLEU (0 to 1) of each answer against the others, mean; empty ones are left out",
    "identical": "share of pairs of answers that are the same text",
}
ABOUT_WORDS = (
    "letters, digits and underscores in a row, apostrophes between them included, after case"
    " folding and Unicode NFC; a script without spaces gives long words, the vowel signs of an"
    " Indic one short ones"
)


def diversity(
    answers: Sequence[Answer],
    groups: Sequence[str] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any] | None:
    """How varied the answers to one query are; JSON-able. None where no query has two answers.

    `groups` names the query of each answer where its id does not. A query with one answer is left
    out. `overall` has the mean over queries of each measure with its 95 % interval, `by_query` the
    measures themselves; None is one that the answers do not define (a run of two words where none
    has two). Raises `ParameterError` where the library for BLEU is not installed.
    """
    keys: Sequence[Id] = [a.id for a in answers] if groups is None else groups
    if len(keys) != len(answers):
        raise ParameterError(f"{len(keys)} groups for {len(answers)} answers; give one each")
    samples: dict[Id, list[Answer]] = {}
    for key, answer in zip(keys, answers, strict=True):
        samples.setdefault(key, []).append(answer)
    samples = {key: several for key, several in samples.items() if len(several) > 1}
    if not samples:
        return None
    bleu, about = _library()
    rows = [_measures(several, bleu) for several in samples.values()]
    values = np.array([[row[name] for name in DEFINITIONS] for row in rows], np.float64)  # [U, M]
    known = np.isfinite(values).astype(np.float64)  # None has become NaN
    boot = Bootstrap(len(rows), resamples, seed)
    bands = boot.bands(ratio, np.nan_to_num(values), known, support=known)
    sizes = {key: len(several) for key, several in samples.items()}
    return {
        "queries": len(rows),
        "samples": sum(sizes.values()),
        "overall": dict(zip(DEFINITIONS, bands, strict=True)),
        "by_query": [
            {"id": key, "samples": size, **row}
            for (key, size), row in zip(sizes.items(), rows, strict=True)
        ],
        "definitions": {**DEFINITIONS, "word": ABOUT_WORDS, "bleu": about},
    }


def words(text: str) -> Words:
    """The words of a text, as `ABOUT_WORDS` defines them."""
    return WORD.findall(unicodedata.normalize("NFC", text.casefold()).replace("’", "'"))


def _measures(samples: Sequence[Answer], bleu: Bleu) -> dict[str, float | None]:
    """Of one query's samples, by the names of DEFINITIONS."""
    texts = [a.text for a in samples]
    split = [words(text) for text in texts]
    return {
        "tokens": _mean([len(a.token_ids) for a in samples]),
        "words": _mean([len(one) for one in split]),
        "jaccard": _mean([_jaccard(set(a), set(b)) for a, b in combinations(split, 2)]),
        **{f"distinct_{n}": _distinct(split, n) for n in (1, 2, 3)},
        "self_bleu": _self_bleu([text for text in texts if text.strip()], bleu),
        "identical": _mean([a == b for a, b in combinations(texts, 2)]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b) if a or b else 1.0


def _distinct(split: Sequence[Words], n: int) -> float | None:
    runs = [tuple(one[i : i + n]) for one in split for i in range(len(one) - n + 1)]
    return len(set(runs)) / len(runs) if runs else None


def _self_bleu(texts: Sequence[str], bleu: Bleu) -> float | None:
    if len(texts) < 2:
        return None
    return _mean([bleu(text, [*texts[:i], *texts[i + 1 :]]) for i, text in enumerate(texts)])


def _library() -> tuple[Bleu, str]:
    """BLEU of one text, and what it is, so that another's figures can be compared."""
    try:
        import sacrebleu
    except ImportError as error:
        raise ParameterError(
            "self-BLEU needs sacrebleu: pip install 'urial-engine[analysis]'"
        ) from error
    # Effective order: an answer of three words has no run of four, and is not 0 for that.
    metric = sacrebleu.BLEU(effective_order=True)

    def bleu(text: str, others: Sequence[str]) -> float:
        # The library's 100 can be a rounding above it.
        return min(metric.sentence_score(text, others).score / 100, 1.0)

    about = f"sacrebleu {sacrebleu.__version__}, of sentences, effective order, tokens 13a, cased"
    return bleu, about
