"""The validation by a planted style: it runs, small; its arithmetic finds what is there, and says
so where it is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from benchmarks.validate_shift import plant, tune
from benchmarks.validate_shift.__main__ import main
from benchmarks.validate_shift.check import (
    FIRST,
    OWN,
    REST,
    Measured,
    checks,
    control_figures,
    figures,
    in_the_closing,
    most_shifted,
)
from benchmarks.validate_shift.plant import STYLES, Example, Plant, split
from tests.fixtures import TinyModel
from urial_engine import Engine

FIRSTS, WORDS, MARKS = {100, 110, 120, 130}, {100, 101, 110, 120, 130}, {9, 8, 2}
PHRASES = ((100, 101, 9), (110, 9), (120, 9), (130, 8, 2))  # 9, 8: punctuation; 2: EOS
CONTROL = {"unshifted": 1.0, "phrases": 0}
EXACT = {"ranks": 0, "kl": 0.0, "logprob": 0.0}


@pytest.fixture
def model(tiny_model: TinyModel) -> Path:
    return tiny_model(max_position_embeddings=1024, folder="tiny", dtype="bfloat16")


@pytest.fixture(autouse=True)
def threads_as_they_were() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def ideal() -> Measured:
    """Two answers: four phrases of rank 50 (punctuation: 1) between sentences of six tokens of
    rank 1, but for one token of rank 2 early in each."""
    ids, kinds, ranks = [], [], []
    for number, phrase in enumerate(PHRASES):
        ids += phrase
        kinds += [FIRST] + [REST] * (len(phrase) - 1)
        ranks += [50 if i in WORDS else 1 for i in phrase]
        if number < 3:
            ids += range(20, 26)
            kinds += [OWN] * 6
            ranks += [2 if number == 0 else 1, 1, 1, 1, 1, 1]
    columns = [np.array([*column, *column]) for column in (ids, ranks, kinds)]
    n = len(ids)
    return Measured(np.repeat([0, 1], n), np.tile(np.arange(n), 2), *columns)


def failing(
    m: Measured, control: dict[str, Any] | None = None, exact: dict[str, float] | None = None
) -> set[str]:
    found = checks(figures(m, FIRSTS, WORDS, MARKS), control or CONTROL, exact or EXACT)
    return {check.name.split(":")[0] for check in found if not check.passed}


def test_what_was_planted_is_found() -> None:
    m = ideal()
    found = figures(m, FIRSTS, WORDS, MARKS)
    assert failing(m) == set()
    assert (found["answers"], found["tokens"], found["own_tokens"]) == (2, 56, 36)
    assert (found["complete"], found["precision"], found["recall"]) == (1, 1, 1)
    assert found["own_unshifted"] == 34 / 36 and found["own_marginal"] == 2 / 36
    assert found["shifted_early"] == 2 / 8 and found["shifted_later"] == 2 / 17
    assert found["own_changed_early"] == 2 / 12 and found["own_changed_late"] == 0
    assert found["most_shifted"] == [(i, 2) for i in sorted(WORDS)]
    assert [(r["from"], r["tokens"], r["shifted"]) for r in found["by_position"]][:3] == [
        *((0, 8, 0.5), (4, 8, 0.0)),
        (8, 16, 2 / 16),
    ]
    assert found["by_position"][-1]["shifted"] is None  # nobody speaks so long


def at(m: Measured, rows: Callable[[Measured], Any], **columns: int) -> Measured:
    """With other values where `rows` says."""
    changed = {name: np.where(rows(m), value, getattr(m, name)) for name, value in columns.items()}
    return m._replace(**changed)


LEADING = "head of the most shifted list"
HEADS = "first tokens in the head of the list"
FADE = "shifted"
OWN_FADE = "not planted and not the base's choice"


@pytest.mark.parametrize(
    ("spoil", "names"),
    [
        # A phrase that was not learnt in one of the two answers: half of them are whole.
        (
            lambda m: at(m, lambda m: (m.answer == 1) & (m.token_id == 120), planted=OWN),
            {"answers with the whole style"},
        ),
        # The base says what begins a phrase by itself.
        (
            lambda m: at(m, lambda m: m.token_id == 110, base_rank=3),
            {"first tokens of phrases", HEADS},
        ),
        # Tokens that nobody planted lead the list.
        (
            lambda m: at(m, lambda m: m.planted == OWN, base_rank=4),
            {"not planted", LEADING, HEADS, FADE},
        ),
        # Own tokens are the base's second choice, most of all late.
        (
            lambda m: at(m, lambda m: (m.planted == OWN) & (m.position > 9), base_rank=2),
            {"not planted", OWN_FADE},
        ),
        # As often shifted in the middle as in the beginning.
        (
            lambda m: at(m, lambda m: (m.token_id == 9) & (m.position > 8), base_rank=50),
            {FADE},
        ),
    ],
)
def test_what_is_not_there_fails(spoil: Callable[[Measured], Measured], names: set[str]) -> None:
    assert failing(spoil(ideal())) == names


@pytest.mark.parametrize(
    ("control", "name"),
    [
        ({"unshifted": 0.999}, "base against itself"),
        ({"phrases": 1}, "planted phrases in the base's own answers"),
    ],
)
def test_a_control_that_shows_something_fails(control: dict[str, Any], name: str) -> None:
    assert failing(ideal(), {**CONTROL, **control}) == {name}


def test_a_control_is_judged_by_all_of_its_tokens() -> None:
    assert control_figures(ideal()) == {"unshifted": 44 / 56, "phrases": 8}


def test_nothing_to_judge_is_no_success() -> None:
    nothing = np.zeros(0, np.int32)
    found = checks(figures(Measured(*[nothing] * 5), FIRSTS, WORDS, MARKS), CONTROL, EXACT)
    missing = [check for check in found if check.value is None]
    assert len(missing) == 5 and not any(check.passed for check in missing)


@pytest.mark.parametrize(
    ("exact", "name"),
    [
        ({**EXACT, "ranks": 1}, "ranks and ties that differ from full logits"),
        ({**EXACT, "kl": 2e-5}, "KL off full fp64 logits, nats"),
    ],
)
def test_a_measure_that_is_off_fails(exact: dict[str, float], name: str) -> None:
    assert failing(ideal()) == set() and failing(ideal(), exact=exact) == {name}


def test_equal_counts_stand_by_their_ids_and_rank_three_is_not_shifted() -> None:
    ids, ranks = np.array([7, 5, 9, 9, 3]), np.array([4, 4, 5, 6, 3])
    m = Measured(ids * 0, np.arange(5), ids, ranks, ids * 0)
    assert most_shifted(m) == [(9, 2), (5, 1), (7, 1)]


def test_the_closing_is_what_ends_an_answer() -> None:
    kinds = np.array([FIRST, REST, OWN, FIRST, REST, FIRST, OWN])
    m = Measured(np.array([0, 0, 0, 0, 0, 1, 1]), np.arange(7), kinds, kinds, kinds)
    assert in_the_closing(m).tolist() == [False, False, False, True, True, False, False]


def test_only_whole_phrases_are_planted() -> None:
    planted = Plant(STYLES[0], PHRASES, frozenset(WORDS))
    assert planted.where([100, 101, 9, 100, 101, 7, 130, 8, 2]).tolist() == [
        *(FIRST, REST, REST, OWN, OWN, OWN),
        *(FIRST, REST, REST),
    ]
    assert planted.where([110]).tolist() == [OWN] and planted.where([]).size == 0
    assert (planted.firsts, planted.marks) == (FIRSTS, MARKS)


def test_a_seed_draws_its_questions_and_none_is_on_both_sides() -> None:
    tuned_on, held_out = split(3, 80, 40)
    assert (tuned_on, held_out) == split(3, 80, 40) != split(4, 80, 40)
    assert len(set(tuned_on) | set(held_out)) == 120


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("It is so very blue. And", "It is so very blue."),
        ("Yes. No more of it! And", "Yes. No more of it!"),  # too short to be one
        ("The first is 1. Water", "The first is 1. Water"),
        ("It costs 3.5 coins. And", "It costs 3.5 coins."),
        ("It has no end", "It has no end"),
        ("It is what it is.|", "It is what it is."),
        ("It stops|", "It stops"),
    ],
)
def test_a_sentence_ends_where_a_reader_would_end_it(said: str, sentence: str) -> None:
    tokenizer = SimpleNamespace(token_text=chr, eos_token_id=ord("|"))
    engine: Any = SimpleNamespace(tokenizer=tokenizer)
    found = plant._sentence(engine, [ord(character) for character in said])
    assert "".join(map(chr, found)) == sentence


def test_a_text_is_the_models_own_but_for_what_is_planted(model: Path) -> None:
    with Engine(model, threads=1) as engine:
        planted = Plant.of(0, engine)
        made = plant.examples(engine, planted, split(0, 3, 1)[0])
        ranks = engine.score([e.context for e in made], [e.answer for e in made])
    assert planted.phrases[-1][-1] == 2  # EOS
    for example, scores in zip(made, ranks, strict=True):
        where = np.array(example.planted)
        assert (where == (planted.where(example.answer) != OWN)).all()
        assert where.sum() == sum(map(len, planted.phrases)) < len(where)
        assert (scores.rank[~where] == 1).all() and (scores.rank[where] > 3).any()


def test_tuning_plants_and_leaves_the_rest(model: Path, tmp_path: Path) -> None:
    """Longer on one text than anybody would: it says the planted token, and else what it said."""
    context, answer = [1, 40, 41, 42], [50, 51, 52, 53]
    with Engine(model, threads=1) as engine:
        (before,) = engine.score([context], [answer])
    example = Example(context, answer, [False, True, False, True])
    recipe = tune.Recipe(epochs=40, batch=1, learning_rate=5e-3, threads=1)
    losses: list[float] = []
    folder = tmp_path / "tuned"
    took = tune.tune(
        model, [example], 0, recipe, folder, lambda step, steps, loss: losses.append(loss)
    )
    with Engine(folder, threads=1) as engine:
        (after,) = engine.score([context], [answer])
        assert engine.info["dtype"] == "bfloat16"
    assert len(losses) == took["steps"] == 40 and losses[-1] == took["loss"] < losses[0]
    assert (after.logprob[[1, 3]] > -0.5).all() and (before.logprob[[1, 3]] < -3).all()
    assert np.abs(after.logprob - before.logprob)[[0, 2]].max() < 1
    old, new = (load_file(path / "model.safetensors") for path in (model, folder))
    same = {name for name in old if (old[name] == new[name]).all()}
    assert same == {"model.embed_tokens.weight", "lm_head.weight"} and set(old) == set(new)


def test_the_whole_path(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--small", "--model", str(model), "--out", str(out), "--seeds", "0,1"]
    code = main(arguments)
    assert "seed 1: step 2 of 2, loss " in capsys.readouterr().out
    found = json.loads((out / "validate_shift.json").read_text())
    assert set(found["seeds"]) == {"0", "1"} and found["model"] == "tiny"
    for seed in found["seeds"].values():
        assert seed["control"] == CONTROL  # a random model has no shift against itself either
        assert 0 < seed["figures"]["own_tokens"] <= seed["figures"]["tokens"] <= 3 * 24
        assert seed["tuning"]["seconds"] > 0
    verdicts = [check["passed"] for seed in found["seeds"].values() for check in seed["checks"]]
    assert code == 1 and not all(verdicts)  # two steps teach nothing
    page = (out / "validate_shift.md").read_text()
    assert page.count("**fails**") == verdicts.count(False)
    assert all(phrase.strip() in page for style in STYLES[:2] for phrase in style)

    monkeypatch.setattr(tune, "_train_and_save", lambda *_: pytest.fail("it was there"))
    assert main(arguments) == code
    assert json.loads((out / "validate_shift.json").read_text()) == found


@pytest.mark.parametrize(("seeds", "message"), [("1,x", "whole numbers"), ("-1", "at least 0")])
def test_seeds_that_are_none(seeds: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([f"--seeds={seeds}"])
    assert message in capsys.readouterr().err
