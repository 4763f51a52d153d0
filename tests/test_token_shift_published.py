"""The published code's conventions, against a literal re-computation with lists of dicts."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tokenizer_cases import byte_level, json_folder, mistral_model, model_folder
from urial_engine.errors import ParameterError
from urial_engine.token_shift_published import (
    PUBLISHED_RATIOS,
    align_published,
    published_answer,
    published_context,
    published_measures,
    published_pair,
    published_text,
)
from urial_engine.tokenizer import Tokenizer

Candidates = list[dict[str, Any]]


def literal(base: Candidates, aligned: Candidates) -> tuple[int, float, float]:
    """One position: candidates with "token" and "logit", largest logit first."""
    for candidates in (base, aligned):
        total = math.fsum(math.exp(c["logit"]) for c in candidates)
        for c in candidates:
            c["share"] = math.exp(c["logit"]) / total
    of_base, of_aligned = ([c["token"] for c in cs] for cs in (base, aligned))
    first = of_aligned[0]
    rank = of_base[:10].index(first) if first in of_base[:10] else 10
    probability = base[of_base.index(first)]["share"] if first in of_base else 0.0
    kl = 0.0
    for token in set(of_base[:10]) & set(of_aligned[:10]):
        p = base[of_base.index(token)]["share"]
        q = aligned[of_aligned.index(token)]["share"]
        kl += p * math.log(p / q)
    return rank, probability, kl


def tops(rng: np.random.Generator, n: int, vocabulary: int) -> tuple[Any, Any]:
    """The thirty likeliest of random logits, many of which are equal."""
    logits = rng.integers(-6, 7, (n, vocabulary)) / 2 + rng.normal(size=(n, 1))
    order = np.argsort(-logits, axis=1, kind="stable")[:, :30]
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    found = np.take_along_axis(logprobs, order, axis=1)
    return order.astype(np.int32), found.astype(np.float32)


def candidates(top: tuple[Any, Any], row: int, text: Callable[[int], str]) -> Candidates:
    pairs = zip(top[0][row].tolist(), top[1][row].tolist(), strict=True)
    return [{"token": text(i), "logit": logit} for i, logit in pairs]


@pytest.mark.parametrize("strings", [7, 40, 10_000])  # collisions in plenty, some, none
@pytest.mark.parametrize("vocabulary", [1, 6, 30, 90])
def test_against_lists_of_dicts(strings: int, vocabulary: int) -> None:
    rng = np.random.default_rng(vocabulary + strings)
    base, aligned = tops(rng, 200, vocabulary), tops(rng, 200, vocabulary)

    def of_base(i: int) -> str:
        return f"w{i % strings}"

    def of_aligned(i: int) -> str:
        return f"w{(i + 3) % strings}"

    got = published_measures(*base, *aligned, of_base, of_aligned)
    for row in range(200):
        wanted = literal(candidates(base, row, of_base), candidates(aligned, row, of_aligned))
        assert got.rank[row] == wanted[0]
        assert (got.probability[row], got.kl[row]) == pytest.approx(wanted[1:], abs=1e-6)
    assert [a.dtype for a in got] == [np.int32, np.float32, np.float32]
    if vocabulary == 90:
        assert got.rank.max() == 10 and got.rank.min() == 0


def measures(base: list[int], aligned: list[int], logits: list[float]) -> tuple[int, float, float]:
    """One position, the same logits for both; ids are their own strings."""
    values = np.array([logits], np.float32)
    pair = np.array([base], np.int32), values, np.array([aligned], np.int32), values
    rank, probability, kl = published_measures(*pair, str, str)
    return int(rank[0]), float(probability[0]), float(kl[0])


def test_a_choice_at_the_base_s_eleventh_place_has_a_probability_but_no_rank() -> None:
    base, aligned = list(range(30)), [10, *range(40, 69)]
    rank, probability, kl = measures(base, aligned, [0.0] * 30)
    assert (rank, kl) == (10, 0)
    assert probability == pytest.approx(1 / 30)
    assert measures(base, [9, *range(40, 69)], [0.0] * 30)[0] == 9


def test_only_the_first_thirty_count() -> None:
    base, aligned = list(range(40)), [35, *range(50, 89)]
    assert measures(base, aligned, [0.0] * 40)[:2] == (10, 0)
    assert measures(base, base, [0.0] * 40)[1] == pytest.approx(1 / 30)


def test_kl_counts_the_intersection_only_so_it_can_be_negative() -> None:
    """Base 0.75 and 0.25 of strings 0 and 1, aligned of 1 and 2: only 1 is in both."""
    logits = [math.log(3), 0.0]
    assert measures([0, 1], [1, 2], logits)[2] == pytest.approx(0.25 * math.log(0.25 / 0.75))
    assert measures([0, 1], [0, 1], logits)[2] == 0


def test_weights_too_small_for_a_float() -> None:
    assert measures([0, 1], [1, 0], [0.0, -2000.0]) == (1, 0, 0)


def test_no_positions() -> None:
    ids, values = np.empty((0, 30), np.int32), np.empty((0, 30), np.float32)
    assert [a.shape for a in published_measures(ids, values, ids, values, str, str)] == [(0,)] * 3


@pytest.mark.parametrize("shapes", [(3, 4, 4, 4), (4, 4, 4, 3), (0, 0, 4, 4)])
def test_arrays_that_do_not_belong_together(shapes: tuple[int, ...]) -> None:
    a, b, c, d = (np.zeros((2, k)) for k in shapes)
    with pytest.raises(ParameterError, match=r"shapes \(2, \d\) and \(2, \d\) \(base\)"):
        published_measures(a.astype(np.int32), b, c.astype(np.int32), d, str, str)
    one, two = np.zeros((1, 4), np.int32), np.zeros((2, 4), np.int32)
    with pytest.raises(ParameterError, match="with one N"):
        published_measures(one, one, two, two, str, str)


def id_of(tokenizer: Tokenizer, text: str) -> int:
    return next(i for i in range(tokenizer.vocab_size) if tokenizer.token_text(i) == text)


class TestTokenizers:
    @pytest.fixture
    def mistral(self, tmp_path: Path) -> Tokenizer:
        return Tokenizer.load(model_folder(tmp_path / "m", mistral_model()))

    def test_bos_is_doubled(self, mistral: Tokenizer) -> None:
        text = "<s>[INST] Why? [/INST]"
        ids = published_context(mistral, text)
        assert ids[:2] == [1, 1]
        assert ids[1:] == mistral.encode(text)
        assert published_context(mistral, "Why?") == mistral.encode("Why?")
        assert published_context(mistral, "") == [1]

    def test_eos_goes_behind_where_the_configuration_says_so(self, tmp_path: Path) -> None:
        names = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
        folder = json_folder(tmp_path / "e", byte_level(), **names, add_eos_token=True)
        tokenizer = Tokenizer.load(folder)
        plain = tokenizer.encode("Why?", add_special_tokens=False)
        assert published_context(tokenizer, "<s>Why?") == [0, 0, *plain, 1]

    def test_no_bos(self, tmp_path: Path) -> None:
        tokenizer = Tokenizer.load(json_folder(tmp_path / "n", byte_level()))
        assert published_context(tokenizer, "a") == tokenizer.encode("a", add_special_tokens=False)

    def test_a_single_token_loses_its_leading_space(self, mistral: Tokenizer) -> None:
        """So " word" and "word" are two ids and one string, and the choice counts as unshifted."""
        spaced, bare = id_of(mistral, " word"), id_of(mistral, "word")
        assert spaced != bare
        assert published_text(mistral, [spaced]) == published_text(mistral, [bare]) == "word"
        assert published_text(mistral, [2]) == "</s>"
        zero = np.zeros((1, 1), np.float32)
        pair = (np.array([[spaced]], np.int32), zero, np.array([[bare]], np.int32), zero)
        found = published_measures(
            *pair,
            lambda i: published_text(mistral, [i]),
            lambda i: published_text(mistral, [i]),
        )
        assert [float(a[0]) for a in found] == [0, 1, 0]

    def test_an_answer_tokenised_again(self, mistral: Tokenizer) -> None:
        """Ids that a model may well generate, and that their own text does not come back to."""
        whole = published_answer(mistral, "Thank you very much")
        assert published_answer(mistral, published_text(mistral, whole)) == whole
        generated = [id_of(mistral, " Th"), id_of(mistral, "ank"), *whole[1:]]
        again = published_answer(mistral, published_text(mistral, generated))
        assert again == whole
        assert align_published(generated, again) == 0
        assert published_answer(mistral, "Bye</s>")[-1] == 2


@pytest.mark.parametrize(
    ("ours", "theirs", "agree"),
    [
        ([], [], 0),
        ([1], [], 0),
        ([1, 2, 3], [1, 2, 3], 3),
        ([1, 2], [1, 2, 3], 2),
        ([1, 2, 3], [1, 9, 3], 1),
        ([5], [6], 0),
    ],
)
def test_how_far_two_tokenisations_agree(ours: list[int], theirs: list[int], agree: int) -> None:
    assert align_published(ours, theirs) == agree


class TestPairs:
    @pytest.mark.parametrize(
        ("base", "aligned", "unshifted"),
        [
            ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-chat-hf", 0.777),
            ("/models/llama-2-7b-hf/", "lmsys/Vicuna-7B-v1.5", 0.824),
            ("Mistral-7B-v0.1", "./mistral-7b-instruct-v0.1", 0.822),
        ],
    )
    def test_known(self, base: str, aligned: str, unshifted: float) -> None:
        found = published_pair(base, aligned)
        assert found is not None
        assert found["unshifted"] == unshifted
        assert list(found) == ["base", "aligned", "unshifted", "marginal", "shifted", "source"]

    @pytest.mark.parametrize(
        ("base", "aligned"),
        [
            ("meta-llama/Llama-2-7b-chat-hf", "meta-llama/Llama-2-7b-hf"),
            ("mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-Instruct-v0.2"),
            ("meta-llama/Llama-2-13b-hf", "lmsys/vicuna-7b-v1.5"),
            ("Mistral-7B-v0.1/snapshot", "Mistral-7B-Instruct-v0.1"),
            ("", ""),
        ],
    )
    def test_unknown(self, base: str, aligned: str) -> None:
        assert published_pair(base, aligned) is None

    def test_shares_are_as_complete_as_printed(self) -> None:
        for shares in PUBLISHED_RATIOS.values():
            assert sum(shares) == pytest.approx(1, abs=0.0011)
