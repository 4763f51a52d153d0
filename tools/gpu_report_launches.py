"""Which kernels a model launches: an architecture and a model's shape go in; every Triton kernel of
a step comes out, specialised as the runtime would specialise it, and nothing is run.

The wrappers themselves are called, on tensors that have no memory, while a recorder stands in for
the launch. So no signature is written a second time, and what is compiled is what will be launched.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from urial_engine.backends.cuda_forward import BLOCK_SIZE
from urial_engine.backends.cuda_weights import HEAD_TILE
from urial_engine.kernels.attention.tiles import split, tile
from urial_engine.kernels.attention.triton_kernel import Parts, Work, attention
from urial_engine.kernels.matmul.triton_kernel import matmul
from urial_engine.kernels.rmsnorm.triton_kernel import add_rmsnorm
from urial_engine.kernels.rope.triton_kernel import rope
from urial_engine.kernels.silu_mul.triton_kernel import silu_mul

META = torch.device("meta")
ARCHITECTURES = (80, 90, 100)


class Shape(NamedTuple):
    """Of a model, what decides which kernels it launches."""

    name: str
    C: int
    F: int
    H: int
    K: int
    D: int
    window: int = 0


SHAPES = (
    Shape("Llama-3-8B", 4096, 14336, 32, 8, 128),
    Shape("Llama-2-7B", 4096, 11008, 32, 32, 128),
    Shape("Mistral-7B", 4096, 14336, 32, 8, 128, 4096),
    Shape("TinyLlama-1.1B", 2048, 5632, 32, 4, 64),
    Shape("SmolLM2-135M", 576, 1536, 9, 3, 64),
    Shape("H2O-Danube-1.8B", 2560, 6912, 32, 8, 80, 4096),
    Shape("head size 80", 2560, 6912, 32, 32, 80),
    Shape("head size 96", 3072, 8192, 32, 32, 96),
    Shape("OpenLLaMA-3B", 3200, 8640, 32, 32, 100),
    Shape("head size 256", 3072, 24576, 16, 16, 256),
    Shape("head size 256 with a window", 3072, 24576, 16, 4, 256, 4096),
)


class Case(NamedTuple):
    """One architecture, model and way to run it."""

    architecture: int
    shape: Shape
    dtype: str
    invariant: bool


class Step(NamedTuple):
    """What of a step becomes a number that the compiler is told something about: that it is 1, or
    a multiple of 16."""

    rows: int
    layer: int
    blocks: int


class Launch(NamedTuple):
    """A kernel ready to be compiled."""

    source: ASTSource
    options: dict[str, Any]


class Pointer:
    """A tensor as a launch sees it. Its address says only how it is aligned: memory begins at
    multiples of 512 bytes."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.dtype = tensor.dtype
        self._address = int(tensor.storage_offset()) * tensor.element_size()

    def data_ptr(self) -> int:
        return self._address


# In fp16, one for each head size.
HALF = tuple({shape.D: shape for shape in reversed(SHAPES) if not shape.window}.values())


def cases() -> Iterator[Case]:
    """Everything that is compiled. An invariant attention is the kernel with the larger tile, and
    its split is read where there is a window; so not every shape is compiled that way too."""
    for architecture in ARCHITECTURES:
        for shape in SHAPES:
            yield Case(architecture, shape, "bfloat16", invariant=False)
            if shape == SHAPES[0] or shape.window:
                yield Case(architecture, shape, "bfloat16", invariant=True)
        for shape in HALF:
            yield Case(architecture, shape, "float16", invariant=False)
        yield Case(architecture, SHAPES[0], "float16", invariant=True)


def launches(case: Case) -> list[Launch]:
    """The distinct kernels of a case, in the order of their first launch."""
    steps = [Step(512, 0, 64)]
    if case.shape == SHAPES[0] and case.dtype == "bfloat16":
        steps.append(Step(33, 1, 33))  # the other specialisations
    found = [
        launch
        for step in steps
        for launch in record(case.architecture, functools.partial(run, case, step))
    ]
    return list({launch.source.hash() + str(launch.options): launch for launch in found}.values())


def record(architecture: int, call: Callable[[], object]) -> list[Launch]:
    """What `call` launches, specialised by the runtime's own rules."""
    backend = make_backend(GPUTarget("cuda", architecture, 32))
    found = []

    def launch(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        given = [Pointer(a) if isinstance(a, torch.Tensor) else a for a in args]
        options, signature, constants, attributes = kernel._pack_args(
            backend, kwargs, *bind(*given, **kwargs)
        )
        found.append(
            Launch(ASTSource(kernel, signature, constants, attributes), dict(vars(options)))
        )

    with mock.patch.object(JITFunction, "run", launch):
        call()
    return found


def run(case: Case, step: Step) -> None:
    """All kernels of a layer and of the head, through their wrappers."""
    shape, dtype = case.shape, getattr(torch, case.dtype)
    rows, width = step.rows, (shape.H + 2 * shape.K) * shape.D

    bad = empty(torch.int32, rows)
    _attend(case, step, bad, empty(dtype, rows, width))
    if case.dtype == "float16" and shape != SHAPES[0]:
        return  # the head size decides nothing in what follows
    x, delta = empty(torch.float32, rows, shape.C), empty(dtype, rows, shape.C)
    norm = empty(torch.float32, shape.C)
    add_rmsnorm(x, None, norm, 1e-5, bad, step.layer - 1, dtype)
    add_rmsnorm(x, delta, norm, 1e-5, bad, step.layer, dtype)
    silu_mul(empty(dtype, rows, 2 * shape.F))
    if case.invariant:
        matmul(delta, empty(dtype, shape.C, shape.C))
        matmul(delta, empty(dtype, width, shape.C), empty(dtype, width))
        matmul(delta, empty(dtype, HEAD_TILE, shape.C), out=empty(torch.float32, rows, HEAD_TILE))


def _attend(case: Case, step: Step, bad: torch.Tensor, qkv: torch.Tensor) -> None:
    shape, rows = case.shape, step.rows
    layers = empty(qkv.dtype, 2, 8, 2, shape.K, BLOCK_SIZE, shape.D)
    cache, positions = layers[:, step.layer], empty(torch.int32, rows)
    angles = empty(torch.float32, 8192, shape.D // 2)
    q = rope(qkv, (angles, angles), positions, positions, cache, bad, step.layer)
    items = empty(torch.int32, rows, 6)
    tables = empty(torch.int32, 2, step.blocks)
    slots = 2 * rows
    attention(
        q,
        cache,
        Work(items, empty(torch.int32, 1), positions, positions, tables),
        Parts(
            empty(torch.float32, slots, shape.H, shape.D), empty(torch.float32, slots, shape.H, 2)
        ),
        tile=tile(case.architecture, shape.D, q.element_size(), shape.H // shape.K),
        split=split(invariant=case.invariant),
        window=shape.window,
        programs=512,
    )


def empty(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=META)
