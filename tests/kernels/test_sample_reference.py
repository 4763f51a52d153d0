"""The sampler's reference: known random numbers, each step by hand, the distribution drawn."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from urial_engine.kernels.sample import philox4x32, uniform
from urial_engine.kernels.sample import reference as sample

F32 = NDArray[np.float32]
ONES = 0xFFFFFFFF


def logits(*values: float) -> F32:
    return np.array(values, np.float32)


def of(*shares: float) -> F32:
    """Logits whose softmax is these shares."""
    return np.asarray(np.log(logits(*shares) / np.float32(sum(shares))))


def support(z: F32, **how: Any) -> list[int]:
    """The ids that some u in a fine grid draws, in the order in which a rising u meets them."""
    drawn = [sample(z, (i + 0.5) / 2000, **how) for i in range(2000)]
    return list(dict.fromkeys(drawn))


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [
        ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 2, (ONES,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(
    key: tuple[int, ...], counter: tuple[int, ...], words: tuple[int, ...]
) -> None:
    """The published vectors of Random123 for philox4x32 with 10 rounds."""
    assert philox4x32(key, counter) == words


def test_uniform_is_the_first_word_under_seed_position_and_sample() -> None:
    assert uniform(seed=0, sample=0, position=0) == (0x6627E8D5 + 0.5) / 2**32
    word = philox4x32((0x89ABCDEF, 0x01234567), (7, 3, 0, 0))[0]
    assert uniform(seed=0x0123456789ABCDEF, sample=3, position=7) == (word + 0.5) / 2**32


def test_uniform_depends_on_every_bit_it_is_given() -> None:
    seeds = [0, *(1 << bit for bit in range(64))]
    draws = {uniform(seed, s, p) for seed in seeds for s in (0, 1, ONES) for p in (0, 1, ONES)}
    assert len(draws) == 65 * 9
    assert 0 < min(draws) < max(draws) < 1


def test_greedy_takes_the_smallest_id_among_equals() -> None:
    assert sample(logits(1, 3, 2, 3, 3), 0.99, temperature=0) == 1


def test_greedy_ignores_what_only_a_draw_uses() -> None:
    how: dict[str, Any] = {"top_k": 1, "top_p": 0.1, "min_p": 0.9}
    assert sample(logits(1, 3, 2), 0.99, temperature=0, **how) == 1


def test_banned_tokens_are_never_chosen() -> None:
    assert sample(logits(1, 3, 2), 0.5, temperature=0, banned_ids=[1]) == 2
    assert support(of(1, 1, 1, 1), banned_ids=[0, 2]) == [1, 3]


def test_repetition_penalty_divides_what_is_positive_and_multiplies_what_is_not() -> None:
    how: dict[str, Any] = {"temperature": 0.0, "repetition_penalty": 2.0}
    ids: dict[str, Any] = {"penalty_ids": [0], "penalty_repeats": [1], "penalty_counts": [1]}
    assert sample(logits(3, 2, -9), 0.5, **how, **ids) == 1
    assert sample(logits(3, 1.4, -9), 0.5, **how, **ids) == 0
    assert sample(logits(-1, -1.9, -9), 0.5, **how, **ids) == 1
    assert sample(logits(-1, -2.1, -9), 0.5, **how, **ids) == 0
    unmarked = ids | {"penalty_repeats": [0]}
    assert sample(logits(3, 2, -9), 0.5, **how, **unmarked) == 0


def test_presence_counts_once_and_frequency_each_time() -> None:
    ids: dict[str, Any] = {
        "temperature": 0.0,
        "penalty_ids": [0, 1, 2],
        "penalty_repeats": [1, 1, 1],
        "penalty_counts": [0, 1, 3],  # 0: it stands in the prompt only
    }
    assert sample(logits(1, 1.4, 1.4), 0.5, presence_penalty=0.5, **ids) == 0
    assert sample(logits(0.8, 1.4, 1.41), 0.5, presence_penalty=0.5, **ids) == 2
    assert sample(logits(0, 1.4, 1.5), 0.5, frequency_penalty=0.5, **ids) == 1
    assert sample(logits(0, 1.4, 3), 0.5, frequency_penalty=0.5, **ids) == 2
    assert sample(logits(1, 1, 1), 0.5, frequency_penalty=-0.5, **ids) == 2


def test_repetition_comes_before_presence() -> None:
    """4 / 2 - 1 = 1, not (4 - 1) / 2 = 1.5."""
    ids: dict[str, Any] = {"penalty_ids": [0], "penalty_repeats": [1], "penalty_counts": [1]}
    how: dict[str, Any] = {"temperature": 0.0, "repetition_penalty": 2.0, "presence_penalty": 1.0}
    assert sample(logits(4, 1.2), 0.5, **how, **ids) == 1
    assert sample(logits(4, 0.8), 0.5, **how, **ids) == 0


def test_penalties_come_before_temperature() -> None:
    """At temperature 4, (2 - 2) / 4 = 0 draws evenly with 0; 2 / 4 - 2 would not."""
    ids: dict[str, Any] = {"penalty_ids": [1], "penalty_repeats": [0], "penalty_counts": [1]}
    how: dict[str, Any] = {"temperature": 4.0, "presence_penalty": 2.0}
    drawn = Counter(sample(logits(0, 2), (i + 0.5) / 100, **how, **ids) for i in range(100))
    assert drawn == {0: 50, 1: 50}


def test_a_rising_u_meets_tokens_by_falling_logit_then_rising_id() -> None:
    assert support(of(1, 2, 1, 4, 2)) == [3, 1, 4, 0, 2]


def test_a_token_ends_where_its_running_sum_does() -> None:
    assert [sample(logits(0, 0), u) for u in (0.4999, 0.5, 0.5001)] == [0, 1, 1]


def test_top_k_keeps_exactly_k_even_through_a_tie() -> None:
    z = of(1, 2, 2, 2, 1)
    assert [support(z, top_k=k) for k in (1, 2, 4, 5, 99)] == [
        [1],
        [1, 2],
        [1, 2, 3, 0],
        [1, 2, 3, 0, 4],
        [1, 2, 3, 0, 4],
    ]


def test_top_p_keeps_the_shortest_prefix_that_reaches_it() -> None:
    z = of(8, 4, 2, 2)
    for top_p, kept in [(1e-6, 1), (0.49, 1), (0.51, 2), (0.74, 2), (0.76, 3), (0.88, 4), (1, 4)]:
        assert support(z, top_p=top_p) == [0, 1, 2, 3][:kept]
    even = logits(0, 0, 0, 0)  # shares of exactly 1/4: reached counts, exceeded is not needed
    assert support(even, top_p=0.5) == [0, 1]


def test_top_p_is_taken_of_what_top_k_left() -> None:
    """Of 8, 4, 2, 2: alone 0.6 needs two; among the first two 8/12 reaches it."""
    z = of(8, 4, 2, 2)
    assert support(z, top_p=0.6) == [0, 1]
    assert support(z, top_p=0.6, top_k=2) == [0]


def test_min_p_is_a_share_of_the_largest() -> None:
    z = np.log2(np.array([8, 4, 2, 1], np.float32)) * np.float32(np.log(2))
    assert support(z, min_p=0.3) == [0, 1]
    assert support(z, min_p=0.2) == [0, 1, 2]
    assert support(z, min_p=1) == [0]
    assert support(logits(5, 5, 4), min_p=1) == [0, 1]


def test_temperature_sharpens_and_flattens() -> None:
    z = of(3, 1)
    for temperature, share in [(0.5, 9 / 10), (1, 3 / 4), (2, 3**0.5 / (1 + 3**0.5))]:
        first = sum(sample(z, (i + 0.5) / 1000, temperature=temperature) == 0 for i in range(1000))
        assert abs(first / 1000 - share) <= 1e-3


def test_draws_follow_the_softmax() -> None:
    """Pearson's chi-square of 20,000 draws at distinct positions against softmax(z / 0.7)."""
    z = np.random.default_rng(3).normal(size=12).astype(np.float32)
    draws = 20000
    drawn = Counter(
        sample(z, uniform(seed=2**40 + 5, sample=1, position=i), temperature=0.7)
        for i in range(draws)
    )
    p = np.exp(z / 0.7) / np.exp(z / 0.7).sum()
    observed = np.array([drawn[i] for i in range(12)])
    chi_square = float(((observed - draws * p) ** 2 / (draws * p)).sum())
    assert chi_square < 31.3  # 11 degrees of freedom: exceeded once in 1,000 sets of draws


@pytest.mark.parametrize("u", [0.5 / 2**32, 1 - 0.5 / 2**32])
def test_the_ends_of_the_unit_interval_draw_a_possible_token(u: float) -> None:
    z = np.concatenate([np.zeros(999, np.float32), logits(-200, -np.inf)])
    assert sample(z, u) == (0 if u < 0.5 else 998)


def test_the_logits_are_left_as_they_were() -> None:
    z = of(1, 2, 3)
    before = z.copy()
    ids: dict[str, Any] = {"penalty_ids": [0], "penalty_repeats": [1], "penalty_counts": [1]}
    sample(z, 0.5, temperature=0.5, repetition_penalty=3.0, banned_ids=[1], **ids)
    np.testing.assert_array_equal(z, before)


@pytest.mark.parametrize(
    ("z", "how"),
    [
        (logits(1, 2), {"banned_ids": [0, 1]}),
        (logits(1, np.nan), {"temperature": 0.0}),
        (logits(1, np.inf), {}),
        (logits(1, 2), {"temperature": 1e-45}),
    ],
    ids=["all banned", "NaN", "inf", "temperature that overflows"],
)
def test_nothing_to_choose_from_is_an_error(z: F32, how: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no finite score"):
        sample(z, 0.5, **how)
