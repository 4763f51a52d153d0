"""The CUDA backend without a GPU: Triton's kernels interpreted, those of csrc/cuda emulated. With
`--gpu` the same tests open the GPU."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from tests.engines import Open
from tests.engines import open_engine as open_engine
from tests.kernels.emulated import GPU, module
from urial_engine.backends.cuda_device import INTERPRETED
from urial_engine.engine import Engine

DEVICE = "cuda" if GPU else INTERPRETED
# A GPU multiplies each of them by other instructions; where products are torch's on a CPU, one says
# all that can be said.
DTYPES = ("float32", "float16", "bfloat16") if GPU else ("float32",)
without_gpu = pytest.mark.skipif(GPU, reason="says what happens where there is no GPU")


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """DEVICE can be opened."""
    monkeypatch.setitem(sys.modules, "urial_engine._cuda_emulated", module())


@pytest.fixture
def open_cuda(emulated: None, open_engine: Open) -> Open:
    """Engine(...) on the tiny model and DEVICE, in fp32."""

    def make(**fields: Any) -> Engine:
        return open_engine(**{"device": DEVICE, "dtype": "float32", **fields})

    return make
