"""A judge's answer goes in; its scores, or why it is none, come out. Nothing is guessed.

Two forms: an object of JSON with a score and a reason for each aspect (just-eval), and a text with
one rating in double brackets (MT-bench).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NoReturn

GENERAL = ("helpfulness", "clarity", "factuality", "depth", "engagement")
ASPECTS = (*GENERAL, "safety")
_FENCE = re.compile(r"^[ \t]*```(?:json)?[ \t]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)
_RATING = re.compile(r"\[\[\s*([^\[\]]*?)\s*\]\]")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
Scores = dict[str, dict[str, Any]]


class NoVerdictError(ValueError):
    """An answer that says no scores. `kind`: one of few, by which failures are counted."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


def read_aspects(text: str, aspects: Sequence[str]) -> Scores:
    """`{aspect: {"score": 1 to 5, "reason": text}}` with just these aspects.

    The answer is the object, or has it in its only fenced block. A score is a whole number, or one
    digit in quotation marks, as the published template shows it. Raises `NoVerdictError`.
    """
    found = _object(text)
    if found.keys() != set(aspects):
        raise NoVerdictError(
            "wrong aspects", f"its aspects are {_names(found)}, and not {_names(aspects)}"
        )
    return {aspect: _judged(aspect, found[aspect]) for aspect in aspects}


def read_rating(text: str) -> float:
    """The one `[[rating]]` of a text, 1 to 10. Raises `NoVerdictError`."""
    ratings = _RATING.findall(text)
    if len(ratings) != 1:
        kind = "several ratings" if ratings else "no rating"
        raise NoVerdictError(kind, f"it has {len(ratings)} ratings in double brackets, and not one")
    (rating,) = ratings
    if not _NUMBER.fullmatch(rating) or not 1 <= float(rating) <= 10:
        raise NoVerdictError("wrong rating", f"{rating!r:.60} is no number from 1 to 10")
    return float(rating) if "." in rating else int(rating)


def _object(text: str) -> dict[str, Any]:
    blocks = _FENCE.findall(text)
    if len(blocks) > 1:
        raise NoVerdictError("not JSON", f"it has {len(blocks)} fenced blocks, and not one")
    try:
        value = json.loads(
            blocks[0] if blocks else text, object_pairs_hook=_once, parse_constant=_no_number
        )
    except NoVerdictError:
        raise
    except (ValueError, RecursionError) as error:
        raise NoVerdictError("not JSON", str(error)) from None
    if not isinstance(value, dict):
        raise NoVerdictError("not JSON", f"it is a {type(value).__name__}, and no object")
    return value


def _judged(aspect: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != {"score", "reason"}:
        raise NoVerdictError("wrong aspects", f"{aspect} must have a score and a reason, no more")
    score, reason = value["score"], value["reason"]
    if isinstance(score, str) and score in {"1", "2", "3", "4", "5"}:
        score = int(score)
    if type(score) is not int or not 1 <= score <= 5:
        raise NoVerdictError("wrong score", f"{aspect}: {score!r:.60} is no whole number, 1 to 5")
    if not isinstance(reason, str):
        raise NoVerdictError("wrong reason", f"{aspect}: its reason must be a text")
    return {"score": score, "reason": reason}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise NoVerdictError("not JSON", f"a name stands twice among {_names(n for n, _ in pairs)}")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _names(names: Any) -> str:
    return f"{', '.join(names) or 'none'!s:.100}"
