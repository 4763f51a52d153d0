"""The native sampler against the reference, token for token, under thousands of random settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from urial_engine.kernels import rank
from urial_engine.kernels.sample import reference, uniform
from urial_engine.kernels.sample.native import head, philox

from .rungs import F32, every_isa

ROWS = 40  # of a call: past the 32 whose logits are held together
VOCABULARIES = [1, 2, 31, 33, 64, 257, 600, 2000]
BATCHES = 60  # of each instruction set
PENALTIES = ("penalty_ids", "penalty_repeats", "penalty_counts")
# Every special value, and values on both sides of what the command line lets through.
CHOICES: dict[str, tuple[float, ...]] = {
    "temperature": (0, 0, 1e-4, 0.01, 0.3, 0.7, 1, 1, 2, 100),
    "top_k": (0, 0, 0, 1, 2, 5, 50, 700, 2**31 - 1),
    "top_p": (1, 1, 0.99999994, 0.95, 0.9, 0.5, 0.25, 0.1, 1e-6),
    "min_p": (0, 0, 0.05, 0.5, 1, 1e-3, 1e-20),
    "repetition_penalty": (1, 1, 1.1, 2, 0.5, 100, 0.01),
    "presence_penalty": (0, 0, 0.5, -0.5, 2, 100, -100),
    "frequency_penalty": (0, 0, 0.5, -0.5, 2, -100),
}
DTYPES: dict[str, type] = {
    **dict.fromkeys(CHOICES, np.float32),
    "top_k": np.int32, "seed": np.uint64, "sample": np.uint32, "position": np.uint32,
    "penalty_ids": np.int32, "penalty_repeats": np.uint8, "penalty_counts": np.int32,
    "banned_ids": np.int32,
}  # fmt: skip
Row = dict[str, Any]


def random_logits(rng: np.random.Generator, vocab: int) -> F32:
    """Mild, peaked, tied, all equal, far apart, or a few equal ones above all others."""
    z = rng.normal(size=vocab)
    kinds = [z, z * 5, z * 30, np.round(z * 2), z * 0, z * 1e4, z * 0.1 - 30]
    kinds[-1][rng.random(vocab) < 0.02] = 10
    return kinds[rng.integers(len(kinds))].astype(np.float32)


def random_row(rng: np.random.Generator, vocab: int) -> Row:
    row: Row = {name: values[rng.integers(len(values))] for name, values in CHOICES.items()}
    penalised = rng.integers(min(vocab, 20) + 1) if rng.random() < 0.6 else 0
    banned = rng.integers(min(vocab, 6)) if rng.random() < 0.5 else 0
    row["penalty_ids"] = rng.choice(vocab, penalised, replace=False)
    row["penalty_repeats"] = rng.integers(0, 2, penalised)
    row["penalty_counts"] = rng.integers(0, 4, penalised)
    row["banned_ids"] = rng.choice(vocab, banned, replace=False)
    row["seed"] = int(rng.integers(2**64, dtype=np.uint64))
    row["sample"], row["position"] = (int(i) for i in rng.integers(2**32, size=2))
    return row


@dataclass
class Chosen:
    ids: NDArray[np.int32]
    logprob: F32
    rank: NDArray[np.int32]
    top_ids: NDArray[np.int32]
    top_logprobs: F32
    bad: int


def choose(z: F32, rows: list[Row], isa: str, threads: int = 1, top: int = 0) -> Chosen:
    """One native call for logits that are exactly z [M, V]: hidden state m picks column m."""
    model = head(np.ascontiguousarray(z.T), isa=isa, dtype="float32", threads=threads)
    how: dict[str, NDArray[Any]] = {}
    for name, dtype in DTYPES.items():
        values: list[NDArray[Any]] = [np.asarray(row[name], dtype) for row in rows]
        if name not in (*PENALTIES, "banned_ids"):
            how[name] = np.array(values, dtype)
            continue
        how[name] = np.concatenate(values)
        ends = np.cumsum([0, *map(len, values)]).astype(np.int32)
        how[name.split("_")[0] + "_offsets"] = ends
    return Chosen(*model.next_tokens(np.eye(len(z), dtype=np.float32), how, top))


def plain(**fields: Any) -> Row:
    """Greedy, but for `fields`."""
    none: list[int] = []
    off: Row = dict.fromkeys(DTYPES, 0) | {"top_p": 1, "repetition_penalty": 1}
    return off | dict.fromkeys((*PENALTIES, "banned_ids"), none) | fields


def by_reference(z: F32, row: Row) -> int | None:
    """None where nothing can be chosen."""
    how = {name: value for name, value in row.items() if name not in ("seed", "sample", "position")}
    try:
        return reference(z, uniform(row["seed"], row["sample"], row["position"]), **how)
    except ValueError:
        return None


def margin(z: F32, row: Row) -> float:
    """How near a row comes to a place where rounding decides, as a share of the sums compared.

    The sums of top_p and of the draw run over falling probabilities in the reference; natively the
    total of the whole vocabulary is summed by id, for sorting all of it would cost more than the
    model does. Both are right to a few units of 2^-53, and differ where a sum meets its bound
    exactly: half of an even number of equal logits at top_p = 0.5.
    """
    z = z.astype(np.float64)
    z[row["banned_ids"]] = -np.inf
    ids, repeated = np.asarray(row["penalty_ids"], np.int64), np.asarray(row["penalty_repeats"])
    factor = np.where(repeated == 1, row["repetition_penalty"], 1)
    counts = np.asarray(row["penalty_counts"])
    z[ids] = np.where(z[ids] > 0, z[ids] / factor, z[ids] * factor)
    z[ids] -= row["frequency_penalty"] * counts + row["presence_penalty"] * (counts > 0)
    p = np.sort(np.exp((z - z.max()) / row["temperature"]))[::-1][: row["top_k"] or None]
    whole = np.cumsum(p)
    kept = whole[: int(np.searchsorted(whole, np.float32(row["top_p"]) * whole[-1])) + 2]
    u = uniform(row["seed"], row["sample"], row["position"])
    near_top_p = np.abs(whole / whole[-1] - np.float32(row["top_p"])).min()
    near_u = min(np.abs(kept / total - u).min() for total in kept[-2:])
    return float(min(near_top_p, near_u))


@every_isa
@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_greedy_without_logits_is_greedy_with_them(isa: str, vocab: int) -> None:
    """One row that needs all its logits makes the call keep them; past the 256 rows of a turn."""
    rng = np.random.default_rng(vocab)
    z = np.array([random_logits(rng, vocab) for _ in range(260)])
    rows = [plain()] * len(z)
    alone = choose(z, rows, isa, threads=2)
    kept = choose(z, [*rows[1:], plain(temperature=1)], isa)
    np.testing.assert_array_equal(alone.ids, z.argmax(axis=1))
    assert (alone.bad, alone.rank.tolist()) == (-1, [1] * len(z))
    np.testing.assert_array_equal(alone.ids[:-1], kept.ids[:-1])
    np.testing.assert_array_equal(alone.logprob[:-1], kept.logprob[:-1])


@every_isa
def test_token_for_token(isa: str) -> None:
    chosen = greedy = 0
    different = []
    for batch in range(BATCHES):
        rng = np.random.default_rng([batch, len(isa)])
        vocab = VOCABULARIES[batch % len(VOCABULARIES)]
        rows = [random_row(rng, vocab) for _ in range(ROWS)]
        z = np.stack([random_logits(rng, vocab) for _ in rows])
        ours = choose(z, rows, isa)
        truth = [by_reference(*pair) for pair in zip(z, rows, strict=True)]
        assert ours.bad == (truth.index(None) if None in truth else -1)
        for row, values, token, expected in zip(rows, z, ours.ids, truth, strict=True):
            chosen += expected is not None
            greedy += row["temperature"] == 0
            if expected is not None and token != expected:
                different.append(margin(values, row))
    assert chosen > 0.95 * BATCHES * ROWS and 0.1 * chosen < greedy < 0.5 * chosen
    assert len(different) <= chosen / 1000 and max(different, default=0) < 1e-12


def test_a_sum_that_meets_top_p_exactly_is_the_only_kind_of_difference() -> None:
    """Two equal logits above 40,000 whose weights are lost one by one in the reference's sum of 2,
    but not when they come first: half the sum is 1 there, and a little more natively."""
    z = np.full((1, 40_002), -36.5, np.float32)
    z[0, -2:] = 0
    rows = [plain(temperature=1, top_p=0.5, seed=seed) for seed in range(40)]
    expected = [by_reference(z[0], row) for row in rows]
    ours = [int(choose(z, [row], "portable").ids[0]) for row in rows]
    assert expected == [40_000] * 40 and set(ours) == {40_000, 40_001}
    assert all(margin(z[0], row) < 1e-12 for row in rows)


@every_isa
def test_what_is_reported_is_the_raw_model(isa: str) -> None:
    """Log-probability, rank and the likeliest tokens before penalties, bans and temperature."""
    rng = np.random.default_rng(6)
    z = np.stack([random_logits(rng, 300) for _ in range(ROWS)])
    rows = [random_row(rng, 300) | {"temperature": 0.7} for _ in range(ROWS)]
    ours = choose(z, rows, isa, top=300)
    truth = rank.reference(z.astype(np.float64), ours.ids, 300)
    np.testing.assert_array_equal(ours.rank, truth.rank)
    np.testing.assert_array_equal(ours.top_ids, truth.top_ids)
    np.testing.assert_allclose(ours.logprob, truth.logprob, atol=4e-6, rtol=2.0**-23)
    np.testing.assert_allclose(ours.top_logprobs, truth.top_logprobs, atol=4e-6, rtol=2.0**-23)


@every_isa
def test_a_draw_depends_on_its_own_row_alone(isa: str) -> None:
    rng = np.random.default_rng(7)
    z = np.stack([random_logits(rng, 600) for _ in range(ROWS)])
    rows = [random_row(rng, 600) for _ in range(ROWS)]
    whole = choose(z, rows, isa, top=5)
    assert whole.bad == -1
    for threads in (2, 4):
        again = choose(z, rows, isa, threads, top=5)
        np.testing.assert_array_equal(again.ids, whole.ids)
        np.testing.assert_array_equal(again.top_logprobs, whole.top_logprobs)
    mixed = rng.permutation(ROWS)
    shuffled = choose(z[mixed], [rows[i] for i in mixed], isa)
    np.testing.assert_array_equal(shuffled.ids, whole.ids[mixed])
    np.testing.assert_array_equal(shuffled.logprob, whole.logprob[mixed])
    alone = [int(choose(z[i : i + 1], [rows[i]], isa).ids[0]) for i in range(ROWS)]
    np.testing.assert_array_equal(alone, whole.ids)


def test_philox_known_answers() -> None:
    """The published vector of Random123 that has this counter; and the reference, word for
    word."""
    assert philox(0, 0, 0) == 0x6627E8D5
    rng = np.random.default_rng(8)
    edges = [(2**64 - 1, 2**32 - 1, 2**32 - 1), (1 << 63, 0, 1), (1 << 32, 1, 0)]
    randoms = [
        (int(rng.integers(2**64, dtype=np.uint64)), *(int(i) for i in rng.integers(2**32, size=2)))
        for _ in range(500)
    ]
    for seed, position, sample in edges + randoms:
        u = uniform(seed=seed, sample=sample, position=position)
        assert (philox(seed, position, sample) + 0.5) / 2**32 == u


@every_isa
def test_draws_follow_the_softmax(isa: str) -> None:
    """Pearson's chi-square of 20,000 draws at distinct positions against softmax(z / 0.7)."""
    z = np.random.default_rng(3).normal(size=12).astype(np.float32)
    per_call, calls = 500, 40
    drawn = np.zeros(12)
    for call in range(calls):
        rows = [
            plain(temperature=0.7, seed=2**40 + 5, sample=1, position=call * per_call + i)
            for i in range(per_call)
        ]
        drawn += np.bincount(choose(np.tile(z, (per_call, 1)), rows, isa).ids, minlength=12)
    p = np.exp(z / 0.7) / np.exp(z / 0.7).sum() * per_call * calls
    assert ((drawn - p) ** 2 / p).sum() < 31.3  # 11 degrees of freedom: once in 1,000


@every_isa
@pytest.mark.parametrize("vocab", [1, 4, 31, 32, 33, 300])
def test_greedy_takes_the_smallest_id_among_equals(isa: str, vocab: int) -> None:
    """Wherever the largest logits stand in the lanes, however often."""
    rng = np.random.default_rng(vocab)
    z = rng.integers(0, 4, size=(ROWS, vocab)).astype(np.float32)
    z[0], z[1] = -5, -3e38
    chosen = choose(z, [plain()] * ROWS, isa)
    np.testing.assert_array_equal(chosen.ids, z.argmax(axis=1))
    assert (chosen.rank == 1).all()


@every_isa
def test_nothing_to_choose_from_names_the_row(isa: str) -> None:
    z = np.zeros((6, 5), np.float32)
    z[3] = 1, 2, 3, 4, 5
    for row in (
        plain(banned_ids=[0, 1, 2, 3, 4]),
        plain(banned_ids=[0, 1, 2, 3, 4], temperature=1),
        plain(temperature=1e-45),
        plain(temperature=1e-45, top_p=0.5, top_k=2),
    ):
        assert by_reference(z[3], row) is None
        assert choose(z, [plain()] * 3 + [row] + [plain()] * 2, isa).bad == 3
    assert choose(z, [plain()] * 6, isa).bad == -1


@every_isa
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("top_p", "top"), [(1.0, 0), (0.5, 0), (1.0, 2), (0.5, 2)])
def test_logits_that_are_not_finite_name_their_row(
    isa: str, temperature: float, top_p: float, top: int
) -> None:
    """An infinite hidden state: every logit of its row is NaN or infinite, and no other's."""
    weight = np.random.default_rng(9).normal(size=(300, 35)).astype(np.float32)
    model = head(weight, isa=isa, dtype="float32", threads=2)
    rows = [plain(temperature=temperature, top_p=top_p)] * 35
    how: dict[str, Any] = {
        name: np.array([row[name] for row in rows], DTYPES[name])
        for name in DTYPES
        if name not in (*PENALTIES, "banned_ids")
    }
    for name in (*PENALTIES, "banned_ids"):
        how[name] = np.zeros(0, DTYPES[name])
    how["penalty_offsets"] = how["banned_offsets"] = np.zeros(36, np.int32)
    hidden = np.eye(35, dtype=np.float32)
    clean = model.next_tokens(hidden, how, top)
    assert clean[-1] == -1
    for bad in (np.nan, np.inf, -np.inf):
        broken = hidden.copy()
        broken[[7, 33], 0] = bad
        got = model.next_tokens(broken, how, top)
        assert got[-1] == 7
        np.testing.assert_array_equal(np.delete(got[0], [7, 33]), np.delete(clean[0], [7, 33]))
    for wrong, message in [
        ({"top_p": how["top_p"][:3]}, "top_p has the wrong length"),
        ({"banned_ids": np.array([300], np.int32)}, "ragged offsets"),
        ({"banned_offsets": how["banned_offsets"] + 1}, "ragged offsets"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.next_tokens(hidden, how | wrong, top)
        np.testing.assert_array_equal(model.next_tokens(hidden, how, top)[0], clean[0])
