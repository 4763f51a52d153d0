"""The reference backend keeps the contract of backends/base.py: cache, head, errors."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.in_memory import CONFIG, TEXT, feed, how, open_tiny, random_weights, whole
from urial_engine.backends import Batch, open_backend
from urial_engine.config import ModelConfig
from urial_engine.errors import NumericsError, ParameterError
from urial_engine.kernels import sample

# The contract: cache


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-13), ("float32", 1e-4)])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_chunks_meet_the_whole(size: int, dtype: str, bound: float) -> None:
    backend = open_tiny(dtype=dtype)
    truth = whole(backend)
    backend.allocate(5)
    spans = [(s, min(s + size, len(TEXT))) for s in range(0, len(TEXT), size)]
    rows = np.concatenate([feed(backend, [4, 0, 2], *span) for span in spans])
    assert rows.dtype == dtype
    assert np.abs(rows - truth).max() <= bound * np.abs(truth).max()


def test_a_batch_of_strangers_with_a_shared_block() -> None:
    """A decode, a prefill and a whole text in one call; the first two read block 7 together."""
    backend = open_tiny()
    other = TEXT[:64] + TEXT[100:140]
    truth, truth_other = whole(backend), feed(backend, [0, 1], 0, len(other), other)
    backend.allocate(9)
    feed(backend, [7, 3], 0, 70)
    tables = np.array([[7, 3, -1], [7, 5, -1], [1, 2, 8]], np.int32)
    spans = [(TEXT, 70, 71), (other, 64, len(other)), (TEXT, 0, len(TEXT))]
    out = backend.forward(
        Batch(
            np.concatenate([text[a:b] for text, a, b in spans]).astype(np.int32),
            np.concatenate([np.arange(a, b) for _, a, b in spans]).astype(np.int32),
            np.repeat([0, 1, 2], [b - a for _, a, b in spans]).astype(np.int32),
            tables,
        )
    )
    np.testing.assert_allclose(out[:1], truth[70:71], atol=1e-12)
    np.testing.assert_allclose(out[1 : len(other) - 63], truth_other[64:], atol=1e-12)
    np.testing.assert_allclose(out[len(other) - 63 :], truth, atol=1e-12)


def test_a_copied_block_continues_the_text() -> None:
    backend = open_tiny()
    truth = whole(backend)
    backend.allocate(4)
    feed(backend, [0, 1], 0, 100)
    backend.copy_block(1, 3)
    feed(backend, [0, 1], 80, 100, TEXT[::-1])  # the source may change: the copy is its own
    np.testing.assert_allclose(feed(backend, [0, 3, 2], 100, 150), truth[100:], atol=1e-12)


def test_blocks_travel_as_bytes() -> None:
    backend, twin = open_tiny(), open_tiny()
    truth = whole(backend)
    blocks = [backend.read_block(i) for i in range(3)]
    assert [b.shape for b in blocks] == [(backend.block_bytes,)] * 3
    assert backend.block_bytes == 3 * 2 * 64 * 2 * 8 * 8  # L, keys and values, P, K, D, bytes
    twin.allocate(6)
    for target, block in zip((5, 0, 4), blocks, strict=True):
        twin.write_block(target, block)
    np.testing.assert_allclose(feed(twin, [5, 0, 4], 149, 150), truth[149:], atol=1e-12)
    blocks[0][:] = 0  # what was read is a copy
    assert backend.read_block(0).any()


def test_blocks_start_zeroed() -> None:
    backend = open_tiny()
    whole(backend)
    assert backend.read_block(2).any()
    backend.allocate(3)
    assert not backend.read_block(2).any()


# The contract: the head


def test_logits_are_fp32_of_the_tied_or_the_own_head() -> None:
    for tied in (True, False):
        arrays = random_weights(tied)
        backend = open_tiny(arrays)
        hidden = whole(backend)
        head = arrays["model.embed_tokens.weight" if tied else "lm_head.weight"]
        z = backend.logits(hidden)
        assert z.dtype == np.float32
        np.testing.assert_array_equal(z, (hidden @ head.T.astype(np.float64)).astype(np.float32))


def test_score_counts_as_defined_even_where_heads_tie() -> None:
    arrays = random_weights()
    arrays["lm_head.weight"][[5, 11, 30]] = arrays["lm_head.weight"][2]
    backend = open_tiny(arrays)
    hidden = whole(backend)
    targets = np.array([2, 5, 30, *TEXT[3:]], np.int32)
    scores = backend.score(hidden, targets, 6)
    z = backend.logits(hidden)
    for row, y in enumerate(targets):
        others = np.delete(z[row], y)
        assert scores.rank[row] == 1 + (others > z[row, y]).sum()
        assert scores.ties[row] == (others == z[row, y]).sum()
        top = sorted(range(37), key=lambda v: (-z[row, v], v))[:6]
        assert scores.top_ids[row].tolist() == top
        p = np.exp(z[row].astype(np.float64))
        p /= p.sum()
        assert scores.logprob[row] == pytest.approx(math.log(p[y]), abs=1e-5)
        assert scores.entropy[row] == pytest.approx(-(p * np.log(p)).sum(), abs=1e-5)
        assert scores.top_logprobs[row] == pytest.approx(np.log(p[top]), abs=1e-5)
    assert scores.ties[:3].tolist() == [3, 3, 3]


def test_next_tokens_reports_the_raw_model() -> None:
    """Two greedy rows, alike but for a token that row 0 bans; row 2 draws with penalties."""
    backend = open_tiny()
    hidden = whole(backend)[[0, 0, 2]]
    z = backend.logits(hidden)
    best = z.argmax(axis=1)
    fields: dict[str, Any] = {
        "temperature": np.array([0, 0, 0.7], np.float32),
        "presence_penalty": np.array([0, 0, 1.5], np.float32),
        "repetition_penalty": np.array([9, 9, 1.3], np.float32),
        "seed": np.array([0, 0, 2**63 + 1], np.uint64),
        "sample": np.array([0, 0, 4], np.uint32),
        "position": np.array([0, 0, 77], np.uint32),
        "penalty_offsets": np.array([0, 0, 0, 2], np.int32),
        "penalty_ids": np.array([best[2], 3], np.int32),
        "penalty_repeats": np.array([1, 0], np.uint8),
        "penalty_counts": np.array([0, 2], np.int32),
        "banned_offsets": np.array([0, 1, 1, 1], np.int32),
        "banned_ids": np.array([best[0]], np.int32),
        "top_logprobs": 2,
    }
    got = backend.next_tokens(hidden, how(3, **fields))
    drawn = sample.reference(
        z[2],
        sample.uniform(2**63 + 1, 4, 77),
        temperature=0.7,
        presence_penalty=1.5,
        repetition_penalty=1.3,
        penalty_ids=[best[2], 3],
        penalty_repeats=[1, 0],
        penalty_counts=[0, 2],
    )
    assert got.token_ids.tolist() == [np.argsort(z[0])[-2], best[1], drawn]
    expected = backend.score(hidden, got.token_ids, 2)
    assert got.rank.tolist() == expected.rank.tolist()
    assert got.rank[:2].tolist() == [2, 1]
    np.testing.assert_array_equal(got.logprob, expected.logprob)
    np.testing.assert_array_equal(got.top_ids, expected.top_ids)
    np.testing.assert_array_equal(got.top_logprobs, expected.top_logprobs)


def test_compare_gives_both_divergences() -> None:
    base = open_tiny()
    arrays = random_weights()
    arrays["lm_head.weight"] = arrays["lm_head.weight"][::-1].copy()
    aligned = open_tiny(arrays)
    hidden, targets = whole(base)[:9], np.array(TEXT[1:10], np.int32)
    got = base.compare(hidden, targets, 3, aligned, hidden * 0.5)
    p, q = (
        np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        for z in (base.raw_logits(hidden), aligned.raw_logits(hidden * 0.5))
    )
    np.testing.assert_allclose(got.kl_base_aligned, (p * np.log(p / q)).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(got.kl_aligned_base, (q * np.log(q / p)).sum(axis=1), rtol=1e-5)
    for side, own in [
        (got.base, base.score(hidden, targets, 3)),
        (got.aligned, aligned.score(hidden * 0.5, targets, 3)),
    ]:
        for mine, expected in zip(side, own, strict=True):
            np.testing.assert_array_equal(mine, expected)


# The contract: errors


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.1.mlp.up_proj.weight", 1),
        ("model.layers.2.input_layernorm.weight", 2),
        ("model.norm.weight", None),
    ],
)
def test_a_nan_in_the_weights_names_its_layer(name: str, layer: int | None) -> None:
    arrays = random_weights()
    arrays[name].flat[3] = np.nan
    with pytest.raises(NumericsError, match="row 0") as caught:
        whole(open_tiny(arrays))
    assert (caught.value.layer, caught.value.row) == (layer, 0)


def test_an_infinite_embedding_names_its_row() -> None:
    arrays = random_weights()
    arrays["model.embed_tokens.weight"][TEXT[4], 0] = np.inf
    with pytest.raises(NumericsError, match="layer 0") as caught:
        whole(open_tiny(arrays))
    assert (caught.value.layer, caught.value.row) == (0, TEXT.index(TEXT[4]))


def test_a_nan_in_the_head_is_an_error_at_every_exit() -> None:
    arrays = random_weights()
    backend = open_tiny(arrays)
    hidden = whole(backend)[:2]
    hidden[1, 0] = np.nan
    targets = np.zeros(2, np.int32)
    for exit_ in (
        lambda: backend.logits(hidden),
        lambda: backend.next_tokens(hidden, how(2)),
        lambda: backend.score(hidden, targets, 0),
        lambda: backend.compare(hidden, targets, 0, backend, hidden),
    ):
        with pytest.raises(NumericsError, match="the head") as caught:
            exit_()
        assert (caught.value.layer, caught.value.row) == (None, 1)


@pytest.mark.parametrize(
    ("device", "how_opened", "message"),
    [
        ("tpu", {}, 'device="tpu": unknown'),
        ("reference", {"dtype": "bfloat16"}, 'dtype="bfloat16"'),
        ("reference", {"isa": "avx2"}, 'isa="avx2"'),
    ],
)
def test_what_cannot_be_opened(device: str, how_opened: dict[str, Any], message: str) -> None:
    weights: Any = SimpleNamespace(config=ModelConfig.from_dict(CONFIG), tied=True)
    with pytest.raises(ParameterError, match=message):
        open_backend(device, weights, **how_opened)


def test_a_backend_reports_what_it_is() -> None:
    backend = open_tiny()
    arrays = random_weights()
    assert (backend.name, backend.dtype, backend.block_size) == ("reference", "float64", 64)
    assert backend.weight_bytes == 8 * sum(a.size for a in arrays.values())
    backend.close()
    with pytest.raises(KeyError):
        backend.logits(np.zeros((1, 24)))
