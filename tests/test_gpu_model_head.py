"""The model of how fast the GPU backend scores: its sizes and graphs against the backend's own, and
what the page says of it in words.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.gpu_model import head, head_tables
from benchmarks.gpu_model.head import Scoring
from benchmarks.gpu_model.machines import MACHINES
from urial_engine.backends import cuda_graph, cuda_head, cuda_score

ROOT = Path(__file__).resolve().parents[1]
H100 = next(machine for machine in MACHINES if machine.name == "H100 SXM")


def test_sizes_are_those_of_the_backend() -> None:
    assert (head.ROWS, head.CHOSEN) == (cuda_score.ROWS, cuda_graph.MOST_ROWS)
    assert (head.FEW, head.TILE) == (cuda_score.FEW, cuda_score.TILE)
    source = (ROOT / "csrc" / "cuda" / "rank.h").read_text()
    assert f"kTile = {head.RANK_TILE};" in source


@pytest.mark.parametrize("vocab", [32000, 128256])
def test_the_workspace_is_as_large_as_the_backends(vocab: int) -> None:
    native = SimpleNamespace(
        TILE=head.RANK_TILE, STATS_BYTES=head.STATS_BYTES, ENTRY_BYTES=head.ENTRY_BYTES
    )
    meta = torch.device("meta")
    device: Any = SimpleNamespace(native=native, torch=meta)
    padded = head.padded_vocabulary(vocab)
    weight = torch.empty(padded, 4096, dtype=torch.bfloat16, device=meta)
    one = cuda_head.Head(weight, vocab, device, invariant=False)
    for rows in (1, 128, 129, 512, 513, 2048, 8192):
        own = cuda_score.workspace_bytes(one, rows, 10)
        assert Scoring(rows, vocab, 4096, 10).workspace_bytes() == own
    assert 2 * own <= 128e6  # of both heads that are compared, for 8,192 rows


@pytest.mark.parametrize("rows", [1, 3, 8, 9, 127, 128, 129, 256, 500, 513, 1999, 2049, 8192])
def test_graphs_are_those_of_the_backend(rows: int) -> None:
    """Their rows, as the scorer asks for them, and the width of their tiles."""
    asked: list[tuple[int, int]] = []

    class Asked(cuda_score.Scorer):
        def _record(self, m: int, top_k: int) -> cuda_score.Recorded:
            asked.append((m, top_k))
            raise LookupError

    device: Any = SimpleNamespace(torch=torch.device("cpu"))
    one = cuda_head.Head(torch.zeros(4096, 4), 4000, device, invariant=False)
    for m in {min(rows, cuda_score.ROWS), rows % cuda_score.ROWS} - {0}:
        with pytest.raises(LookupError):
            Asked(one, None).score(np.zeros((m, 4), np.float32), np.zeros(m, np.int32), 10)  # type: ignore[arg-type]
    scoring = Scoring(rows, 4000, 4, 10)
    assert sorted(asked) == sorted((m, scoring.graph_top_k) for m, _ in scoring.blocks())
    for m, _ in asked:
        assert scoring.tile(m) == cuda_score.tile_columns(m, len(one.weight))


# What the model says


def test_scoring_in_tiles_counts_what_the_matrix_would() -> None:
    scoring = Scoring(8192, 128256, 4096)
    products = [(k, n) for k, n in scoring.kernels(H100) if k.name == "product"]
    whole = 2 * 8192 * 4096 * -(-128256 // head.TILE) * head.TILE  # tiles of padding are left out
    gathered = 2 * 8192 * 4096 * head.TILE
    assert sum(kernel.operations * times for kernel, times in products) == whole + gathered
    assert scoring.logits == pytest.approx(4.2e9, rel=0.01)
    looked = sum(
        k.loads["z"].requested * n for k, n in scoring.kernels(H100) if k.name == "rank_tile"
    )
    assert looked == scoring.logits


def test_break_even_is_where_both_take_as_long() -> None:
    scoring = Scoring(8192, 128256, 4096)
    for machine in MACHINES:
        share, ours = scoring.break_even(machine), scoring.seconds(machine)
        if share is None:  # the L2 does not give it its tiles any faster
            assert scoring.fused_seconds(machine, 1e9) >= ours
        else:
            assert scoring.fused_seconds(machine, share) == pytest.approx(ours)
            assert scoring.fused_seconds(machine, 0.99 * share) > ours


def test_few_rows_are_one_product() -> None:
    products = [n for k, n in Scoring(100, 128256, 4096).kernels(H100) if k.name == "product"]
    assert products == [1]


def test_the_verdict_is_what_the_model_says() -> None:
    """What the page says in words."""
    for machine in MACHINES:
        for vocab in head_tables.VOCABULARIES:
            for size in (4096, 8192):
                for rows in head_tables.MANY:
                    assert head_tables.ratio(machine, Scoring(rows, vocab, size)) > 0.9
        assert head_tables.ratio(machine, Scoring(1024, 128256, 4096)) > 0.98
        assert head_tables.ratio(machine, Scoring(256, 128256, 4096)) < 0.9
        assert head_tables.ratio(machine, Scoring(1, 128256, 4096)) > 0.9
        share = Scoring(8192, 32000, 4096).break_even(machine)
        assert share is None or share > 0.8
    assert head_tables.ratio(H100, Scoring(8192, 32000, 4096)) > 1
