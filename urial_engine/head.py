"""Two heads and the hidden states that each model computed; what both say of the same tokens.

An engine has a head. So has a `Head`, which is all that is left of a model whose layers have done
their work: two models need not be in memory together.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from .backends import HeadComparison, choose_device, open_backend
from .backends.base import F32, I32, Backend
from .checkpoint import Checkpoint
from .weights import Weights
from .weights_head import HeadWeights


class HasHead(Protocol):
    backend: Backend

    def exclusive(self) -> AbstractContextManager[None]:
        """Nobody else uses the backend meanwhile."""


class Head:
    """The head of a model alone.

    rows: token ids whose rows it keeps, in this order (targets and top ids count these); None keeps
    all. The other parameters are those of `Engine`.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        rows: I32 | None = None,
        device: str = "auto",
        dtype: str = "auto",
        threads: int | None = None,
        isa: str = "auto",
        invariant: bool = False,
    ) -> None:
        with Checkpoint.open(model) as checkpoint:
            self.backend = open_backend(
                choose_device(device)[0],
                HeadWeights(Weights.open(checkpoint), rows),
                dtype=dtype,
                threads=threads,
                isa=isa,
                invariant=invariant,
            )
        self._lock = threading.Lock()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """See `HasHead`."""
        with self._lock:
            yield

    def close(self) -> None:
        """Free the weights and the threads."""
        self.backend.close()

    def __enter__(self) -> Head:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def compare_heads(
    base: HasHead, hidden: F32, targets: I32, top_k: int, aligned: HasHead, aligned_hidden: F32
) -> HeadComparison:
    """What both say of the same tokens, their divergences included; never [M, V].

    hidden, aligned_hidden: [M, C] of each, as `Engine.hidden_states` gives them; targets [M].
    """
    with ExitStack() as stack:
        # In one order everywhere, so that two callers never wait for each other.
        for owner in sorted({base, aligned}, key=id):
            stack.enter_context(owner.exclusive())
        return base.backend.compare(hidden, targets, top_k, aligned.backend, aligned_hidden)
