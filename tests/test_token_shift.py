"""The protocol of token_shift against full logits, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from safetensors.numpy import load_file, save_file

from tests.fixtures import TinyModel
from urial_engine import Engine, SamplingParams, token_shift
from urial_engine.errors import NumericsError, ParameterError, PromptError
from urial_engine.shift_data import ARRAYS
from urial_engine.token_shift import _probes, shift_of_answers, side_of
from urial_engine.token_shift_plan import Plan
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


def test_what_reads_them_can_be_told_to_end(pair: tuple[Engine, Engine]) -> None:
    """As a server does where a client has left."""
    plan = Plan.make(
        *(side_of(n, e, "raw") for n, e in zip(("base", "aligned"), pair, strict=True)), 0
    )
    answers = [plan.given(probe) for probe in _probes(QUERIES, [[70] * 6] * 3)]
    told: list[int] = []

    def go_on() -> None:
        told.append(1)
        if len(told) == 2:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        shift_of_answers(plan, *pair, answers, rows=6, before_each=go_on)
    whole = shift_of_answers(plan, *pair, answers)
    parted = shift_of_answers(plan, *pair, answers, rows=6)
    assert len(told) == 2 and whole.base_logprob.tolist() == parted.base_logprob.tolist()


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z.astype(np.float64)
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def logits(engine: Engine, context: list[int], answer: list[int]) -> np.ndarray:
    """[n, V] of the answer's positions, materialised."""
    ids = context + answer[:-1]
    return engine.backend.logits(engine.hidden_states([ids], [len(context) - 1])[0])


def check_against_logits(shift: TokenShift, base: Engine, aligned: Engine) -> None:
    """Every context of every answer."""
    for number, context in enumerate(shift.contexts):
        for i, a in enumerate(shift.answers):
            rows = (shift.answer == i) & (shift.context == number)
            assert shift.token_id[rows].tolist() == a.token_ids
            assert shift.position[rows].tolist() == list(range(len(a.token_ids)))
            if a.token_ids:
                z = logits(base, a.base_context_ids[context.base], a.token_ids)
                q = logits(aligned, a.aligned_context_ids[context.aligned], a.token_ids)
                check_measures(shift, rows, z, q)


def check_measures(shift: TokenShift, rows: np.ndarray, z: np.ndarray, z_q: np.ndarray) -> None:
    """Against the two models' logits [n, V]."""
    y = shift.token_id[rows]
    pick = (np.arange(len(y)), y)
    for side, own in (("base", z), ("aligned", z_q)):
        z_y = own[pick][:, None]
        p = log_softmax(own)
        assert getattr(shift, f"{side}_rank")[rows].tolist() == (1 + (own > z_y).sum(1)).tolist()
        assert getattr(shift, f"{side}_ties")[rows].tolist() == ((own == z_y).sum(1) - 1).tolist()
        ids = getattr(shift, f"{side}_top_ids")[rows]
        top = np.argsort(-own, axis=1, kind="stable")[:, : ids.shape[1]]
        assert ids.tolist() == top.tolist()
        close(getattr(shift, f"{side}_logprob")[rows], p[pick])
        close(getattr(shift, f"{side}_top_logprobs")[rows], np.take_along_axis(p, top, axis=1))
        close(getattr(shift, f"{side}_entropy")[rows], -(np.exp(p) * p).sum(1))
    b, q = log_softmax(z), log_softmax(z_q)
    close(shift.kl_aligned_base[rows], (np.exp(q) * (q - b)).sum(1))
    close(shift.kl_base_aligned[rows], (np.exp(b) * (b - q)).sum(1))


def close(ours: np.ndarray, truth: np.ndarray) -> None:
    np.testing.assert_allclose(ours, truth, rtol=0, atol=1e-5)


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
        assert a.aligned_context_ids == {ALIGNED: context}
        z = logits(aligned, context, a.token_ids)
        assert z.argmax(1).tolist() == a.token_ids
        of_base = base.tokenizer.encode(BASE.replace("{query}", query))
        assert a.base_context_ids == {BASE: of_base}


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


def test_every_prompt_is_a_context_of_its_own(pair: tuple[Engine, Engine]) -> None:
    """Three prompts of the base, two of the aligned model, one of which writes the answers."""
    base, aligned = pair
    shift = token_shift(
        *pair,
        QUERIES,
        base_prompt={"raw": "raw", "q": BASE, "as is": "same"},
        aligned_prompt={"chat": ALIGNED, "short": "{query} "},
        params=SamplingParams(max_tokens=7, ignore_eos=True),
        top_k=3,
    )
    names = [c.name for c in shift.contexts]
    assert names == [f"{b} / {a}" for a in ("chat", "short") for b in ("raw", "q", "as is")]
    check_against_logits(shift, base, aligned)
    for query, a in zip(QUERIES, shift.answers, strict=True):
        assert a.base_context_ids["as is as short"] == a.aligned_context_ids["short"]
        assert a.base_context_ids["raw"] == base.tokenizer.encode(query)
    alone = token_shift(
        base, aligned, QUERIES, base_prompt=BASE, aligned_prompt=ALIGNED, top_k=3,
        answers=[a.token_ids for a in shift.answers],
    )  # fmt: skip
    one = shift.only("q / chat")
    assert [c.name for c in one.contexts] == ["q / chat"]
    for name in ARRAYS:
        assert np.array_equal(getattr(one, name), getattr(alone, name)), name
    with pytest.raises(ParameterError, match="no context 'q'; there are raw / chat, "):
        shift.only("q")


def test_samples_are_answers_of_their_own(pair: tuple[Engine, Engine]) -> None:
    params = SamplingParams(max_tokens=9, n=3, temperature=1.0, seed=5, ignore_eos=True)
    shift = token_shift(*pair, QUERIES, base_prompt=BASE, aligned_prompt=ALIGNED, params=params)
    assert [(a.id, a.sample) for a in shift.answers] == [
        (i, s) for i in (1, 2, 3) for s in range(3)
    ]
    assert len({tuple(a.token_ids) for a in shift.answers}) > 3
    check_against_logits(shift, *pair)


def test_summary_files_and_page(pair: tuple[Engine, Engine], tmp_path: Path) -> None:
    base, aligned = pair
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    shift = token_shift(
        base, aligned, QUERIES, base_prompt=BASE, aligned_prompt=ALIGNED, params=params, top_k=3
    )
    (context,) = shift.summary(most=1000)["contexts"]
    assert sum(context["overall"][name]["value"] for name in CLASSES) == pytest.approx(1)
    shifted = int((shift.base_rank > 3).sum())
    assert sum(t["count"] for t in context["most_shifted"]) == shifted
    shift.save(tmp_path / "run")
    table = parquet.read_table(tmp_path / "run" / "tokens.parquet").to_pydict()
    assert table["base_rank"] == shift.base_rank.tolist()
    assert table["base_top_ids"] == shift.base_top_ids.tolist()
    assert set(table["shift_class"]) <= set(CLASSES)
    lines = (tmp_path / "run" / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["token_ids"] for line in lines] == [a.token_ids for a in shift.answers]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["tokens"] == 60
    shift.html(tmp_path / "page.html", about={"base": "random"})
    assert "<title>Token shift</title>" in (tmp_path / "page.html").read_text()
    assert {p.suffix for p in shift.plots(tmp_path / "plots")} == {".png", ".svg"}


def test_no_queries_are_no_rows(pair: tuple[Engine, Engine], tmp_path: Path) -> None:
    shift = token_shift(*pair, [], base_prompt=BASE, aligned_prompt=ALIGNED, top_k=2)
    assert shift.answers == [] and shift.base_top_ids.shape == (0, 2)
    shift.save(tmp_path)
    assert TokenShift.load(tmp_path).token_id.size == 0


def test_clear_errors(pair: tuple[Engine, Engine]) -> None:
    base, aligned = pair
    with pytest.raises(ParameterError, match="2 answers for 1 queries"):
        token_shift(base, aligned, ["x"], base_prompt=BASE, answers=["a", "b"])
    with pytest.raises(ParameterError, match="an answer has token id 100000"):
        token_shift(base, aligned, ["x"], base_prompt=BASE, aligned_prompt=BASE, answers=[[100000]])
    with pytest.raises(PromptError, match="has no tokens"):
        token_shift(base, aligned, ["x"], base_prompt=lambda q: [], aligned_prompt=BASE)
    with pytest.raises(ParameterError, match=r"top_k=321: must be between 0 and .* 320"):
        token_shift(base, aligned, ["x"], base_prompt=BASE, aligned_prompt=BASE, top_k=321)
    with pytest.raises(ParameterError, match="prompts by name: at least one"):
        token_shift(base, aligned, ["x"], base_prompt={}, aligned_prompt=BASE)
    with pytest.raises(ParameterError, match="a prompt is one of chat, raw, zero-shot, a template"):
        token_shift(base, aligned, ["x"], base_prompt=BASE, aligned_prompt="no place for it")
    with pytest.raises(ParameterError, match='"same" is a prompt of the base model'):
        token_shift(base, aligned, ["x"], base_prompt=BASE, aligned_prompt="same")
    long = "word " * 300
    with pytest.raises(PromptError, match=r"queries\[0\] is too long: \d+ tokens too many"):
        token_shift(base, aligned, [long], base_prompt=BASE, aligned_prompt=BASE)
    with pytest.raises(PromptError, match=r"an answer of 600 tokens, where .* room for 5"):
        token_shift(
            base, aligned, ["x"], base_prompt=BASE, aligned_prompt=BASE, answers=[[5] * 600]
        )


def test_a_head_that_is_not_finite_is_named_by_query_and_position(
    tiny_model: TinyModel,
) -> None:
    """Only one token of the first answer, and one of the second, meets the planted value."""
    folder = tiny_model(folder="bad", seed=1)
    with Engine(folder, dtype="float32") as good, Engine(folder, dtype="float32") as other:
        answers = [[5, 6, 7], [8, 9, 10, 11]]
        broken = other.hidden_states
        # The second answer's third row: rows before it in the group belong to the first answer.
        other.hidden_states = lambda ids, firsts, labels: plant(broken(ids, firsts))  # type: ignore[method-assign]
        with pytest.raises(NumericsError, match=r"query 'second'.*answer token 2") as error:
            token_shift(
                good, other, ["first", "second"], base_prompt=BASE, aligned_prompt=BASE,
                answers=answers,
            )  # fmt: skip
        assert error.value.row == 2 and error.value.layer is None


def test_a_layer_that_is_not_finite_is_named_by_query_and_model(tiny_model: TinyModel) -> None:
    good, bad = tiny_model(folder="good"), tiny_model(folder="bad", seed=1)
    weights = load_file(bad / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = np.nan
    save_file(weights, bad / "model.safetensors")
    with (
        Engine(good, dtype="float32") as base,
        Engine(bad, dtype="float32") as aligned,
        pytest.raises(NumericsError, match=r"query 'why' \(aligned, .*layer 1"),
    ):
        token_shift(base, aligned, ["why"], base_prompt=BASE, aligned_prompt=ALIGNED, answers=["a"])


def plant(states: list[np.ndarray]) -> list[np.ndarray]:
    states[1][2] = np.nan
    return states
