"""The published code's conventions in a whole run, against a literal reading of that code."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.fixtures import TinyModel
from tests.test_token_shift import close, logits
from urial_engine import Engine, token_shift
from urial_engine.errors import ParameterError
from urial_engine.shift_data import ARRAYS

QUERIES = ["hello there", "what is it", "ab"]
ANSWERS = ["because it is so</s>", " a", "", "ba ba"]
Strings = list[tuple[str, float]]


def thirty(z: np.ndarray, engine: Engine) -> Strings:
    """The strings of the thirty largest logits and their shares among these."""
    top = np.argsort(-z, kind="stable")[:30]
    weights = np.exp(z[top].astype(np.float64) - z.max())
    strings = [engine.tokenizer.decode([int(i)], skip_special_tokens=False) for i in top]
    return list(zip(strings, (weights / weights.sum()).tolist(), strict=True))


def as_published(base: Strings, aligned: Strings) -> tuple[int, float, float]:
    """(rank, probability, KL) of one position."""
    chosen = aligned[0][0]
    names = [text for text, _ in base]
    rank = names[:10].index(chosen) if chosen in names[:10] else 10
    probability = base[names.index(chosen)][1] if chosen in names else 0.0
    others, kl = [text for text, _ in aligned[:10]], 0.0
    for text in set(names[:10]) & set(others):
        p, q = base[names.index(text)][1], aligned[others.index(text)][1]
        kl += p * math.log(p / q)
    return rank, probability, kl


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_every_position_is_as_that_code_has_it(device: str, tiny_model: TinyModel) -> None:
    folders = tiny_model(folder="base", seed=1), tiny_model(folder="tuned", seed=2)
    settings: dict[str, Any] = {"device": device, "kv_cache_gib": 0.02}
    prompts: dict[str, Any] = {
        "base_prompt": {"raw": "raw", "same": "same"},
        "aligned_prompt": "chat",
        "top_k": 2,
    }
    with Engine(folders[0], **settings) as base, Engine(folders[1], **settings) as aligned:
        queries = [*QUERIES, "why"]
        shift = token_shift(base, aligned, queries, answers=ANSWERS, published=True, **prompts)
        exact = token_shift(base, aligned, queries, answers=ANSWERS, **prompts)
        for name in ARRAYS:  # they are columns of their own
            assert np.array_equal(getattr(shift, name), getattr(exact, name)), name
        assert exact.published is None and shift.published is not None
        for number, a in enumerate(shift.answers):
            again = aligned.tokenizer.encode(a.text, add_special_tokens=False)
            assert again == a.token_ids
            chat = aligned.tokenizer.render_chat([{"role": "user", "content": a.query}])
            with_two = [1, *aligned.tokenizer.encode(chat, add_special_tokens=False)]
            assert with_two[:2] == [1, 1]
            raw = [1, *base.tokenizer.encode(a.query, add_special_tokens=False)]
            for c, context in enumerate((raw, with_two)):
                rows = (shift.answer == number) & (shift.context == c)
                if not a.token_ids:
                    continue
                z = logits(base, context, a.token_ids)
                q = logits(aligned, with_two, a.token_ids)
                wanted = [
                    as_published(thirty(one, base), thirty(two, aligned))
                    for one, two in zip(z, q, strict=True)
                ]
                rank, probability, kl = map(np.array, zip(*wanted, strict=True))
                assert shift.published.rank[rows].tolist() == rank.tolist()
                np.testing.assert_allclose(
                    shift.published.probability[rows], probability, atol=1e-5
                )
                close(shift.published.kl[rows], kl)


def test_positions_that_code_does_not_have_are_marked(tiny_model: TinyModel) -> None:
    """Token ids that their own text would not be split into, from there on."""
    with Engine(tiny_model(), device="reference", kv_cache_gib=0.02) as engine:
        (pair,) = engine.tokenizer.encode("!!", add_special_tokens=False)
        a, b = (engine.tokenizer.encode(t, add_special_tokens=False)[0] for t in ("!", "a"))
        given = [[b, a, a, b], [b, pair, b], [a, a]]
        shift = token_shift(
            engine,
            engine,
            QUERIES,
            base_prompt="raw",
            aligned_prompt="chat",
            answers=given,
            published=True,
        )
    assert shift.published is not None
    has = (shift.published.rank >= 0).tolist()
    assert has == [True, False, False, False, True, True, True, False, False]
    assert np.isnan(shift.published.kl).tolist() == [not h for h in has]
    assert np.isnan(shift.published.probability).tolist() == [not h for h in has]
    told = shift.summary()["contexts"][0]["published"]
    assert (told["tokens"], told["without_counterpart"]) == (4, 5)


def test_prompts_of_token_ids_have_no_text_to_read_again(tiny_model: TinyModel) -> None:
    with (
        Engine(tiny_model(), device="reference", kv_cache_gib=0.02) as engine,
        pytest.raises(ParameterError, match="no prompts of token ids: <lambda>"),
    ):
        token_shift(
            engine, engine, ["x"], base_prompt=lambda q: [5], aligned_prompt="raw", published=True
        )
