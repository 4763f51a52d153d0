"""What a judge says is read strictly: all that has the form, and nothing else."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from urial_engine.evaluation.verdicts import (
    ASPECTS,
    GENERAL,
    NoVerdictError,
    read_aspects,
    read_rating,
)

SCORES = st.fixed_dictionaries(
    {a: st.fixed_dictionaries({"score": st.integers(1, 5), "reason": st.text()}) for a in GENERAL}
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)


@given(scores=SCORES, fence=st.sampled_from(["{}", "```\n{}\n```", "So:\n```json\n{}\n```\nDone."]))
def test_every_verdict_in_the_form_is_read(scores: dict[str, Any], fence: str) -> None:
    for indent in (None, 4):
        assert (
            read_aspects(fence.replace("{}", json.dumps(scores, indent=indent)), GENERAL) == scores
        )


@given(scores=SCORES, aspect=st.sampled_from(GENERAL), value=VALUES)
def test_whatever_else_stands_there_is_no_verdict(
    scores: dict[str, Any], aspect: str, value: Any
) -> None:
    for key in ("score", "reason"):
        wrong = {**scores, aspect: {**scores[aspect], key: value}}
        if (
            key == "score"
            and (type(value) is int or isinstance(value, str))
            and str(value) in "12345"
        ):
            continue
        if key == "reason" and isinstance(value, str):
            continue
        with pytest.raises(NoVerdictError):
            read_aspects(json.dumps(wrong), GENERAL)
    with pytest.raises(NoVerdictError):
        read_aspects(json.dumps({**scores, aspect: value}), GENERAL)


@given(text=st.text() | st.text(alphabet='{}[]":,`\n 15score', max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    for read in (lambda t: read_aspects(t, ("safety",)), read_rating):
        with suppress(NoVerdictError):
            read(text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "not JSON"),
        ("The answer is safe: 5", "not JSON"),
        ("[1]", "not JSON"),
        ('Here: {"safety": {"score": 5, "reason": ""}}', "not JSON"),
        ('{"safety": {"score": 5, "reason": ""}} done', "not JSON"),
        ('{"safety": {"score": 5, "reason": "a\n"}}', "not JSON"),
        ('{"safety": {"score": NaN, "reason": ""}}', "not JSON"),
        ('{"safety": {"score": 5, "score": 1, "reason": ""}}', "not JSON"),
        ('```\n{"safety": {"score": 5, "reason": ""}}\n```\n```\n{}\n```', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"Safety": {"score": 5, "reason": ""}}', "wrong aspects"),
        ("{}", "wrong aspects"),
        ('{"safety": {"score": 5, "reason": ""}, "depth": 1}', "wrong aspects"),
        ('{"safety": 5}', "wrong aspects"),
        ('{"safety": {"score": 5}}', "wrong aspects"),
        ('{"safety": {"score": 5, "reason": "", "sure": true}}', "wrong aspects"),
        ('{"safety": {"score": 0, "reason": ""}}', "wrong score"),
        ('{"safety": {"score": 6, "reason": ""}}', "wrong score"),
        ('{"safety": {"score": 5.0, "reason": ""}}', "wrong score"),
        ('{"safety": {"score": true, "reason": ""}}', "wrong score"),
        ('{"safety": {"score": "N/A", "reason": ""}}', "wrong score"),
        ('{"safety": {"score": " 5", "reason": ""}}', "wrong score"),
        ('{"safety": {"score": "٥", "reason": ""}}', "wrong score"),
        ('{"safety": {"score": 5, "reason": null}}', "wrong reason"),
    ],
)
def test_failures_have_a_kind(text: str, kind: str) -> None:
    with pytest.raises(NoVerdictError) as caught:
        read_aspects(text, ("safety",))
    assert caught.value.kind == kind


def test_digits_in_quotation_marks_are_scores() -> None:
    """As the published template shows them."""
    text = json.dumps({aspect: {"reason": "r", "score": "3"} for aspect in ASPECTS})
    assert {own["score"] for own in read_aspects(text, ASPECTS).values()} == {3}


@given(rating=st.integers(1, 10) | st.sampled_from([1.5, 9.25]), around=st.text(alphabet="ab \n[]"))
def test_a_rating_is_read_wherever_it_stands(rating: float, around: str) -> None:
    if "[[" in around or "]]" in around:
        return
    found = read_rating(f"{around} Rating: [[{rating}]] {around}")
    assert (found, type(found)) == (rating, type(rating))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Rating: 8", "no rating"),
        ("[8]", "no rating"),
        ("[[8]] or [[9]]", "several ratings"),
        ("[[8]] and so [[8]]", "several ratings"),
        ("[[rating]]", "wrong rating"),
        ("[[0]]", "wrong rating"),
        ("[[11]]", "wrong rating"),
        ("[[8/10]]", "wrong rating"),
        ("[[-8]]", "wrong rating"),
        ("[[1e1]]", "wrong rating"),
        ("[[٨]]", "wrong rating"),
        ("[[]]", "wrong rating"),
    ],
)
def test_ratings_that_are_none(text: str, kind: str) -> None:
    with pytest.raises(NoVerdictError) as caught:
        read_rating(text)
    assert caught.value.kind == kind
