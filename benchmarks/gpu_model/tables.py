"""Tables of whole steps: nothing goes in, lines of Markdown come out."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.gpu_model.machines import LAUNCH, MACHINES, MEMORY, MODELS, Machine
from benchmarks.gpu_model.step import Step, decoding, on, reading, token_bytes, weight_bytes
from benchmarks.race_report import table
from urial_engine.config import ModelConfig

GB, MB = 1e9, 1e6
PREFIX, OWN = 1011, 200  # tokens: a published prefix under Llama 2's tokenizer, and what follows it
BATCHES = (1, 8, 32, 128)
H100 = next(machine for machine in MACHINES if machine.name == "H100 SXM")
LARGE = MODELS["Llama-3-8B"]


def machines() -> list[str]:
    rows = [
        [
            m.name,
            f"{m.capacity / GB:.0f} GB",
            f"{m.bandwidth / GB:,.0f} GB/s",
            f"{m.tensor / 1e12:.0f} TFLOP/s",
            f"{m.vector / 1e12:.1f} TFLOP/s",
            f"{m.l2 / MB:.0f} MB",
            f"{m.l2_bandwidth / 1e12:.1f} TB/s",
            m.source,
        ]
        for m in MACHINES
    ]
    head = ["", "memory", "bandwidth", "bf16, dense", "fp32", "L2", "L2, assumed", "source"]
    return table(head, rows)


def step(machine: Machine, model: ModelConfig, sequences: int, *, shared: bool) -> Step:
    return on(machine, model, decoding(sequences, PREFIX, OWN, shared=shared))


def kernels() -> list[str]:
    """One step in full."""
    made = step(H100, LARGE, 32, shared=True)
    rows = [
        [
            kernel.name.removesuffix("_kernel"),
            str(kernel.launches * times),
            f"{kernel.distinct * times / MB:,.1f}",
            f"{kernel.requested * times / MB:,.1f}",
            f"{kernel.operations * times / 1e9:,.0f}",
            f"{kernel.seconds(H100) * times * 1e3:.3f}",
            kernel.bound(H100),
        ]
        for kernel, times in made.kernels()
    ]
    head = ["kernel", "launches", "memory, MB", "through L2, MB", "GFLOP", "ms", "waits for"]
    return table(head, rows)


def steps() -> list[str]:
    """Milliseconds and tokens a second."""
    rows = [
        [machine.name, name, shown, *(timed(machine, model, b, shared=shared) for b in BATCHES)]
        for machine in MACHINES
        for name, model in MODELS.items()
        for shown, shared in (("shared", True), ("a copy each", False))
    ]
    return table(["", "model", "prefix", *(f"B = {b}" for b in BATCHES)], rows)


def alone() -> list[str]:
    """How much of the copy rate one sequence reaches, and what it loses to launches."""
    rows = []
    for machine in MACHINES:
        for name, model in MODELS.items():
            made = step(machine, model, 1, shared=True)
            seconds, moved = made.seconds(machine), sum(k.distinct * n for k, n in made.kernels())
            row = [machine.name, name, f"{moved / GB:.1f}", f"{seconds * 1e3:.1f}"]
            row.append(f"{moved / (machine.bandwidth * MEMORY) / seconds:.0%}")
            rows.append([*row, str(made.launches()), f"{made.launches() * LAUNCH * 1e3:.2f}"])
    head = ["", "model", "GB a step", "ms", "of the copy rate", "launches"]
    return table([*head, "they cost, ms"], rows)


def timed(machine: Machine, model: ModelConfig, sequences: int, *, shared: bool) -> str:
    made = step(machine, model, sequences, shared=shared)
    if made.bytes() > machine.capacity:
        return f"does not fit ({made.bytes() / GB:.0f} GB)"
    seconds = made.seconds(machine)
    return f"{seconds * 1e3:.1f} ms, {sequences / seconds:,.0f}/s"


def memory() -> list[str]:
    """Gigabytes."""
    rows = []
    for name, model in MODELS.items():
        row = [
            name,
            f"{weight_bytes(model, tied=False) / GB:.1f}",
            f"{token_bytes(model) / 1e3:.0f}",
        ]
        for sequences in BATCHES[1:]:
            made = [step(H100, model, sequences, shared=shared) for shared in (True, False)]
            row.append(" / ".join(f"{each.cache_bytes() / GB:.1f}" for each in made))
        row.append(f"{step(H100, model, 128, shared=True).workspace_bytes() / GB:.2f}")
        rows.append(row)
    head = ["model", "weights, GB", "a token, kB"]
    head += [f"cache B = {b}, GB" for b in BATCHES[1:]]
    return table([*head, "workspace, GB"], rows)


def sharing() -> list[str]:
    """How many times as long attention and a step take without it."""
    rows = []
    for name in ("Llama-2-7B", "Llama-3-8B"):
        for prefix in (128, 512, PREFIX, 4032):
            layer = token_bytes(MODELS[name]) * prefix / MODELS[name].num_layers / MB
            cells = [gains(MODELS[name], sequences, prefix) for sequences in (2, 8, 32, 128)]
            rows.append([name, f"{prefix:,}", f"{layer:.1f}", *cells])
    head = ["model", "prefix", "a layer's, MB", *(f"B = {b}" for b in (2, 8, 32, 128))]
    return table(head, rows)


def gains(model: ModelConfig, sequences: int, prefix: int) -> str:
    together, copies = (
        on(H100, model, decoding(sequences, prefix, OWN, shared=shared)) for shared in (True, False)
    )
    alone = replace(together, split_by=copies.batch.block_tables)
    least = attention_seconds(together)
    ratios = [attention_seconds(each) / least for each in (copies, alone)]
    ratios.append(copies.seconds(H100) / together.seconds(H100))
    return " / ".join(f"{ratio:.2f}" for ratio in ratios)


def attention_seconds(made: Step) -> float:
    """In one layer."""
    return sum(kernel.seconds(H100) for kernel in [*made.attention(), *made.idle()])


def invariant() -> list[str]:
    """What a product in one fixed order costs."""
    batches = {f"decoding, B = {b}": decoding(b, PREFIX, OWN, shared=True) for b in (1, 32, 128)}
    batches[f"reading {PREFIX:,} tokens"] = reading(PREFIX)
    rows = []
    for machine in MACHINES:
        for name, batch in batches.items():
            usual, fixed = (on(machine, LARGE, batch, invariant=each) for each in (False, True))
            times = [each.seconds(machine) * 1e3 for each in (usual, fixed)]
            products = [kernel for kernel in fixed.layer() if kernel.name == "matmul_kernel"]
            slowest = max(products, key=lambda kernel: kernel.seconds(machine))
            row = [machine.name, name, *(f"{time:.1f}" for time in times)]
            rows.append([*row, f"{times[1] / times[0]:.2f} ×", slowest.bound(machine)])
    head = ["", "Llama-3-8B", "cuBLAS, ms", "invariant, ms", "", "its products wait for"]
    return table(head, rows)
