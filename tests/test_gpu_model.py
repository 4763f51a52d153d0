"""The model of the GPU's speed: its bytes against what the kernels really load and store, its sizes
against the backend's own, its limits against what no machine can do, and the page against both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.gpu_model import __main__ as page
from benchmarks.gpu_model.kernels import Kernel, Product
from benchmarks.gpu_model.machines import MACHINES, MEMORY, MODELS
from benchmarks.gpu_model.step import Step, decoding, on, reading, weight_bytes
from tests.in_memory import CONFIG
from tests.loads import counted, totals
from urial_engine.backends.base import Batch
from urial_engine.backends.cuda_device import Device
from urial_engine.backends.cuda_forward import Forward
from urial_engine.backends.cuda_transfer import upload
from urial_engine.backends.cuda_weights import DeviceWeights
from urial_engine.config import ModelConfig
from urial_engine.kernels.attention.plan import I32
from urial_engine.kernels.matmul.triton_kernel import matmul
from urial_engine.weights import parameter_shapes

ROOT = Path(__file__).resolve().parents[1]
DEVICE = Device(torch.device("cpu"), "interpreter", 80, 2, ModuleType("none"), interpreted=True)
H100 = next(machine for machine in MACHINES if machine.name == "H100 SXM")
LARGE = MODELS["Llama-3-8B"]

# Windows, groups of three, head sizes that fill no tile; biases; a group for each query head.
WINDOWED = ModelConfig.from_dict({**CONFIG, "num_hidden_layers": 2})
PLAIN = {**CONFIG, "model_type": "llama", "sliding_window": None, "num_hidden_layers": 2}
BIASED = ModelConfig.from_dict({**PLAIN, "attention_bias": True, "mlp_bias": True})
UNGROUPED = ModelConfig.from_dict(
    {**PLAIN, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 24}
)


def mixed() -> Batch:
    """A text of 30 tokens behind a block that it shares with two decoding sequences."""
    text = np.arange(110, 140, dtype=np.int32)
    positions = np.concatenate([text, [130, 170]]).astype(np.int32)
    sequences = np.array([0] * 30 + [1, 2], np.int32)
    tables = np.array([[5, 1, 2], [5, 3, 4], [5, 0, 6]], np.int32)
    return Batch(np.zeros(32, np.int32), positions, sequences, tables)


BATCHES = {
    "one": decoding(1, 0, 1, shared=False),
    "decoding": decoding(4, 150, 30, shared=False),
    "shared": decoding(9, 260, 30, shared=True),
    "prefill": reading(66),
    "mixed": mixed(),
}


def device_weights(config: ModelConfig, dtype: torch.dtype) -> DeviceWeights:
    """Random ones, loaded as a checkpoint's are."""
    shapes, rng = parameter_shapes(config, False), np.random.default_rng(3)

    def load(take: Any, threads: int) -> None:
        for name, shape in shapes.items():
            take(name, 0, rng.normal(size=shape, scale=0.1).astype(np.float32))

    weights: Any = SimpleNamespace(config=config, shapes=shapes, tied=False, load=load)
    made = DeviceWeights(weights, dtype, DEVICE.torch)
    made.load()
    return made


def forward(config: ModelConfig, batch: Batch, dtype: torch.dtype, *, invariant: bool) -> None:
    """One pass of the backend's own layers."""
    layers = Forward(config, device_weights(config, dtype), DEVICE, invariant=invariant)
    blocks = int(batch.block_tables.max()) + 1
    shape = (blocks, config.num_layers, 2, config.num_kv_heads, 64, config.head_dim)
    layers.pool = torch.zeros(shape, dtype=dtype)
    arrays, slots = layers.prepare(batch)
    rows = layers.run(upload(arrays, DEVICE.torch), layers.parts(slots))
    assert (rows.bad == np.iinfo(np.int32).max).all()  # else kernels would have written more


Bytes = tuple[str, dict[str, tuple[int, int]], dict[str, tuple[int, int]]]


def expected(kernels: list[Kernel]) -> Iterator[Bytes]:
    for kernel in kernels:
        loads, stores = (
            {name: tuple(moved) for name, moved in direction.items() if moved.requested}
            for direction in (kernel.loads, kernel.stores)
        )
        yield kernel.name, loads, stores  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "invariant"),
    [*((name, False) for name in BATCHES), ("shared", True), ("mixed", True)],
)
@pytest.mark.parametrize(
    ("config", "dtype"),
    [(WINDOWED, torch.float16), (BIASED, torch.float32), (UNGROUPED, torch.float16)],
    ids=["windowed", "biased", "ungrouped"],
)
def test_every_kernel_moves_the_bytes_of_the_model(
    config: ModelConfig, dtype: torch.dtype, name: str, invariant: bool
) -> None:
    """Exactly, argument by argument, in the backend's own order: what all lanes ask for, and how
    much of it is distinct. Lanes that are masked count on neither side; torch's own kernels, the
    products that a library does among them, are not interpreted and not compared."""
    batch = BATCHES[name]
    with counted() as launches:
        forward(config, batch, dtype, invariant=invariant)
    step = Step(config, batch, 80, DEVICE.processors, dtype.itemsize, invariant)
    kernels = [*step.layer(first=True), *step.layer(), step.outside()[1]]
    own = [kernel for kernel in kernels if kernel.name != "product"]
    found = [(each.kernel, totals(each.loads), totals(each.stores)) for each in launches]
    assert found == list(expected(own))


@pytest.mark.parametrize(("rows", "columns", "depth"), [(1, 64, 64), (65, 130, 97), (150, 1, 1)])
def test_the_product_of_the_head_moves_the_bytes_of_the_model(
    rows: int, columns: int, depth: int
) -> None:
    x, weight = torch.ones(rows, depth).half(), torch.ones(columns, depth).half()
    with counted() as launches:
        matmul(x, weight, out=torch.empty(rows, columns))
    (launch,) = launches
    model = Product(rows, columns, depth, 2, 4).in_fixed_order()
    found = launch.kernel, totals(launch.loads), totals(launch.stores)
    assert [found] == list(expected([model]))


def test_counting_leaves_the_interpreter_as_it_was() -> None:
    x = torch.ones(1, 1)
    with counted() as launches:
        matmul(x, x)
    matmul(x, x)
    assert len(launches) == 1


def test_a_window_is_read_and_no_more() -> None:
    """So that a plan without a window would not go unnoticed above."""
    batch = decoding(1, 0, 400, shared=False)
    wide = replace(WINDOWED, sliding_window=None)
    narrow, all_keys = (Step(c, batch, 80, 2).attention()[0] for c in (WINDOWED, wide))
    assert narrow.loads["cache"].requested < all_keys.loads["cache"].requested / 2


# The backend's own sizes


@pytest.mark.parametrize("config", [WINDOWED, BIASED, UNGROUPED])
def test_weights_are_as_large_as_the_backends(config: ModelConfig) -> None:
    made = device_weights(config, torch.float16).bytes
    assert weight_bytes(config, tied=False) == made


def test_published_sizes() -> None:
    """Parameters as the model cards give them, and what padding the head adds."""
    billions = {"Llama-2-7B": 6.74, "Mistral-7B-v0.1": 7.24, "Llama-3-8B": 8.03}
    for name, config in MODELS.items():
        count = sum(int(np.prod(s)) for s in parameter_shapes(config, False).values())
        assert count / 1e9 == pytest.approx(billions[name], abs=0.005)
        assert weight_bytes(config, tied=False) == pytest.approx(2 * count, rel=2e-3)


# What the model says


def test_a_step_is_never_faster_than_its_weights() -> None:
    for machine in MACHINES:
        for config in MODELS.values():
            embedding = config.vocab_size * config.hidden_size * 2
            read = weight_bytes(config, tied=False) - embedding
            seconds = on(machine, config, decoding(1, 1011, 200, shared=True)).seconds(machine)
            assert read / machine.bandwidth < MEMORY * seconds


def test_a_shared_prefix_is_read_once() -> None:
    """Of 15 whole blocks the plan's splits of two share 14; a copy each costs 32 times as much."""

    def cache(batch: Batch, split_by: I32 | None = None) -> tuple[int, int]:
        step = replace(on(H100, LARGE, batch), split_by=split_by)
        moved = [kernel.loads["cache"] for kernel in step.attention()[:-1]]
        return sum(m.requested for m in moved), sum(m.distinct for m in moved)

    shared, copies = (decoding(32, 1011, 200, shared=each) for each in (True, False))
    block = 2 * 8 * 64 * 128 * 2
    assert cache(copies) == (32 * 19 * block, 32 * 19 * block)
    together = cache(shared)
    assert together == ((2 * 14 + 32 * 5) * block, (15 + 32 * 4) * block)
    alone = cache(shared, split_by=copies.block_tables)
    assert alone == (32 * 19 * block, together[1])


# The page


def test_the_page_holds_what_the_model_says() -> None:
    text = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert page.filled(text) == text, "run python -m benchmarks.gpu_model --into docs/gpu.md"


def test_a_page_is_brought_up_to_date(tmp_path: Path) -> None:
    text, file = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8"), tmp_path / "gpu.md"
    file.write_text(text.replace("| memory |", "| magic |"), encoding="utf-8")
    assert file.read_text(encoding="utf-8") != text
    assert page.main(["--into", str(file)]) == 0
    assert file.read_text(encoding="utf-8") == text


def test_the_tables_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert page.main([]) == 0
    printed = capsys.readouterr().out
    assert all("\n".join(lines) in printed for lines in page.tables().values())


def test_a_page_without_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="no place for the table"):
        page.filled("# Empty\n")
