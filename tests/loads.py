"""What Triton's kernels load and store, counted while its interpreter runs them.

Enters: kernels that are launched inside `counted()`. Leaves: a `Launch` for each, with the bytes of
every lane that is not masked, by argument, and at which addresses they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from triton.runtime import interpreter


@dataclass
class Traffic:
    """Of one argument, in one direction."""

    requested: int = 0  # bytes
    size: int = 0  # of an element
    addresses: list[Any] = field(default_factory=list)

    def add(self, addresses: Any, size: int) -> None:
        self.requested += len(addresses) * size
        self.size = size
        self.addresses.append(addresses)

    @property
    def distinct(self) -> int:
        return self.size * len(np.unique(np.concatenate(self.addresses)))


@dataclass
class Launch:
    kernel: str
    tensors: dict[str, tuple[int, int]]  # by argument: the first byte and the one behind the last
    loads: dict[str, Traffic] = field(default_factory=dict)
    stores: dict[str, Traffic] = field(default_factory=dict)

    def argument(self, address: int) -> str:
        """Whose memory that is. One tensor under two names is the first of them."""
        return next(name for name, (first, end) in self.tensors.items() if first <= address < end)


def extent(tensor: Any) -> tuple[int, int]:
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in steps)
    first = tensor.data_ptr()
    return first, first + (last + 1) * tensor.element_size() if tensor.numel() else first


@contextmanager
def counted() -> Iterator[list[Launch]]:
    """Everything that is launched in here; the interpreter is as before afterwards."""
    launches: list[Launch] = []
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    run, load, store = executor.__call__, builder.create_masked_load, builder.create_masked_store

    def noted_run(self: Any, *args: Any, **kwargs: Any) -> Any:
        given: Mapping[str, Any] = dict(zip(self.arg_names, args, strict=False)) | kwargs
        tensors = {name: extent(a) for name, a in given.items() if hasattr(a, "data_ptr")}
        launches.append(Launch(self.fn.__name__, tensors))
        return run(self, *args, **kwargs)

    def note(pointers: Any, mask: Any, into: dict[str, Traffic]) -> None:
        addresses = pointers.data[mask.data.astype(bool)]
        if len(addresses):
            name = launches[-1].argument(int(addresses[0]))
            size = pointers.get_element_ty().primitive_bitwidth // 8
            into.setdefault(name, Traffic()).add(addresses, size)

    def noted_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        note(pointers, mask, launches[-1].loads)
        return load(self, pointers, mask, *rest)

    def noted_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        note(pointers, mask, launches[-1].stores)
        return store(self, pointers, value, mask, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor, "__call__", noted_run)
        patch.setattr(builder, "create_masked_load", noted_load)
        patch.setattr(builder, "create_masked_store", noted_store)
        yield launches


def totals(direction: Mapping[str, Traffic]) -> dict[str, tuple[int, int]]:
    """By argument: bytes asked for, and bytes at different places."""
    return {name: (t.requested, t.distinct) for name, t in direction.items() if t.requested}
