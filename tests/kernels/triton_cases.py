"""What the tests of Triton kernels share: random shapes, dtypes and the device, and the naive
computation that a kernel must not be worse than.

Interpreted, or with `--gpu` on a GPU. The interpreter's product of two bf16 matrices is wrong, so
bf16 is only tested there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

F32 = NDArray[np.float32]
CASES, PER_TEST = 200, 20
INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.float16, torch.bfloat16)


@dataclass
class Case:
    """One random case: its numbers come from its own index alone."""

    index: int
    latest: ClassVar[Case | None] = None  # the one that a test is at, for `measured`

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng([7, self.index])
        Case.latest = self

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.index % 2]

    def size(self, *near: int, most: int) -> int:
        """Half of the time beside one of the sizes at which a kernel changes its way."""
        if near and self.rng.random() < 0.5:
            return max(int(self.rng.choice(near)) + int(self.rng.integers(-1, 2)), 1)
        return int(self.rng.integers(1, most + 1))

    def constant(self, *near: int, most: int, few: tuple[int, ...]) -> int:
        """A size that kernels are compiled for: any where they are interpreted; on a GPU, where
        every new one takes up to a second, one of `few`."""
        return self.size(*near, most=most) if INTERPRETED else int(self.rng.choice(few))

    def normal(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        """Of this dtype. Now and then a row repeats another, and one element is large."""
        x = self.rng.normal(size=shape, scale=scale)
        if len(shape) > 1 and shape[0] > 1 and self.rng.random() < 0.3:
            x[-1] = x[0]
        if x.size and self.rng.random() < 0.3:
            x.reshape(-1)[self.rng.integers(x.size)] *= 30
        return put(x).to(self.dtype)


# Their indices, in parts that are tests of their own: `for case in map(Case, part)`.
random_cases = pytest.mark.parametrize(
    "part",
    [range(first, first + PER_TEST) for first in range(0, CASES, PER_TEST)],
    ids=lambda part: f"{part.start}-{part.stop - 1}",
)


def put(x: NDArray[Any]) -> torch.Tensor:
    """A copy on the device."""
    return torch.tensor(x, device=DEVICE)


def wide(x: torch.Tensor) -> NDArray[np.float64]:
    return x.double().cpu().numpy()


def single(x: torch.Tensor) -> F32:
    return x.float().cpu().numpy()


def naive(operation: Callable[..., Any], dtype: torch.dtype, *inputs: Any) -> F32:
    """The reference in fp32, rounded to the dtype."""
    return single(torch.from_numpy(np.asarray(operation(*inputs))).to(dtype))


def rounding(dtype: torch.dtype) -> float:
    """Half a unit in the last place, as a share of the number; of fp32 what a few sums leave."""
    return {torch.float16: 2.0**-12, torch.bfloat16: 2.0**-9}.get(dtype, 2.0**-22)
