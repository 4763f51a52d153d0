"""The head of the CUDA backend by itself, its kernels emulated: whole blocks of rows and tiles of
the vocabulary, targets whose logit a library computed in another way, and the memory it takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from tests.interpreted import DEVICE, DTYPES, emulated
from tests.kernels.rungs import F64, assert_no_worse
from tests.kernels.test_rank import assert_equal_scores, tied_weight
from urial_engine.backends import cuda_score
from urial_engine.backends.base import HeadScores
from urial_engine.backends.cuda_device import Device, open_device
from urial_engine.backends.cuda_forward import FINITE, Rows
from urial_engine.backends.cuda_graph import Recorder, rounded_rows
from urial_engine.backends.cuda_head import Head
from urial_engine.backends.cuda_score import Scorer
from urial_engine.backends.cuda_weights import HEAD_TILE
from urial_engine.errors import DeviceError, NumericsError
from urial_engine.kernels import matmul, rank

__all__ = ["emulated"]  # a fixture
M, C = 20, 12


@pytest.fixture
def device(emulated: None) -> Device:
    return open_device(DEVICE)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 8 rows that walk the vocabulary in tiles, where 20 rows would be one product."""
    monkeypatch.setattr(cuda_score, "ROWS", 8)
    monkeypatch.setattr(cuda_score, "MOST_ROWS", 2)


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Of the head and of hidden states; logits are fp32 in any case."""
    found: torch.dtype = getattr(torch, request.param)
    return found


def head_of(
    device: Device,
    vocab: int,
    size: int = C,
    dtype: torch.dtype = torch.float32,
    *,
    invariant: bool = False,
) -> Head:
    whole = np.zeros((-(-vocab // HEAD_TILE) * HEAD_TILE, size), np.float32)
    whole[:vocab] = tied_weight(vocab, size)
    weight = torch.from_numpy(whole).to(device.torch, dtype)
    return Head(weight, vocab, device, invariant=invariant)


def some_rows(
    device: Device, size: int = C, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Rows:
    values = np.random.default_rng(seed).normal(size=(M, size)).astype(np.float32)
    bad = torch.full((M,), FINITE, dtype=torch.int32)
    return Rows(torch.from_numpy(values).to(device.torch, dtype), bad.to(device.torch))


def scored_logits(head: Head, rows: Rows) -> F64:
    """[M, V] by products of the shapes that scoring makes: a library may give others other bits."""
    blocks, most = [], cuda_score.MOST_ROWS
    for block in rows.values.split(cuda_score.ROWS):
        m = len(block)
        x = block.new_zeros(rounded_rows(m) if m <= most else -(-m // most) * most, block.shape[1])
        x[:m] = block
        tiles = head.weight.split(cuda_score.tile_columns(len(x), len(head.weight)))
        blocks.append(torch.cat([head.product(x, tile)[:m] for tile in tiles], dim=1))
    return torch.cat(blocks)[:, : head.vocab].double().cpu().numpy()


def score(head: Head, rows: Rows, targets: Any, top_k: int) -> HeadScores:
    return Scorer(head, Recorder(head.device)).score(rows, targets, top_k)


def targets_of(vocab: int) -> Any:
    """Spread over all tiles, the first and the last token among them."""
    return np.linspace(0, vocab - 1, M).astype(np.int32)


@pytest.mark.parametrize("invariant", [False, True])
def test_logits_against_truth(device: Device, dtype: torch.dtype, invariant: bool) -> None:
    """Sums in fp32, whatever is multiplied."""
    head = head_of(device, 300, 200, dtype, invariant=invariant)
    rows = some_rows(device, 200, dtype)
    x, weight = (values.double().cpu().numpy() for values in (rows.values, head.weight[:300]))
    plain = matmul.reference(x.astype(np.float32), weight.astype(np.float32))
    truth, scale = matmul.reference(x, weight), matmul.reference(np.abs(x), np.abs(weight))
    assert_no_worse(head.logits(rows), plain, truth, scale, epsilon=2.0**-22)


@pytest.mark.parametrize("vocab", [1, 300, 2048, 2049, 5000])
@pytest.mark.parametrize("invariant", [False, True])
def test_blocks_of_rows_and_tiles(
    device: Device, small_blocks: None, dtype: torch.dtype, vocab: int, invariant: bool
) -> None:
    head = head_of(device, vocab, dtype=dtype, invariant=invariant)
    rows, targets = some_rows(device, dtype=dtype), targets_of(vocab)
    truth = rank.reference(scored_logits(head, rows), targets, min(vocab, 7))
    found = score(head, rows, targets, min(vocab, 7))
    assert_equal_scores(rank.Scores(*found), truth)


def test_few_rows_are_one_product(device: Device, dtype: torch.dtype) -> None:
    head, rows = head_of(device, 5000, dtype=dtype), some_rows(device, dtype=dtype)
    targets = targets_of(5000)
    truth = rank.reference(scored_logits(head, rows), targets, 3)
    assert_equal_scores(rank.Scores(*score(head, rows, targets, 3)), truth)


def test_two_heads_in_blocks(device: Device, small_blocks: None, dtype: torch.dtype) -> None:
    heads = head_of(device, 2500, dtype=dtype), head_of(device, 2500, 9, dtype)
    rows = some_rows(device, dtype=dtype), some_rows(device, 9, dtype, seed=1)
    targets = targets_of(2500)
    z = [scored_logits(h, r) for h, r in zip(heads, rows, strict=True)]
    found = cuda_score.compare(heads, rows, targets, 2)
    for ours, logits in zip(found[:2], z, strict=True):
        assert_equal_scores(rank.Scores(*ours), rank.reference(logits, targets, 2))
    aligned_base, base_aligned = rank.compare(*z)
    np.testing.assert_allclose(found.kl_aligned_base, aligned_base, atol=1e-5)
    np.testing.assert_allclose(found.kl_base_aligned, base_aligned, atol=1e-5)


class OtherBits(Head):
    """Its first `wrong` products are a little off, as those of a library for another shape."""

    wrong = 0

    def product(self, x: Any, weight: Any, out: Any = None) -> Any:
        z = super().product(x, weight, out=out)
        if self.wrong > 0:
            self.wrong -= 1
            z += 1e-3
        return z


def test_ranks_are_exact_whatever_the_first_product_said(
    device: Device, small_blocks: None, dtype: torch.dtype
) -> None:
    """Ties among them: a target that is a little off has none."""
    plain, rows = head_of(device, 3000, dtype=dtype), some_rows(device, dtype=dtype)
    targets = targets_of(3000)
    head = OtherBits(plain.weight, 3000, device, invariant=False)
    head.wrong = 1
    truth = score(plain, rows, targets, 3)
    assert truth.ties.any()
    for ours, theirs in zip(score(head, rows, targets, 3), truth, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert head.wrong == 0


def test_a_product_that_is_never_the_same_is_an_error(device: Device, small_blocks: None) -> None:
    class Restless(OtherBits):
        def product(self, x: Any, weight: Any, out: Any = None) -> Any:
            self.calls = getattr(self, "calls", 0) + 1
            z = Head.product(self, x, weight, out=out)
            z += 1e-3 * self.calls
            return z

    plain = head_of(device, 3000)
    head = Restless(plain.weight, 3000, device, invariant=False)
    with pytest.raises(DeviceError, match="invariant=True"):
        score(head, some_rows(device), targets_of(3000), 3)


@pytest.mark.parametrize("row", [0, 7, 8, 19])
def test_a_row_that_is_not_finite_is_named(device: Device, small_blocks: None, row: int) -> None:
    head, rows = head_of(device, 300), some_rows(device)
    rows.values[row, 3] = float("nan")
    with pytest.raises(NumericsError, match=f"in the head, row {row} ") as caught:
        score(head, rows, targets_of(300), 0)
    assert (caught.value.layer, caught.value.row) == (None, row)
    rows.bad[row] = 5
    with pytest.raises(NumericsError, match=f"after layer 5, row {row} ") as caught:
        score(head, rows, targets_of(300), 0)
    assert caught.value.layer == 5


def test_no_rows_at_all(device: Device) -> None:
    found = score(head_of(device, 300), some_rows(device)[:0], np.zeros(0, np.int32), 2)
    assert found.rank.shape == (0,) and found.top_ids.shape == (0, 2)


def test_the_workspace_of_a_long_text_and_a_large_vocabulary(device: Device) -> None:
    """8,192 positions and 128,256 tokens: logits in fp32 would take 4.2 GB."""
    vocab, top_k = 128256, 30
    rounded = -(-vocab // HEAD_TILE) * HEAD_TILE
    weight = torch.empty(rounded, 4096, dtype=torch.bfloat16, device="meta")
    head = Head(weight, vocab, device, invariant=False)
    took = cuda_score.workspace_bytes(head, 8192, top_k)
    assert took <= 128e6 and 4 * 8192 * vocab > 4.2e9
    print(f"\nworkspace: {took / 1e6:.1f} MB for one head, {2 * took / 1e6:.1f} MB for two")
    assert 2 * took <= 128e6


def test_the_accounting_is_what_is_allocated(
    device: Device, small_blocks: None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tensor of a block, and the rows of the head that its targets gather."""
    head, rows = head_of(device, 3000, dtype=dtype), some_rows(device, dtype=dtype)[:8]
    made: list[Any] = []
    for name in ("_side", "_space"):
        make = getattr(cuda_score, name)
        monkeypatch.setattr(cuda_score, name, partial(noted, make, made))
    score(head, rows, targets_of(3000)[:8], 4)
    side, space = made
    tensors = [*space, side.target_logit, side.seen, side.results._bytes]
    rows_and_gathered = 256 + space.z.shape[1]
    held = sum(tensor.nbytes for tensor in tensors) + rows_and_gathered * C * dtype.itemsize
    accounted = cuda_score.workspace_bytes(head, 8, 4)
    assert 0 <= held - accounted < 16 * 11, "but for the gaps between results"


def noted(make: Callable[..., Any], made: list[Any], *given: Any) -> Any:
    made.append(make(*given))
    return made[-1]
