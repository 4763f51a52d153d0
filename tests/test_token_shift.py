"""The protocol of token_shift against full logits, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures import TinyModel
from urial_engine import Engine, SamplingParams, token_shift
from urial_engine.errors import NumericsError, ParameterError, PromptError
from urial_engine.token_shift_result import CLASSES, TokenShift

BASE, ALIGNED = "Q: {query}\nA:", "<|user|> {query} <|assistant|>"
QUERIES = ["hello there", "what is it", "ab"]


@pytest.fixture(params=["cpu", "reference"])
def pair(request: pytest.FixtureRequest, tiny_model: TinyModel) -> Iterator[tuple[Engine, Engine]]:
    """Two random models of one vocabulary and different sizes, in fp32 or fp64."""
    device, dtype = request.param, {"cpu": "float32", "reference": "float64"}[request.param]
    base = Engine(tiny_model(folder="base", seed=1), device=device, dtype=dtype)
    aligned = Engine(
        tiny_model(folder="aligned", seed=2, num_hidden_layers=1), device=device, dtype=dtype
    )
    with base, aligned:
        yield base, aligned


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z.astype(np.float64)
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def logits(engine: Engine, context: list[int], answer: list[int]) -> np.ndarray:
    """[n, V] of the answer's positions, materialised."""
    ids = context + answer[:-1]
    return engine.backend.logits(engine.hidden_states([ids], [len(context) - 1])[0])


def check_against_logits(shift: TokenShift, base: Engine, aligned: Engine) -> None:
    for i, a in enumerate(shift.answers):
        rows, y = shift.answer == i, np.array(a.token_ids)
        if not a.token_ids:
            assert not rows.any()
            continue
        z = logits(base, a.base_context_ids, a.token_ids)
        z_y = z[np.arange(len(y)), y][:, None]
        assert shift.base_rank[rows].tolist() == (1 + (z > z_y).sum(1)).tolist()
        assert shift.base_ties[rows].tolist() == ((z == z_y).sum(1) - 1).tolist()
        b = log_softmax(z)
        q = log_softmax(logits(aligned, a.aligned_context_ids, a.token_ids))
        pick = (np.arange(len(y)), y)
        close = {"rtol": 0, "atol": 1e-5}
        np.testing.assert_allclose(shift.base_logprob[rows], b[pick], **close)
        np.testing.assert_allclose(shift.aligned_logprob[rows], q[pick], **close)
        kl = (np.exp(q) * (q - b)).sum(1)
        np.testing.assert_allclose(shift.kl_aligned_base[rows], kl, **close)
        kl = (np.exp(b) * (b - q)).sum(1)
        np.testing.assert_allclose(shift.kl_base_aligned[rows], kl, **close)
        np.testing.assert_allclose(shift.base_entropy[rows], -(np.exp(b) * b).sum(1), **close)
        np.testing.assert_allclose(shift.aligned_entropy[rows], -(np.exp(q) * q).sum(1), **close)
        top = np.argsort(-z, axis=1, kind="stable")[:, : shift.base_top_ids.shape[1]]
        assert shift.base_top_ids[rows].tolist() == top.tolist()


def test_every_measure_equals_full_logits(pair: tuple[Engine, Engine]) -> None:
    base, aligned = pair
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    shift = token_shift(
        base, aligned, QUERIES, base_prompt=BASE, aligned_prompt=ALIGNED, params=params, top_k=5
    )
    assert shift.token_id.size == 60 and shift.base_top_ids.shape == (60, 5)
    check_against_logits(shift, base, aligned)
    expected = [CLASSES[min(r - 1, 3) and (1 if r <= 3 else 2)] for r in shift.base_rank.tolist()]
    assert [CLASSES[c] for c in shift.shift_class] == expected


def test_generated_answers_are_the_aligned_model_s_greedy_ones(pair: tuple[Engine, Engine]) -> None:
    base, aligned = pair
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    shift = token_shift(
        base, aligned, QUERIES, base_prompt=BASE, aligned_prompt=ALIGNED, params=params
    )
    for query, a in zip(QUERIES, shift.answers, strict=True):
        context = aligned.tokenizer.encode(ALIGNED.replace("{query}", query))
        assert a.aligned_context_ids == context
        z = logits(aligned, context, a.token_ids)
        assert z.argmax(1).tolist() == a.token_ids
        assert a.base_context_ids == base.tokenizer.encode(BASE.replace("{query}", query))


def test_given_answers_are_never_retokenised(pair: tuple[Engine, Engine]) -> None:
    base, aligned = pair
    given: list[list[int]] = [[5, 6, 5, 6, 7], [], [9]]
    shift = token_shift(
        base, aligned, QUERIES, base_prompt=BASE, aligned_prompt=ALIGNED, answers=given, top_k=0
    )
    assert [a.token_ids for a in shift.answers] == given
    assert shift.token_id.tolist() == [5, 6, 5, 6, 7, 9]
    assert shift.position.tolist() == [0, 1, 2, 3, 4, 0]
    assert shift.answer.tolist() == [0, 0, 0, 0, 0, 2]
    check_against_logits(shift, base, aligned)


def test_a_model_against_itself_has_no_shift(pair: tuple[Engine, Engine]) -> None:
    base, _ = pair
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    shift = token_shift(
        base, base, QUERIES, base_prompt=BASE, aligned_prompt=BASE, params=params, top_k=1
    )
    assert set(shift.base_rank.tolist()) == {1}
    assert shift.ratios() == {"unshifted": 1.0, "marginal": 0.0, "shifted": 0.0}
    assert np.abs(shift.kl_aligned_base).max() < 1e-6
    assert np.array_equal(shift.base_logprob, shift.aligned_logprob)


def test_summary_and_files(pair: tuple[Engine, Engine], tmp_path: Path) -> None:
    import pyarrow.parquet as parquet

    base, aligned = pair
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    shift = token_shift(
        base, aligned, QUERIES, base_prompt=BASE, aligned_prompt=ALIGNED, params=params, top_k=3
    )
    summary = shift.summary(window=16)
    assert sum(summary["overall"].values()) == pytest.approx(1)
    assert [w["tokens"] for w in summary["by_position"]] == [48, 12]
    shifted = int((shift.base_rank > 3).sum())
    assert sum(t["count"] for t in shift.summary(most=1000)["most_shifted"]) == shifted
    shift.save(tmp_path / "run")
    table = parquet.read_table(tmp_path / "run" / "tokens.parquet").to_pydict()
    assert table["base_rank"] == shift.base_rank.tolist()
    assert table["base_top_ids"] == shift.base_top_ids.tolist()
    assert set(table["shift_class"]) <= set(CLASSES)
    lines = (tmp_path / "run" / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["token_ids"] for line in lines] == [a.token_ids for a in shift.answers]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["tokens"] == 60


def test_two_vocabularies_are_refused(tiny_model: TinyModel) -> None:
    with (
        Engine(tiny_model(folder="a", vocab_size=300)) as a,
        Engine(tiny_model(folder="b", vocab_size=332)) as b,
        pytest.raises(ParameterError, match=r"300 tokens and the aligned one 332"),
    ):
        token_shift(a, b, ["x"], base_prompt=BASE)


def test_clear_errors(pair: tuple[Engine, Engine]) -> None:
    base, aligned = pair
    with pytest.raises(ParameterError, match="2 answers for 1 queries"):
        token_shift(base, aligned, ["x"], base_prompt=BASE, answers=["a", "b"])
    with pytest.raises(ParameterError, match="n=2"):
        token_shift(
            base,
            aligned,
            ["x"],
            base_prompt=BASE,
            aligned_prompt=BASE,
            params=SamplingParams(n=2, temperature=1.0),
        )
    with pytest.raises(ParameterError, match="answer token id 100000"):
        token_shift(base, aligned, ["x"], base_prompt=BASE, aligned_prompt=BASE, answers=[[100000]])
    with pytest.raises(PromptError, match="has no tokens"):
        token_shift(base, aligned, ["x"], base_prompt=lambda q: [], aligned_prompt=BASE)


def test_a_head_that_is_not_finite_is_named_by_query_and_position(
    tiny_model: TinyModel,
) -> None:
    """Only one token of the first answer, and one of the second, meets the planted value."""
    folder = tiny_model(folder="bad", seed=1)
    with Engine(folder, dtype="float32") as good, Engine(folder, dtype="float32") as other:
        answers = [[5, 6, 7], [8, 9, 10, 11]]
        broken = other.hidden_states
        # The second answer's third row: rows before it in the group belong to the first answer.
        other.hidden_states = lambda ids, firsts: plant(broken(ids, firsts))  # type: ignore[method-assign]
        with pytest.raises(NumericsError, match=r"query 'second'.*answer token 2") as error:
            token_shift(
                good, other, ["first", "second"], base_prompt=BASE, aligned_prompt=BASE,
                answers=answers,
            )  # fmt: skip
        assert error.value.row == 2 and error.value.layer is None


def plant(states: list[np.ndarray]) -> list[np.ndarray]:
    states[1][2] = np.nan
    return states
