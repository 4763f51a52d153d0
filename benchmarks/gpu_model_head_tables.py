"""Tables of scoring: nothing goes in, lines of Markdown come out."""

from __future__ import annotations

from benchmarks.gpu_model_head import Scoring, by_hand, workspace_bytes
from benchmarks.gpu_model_machines import MACHINES, MODELS, Machine
from benchmarks.race_report import table

LARGE = MODELS["Llama-3-8B"]
TOP = 10
ROWS = (256, 2048, 8192)
COUNTS = (1, 256, 1024, 8192)
VOCABULARIES, SIZES = (32000, 128256), (2048, 4096, 8192)


def scoring(rows: int) -> Scoring:
    return Scoring(rows, LARGE.vocab_size, LARGE.hidden_size, TOP)


def rank() -> list[str]:
    """Our tiles beside torch's matrix, in time and memory."""
    rows = []
    for machine in MACHINES:
        for count in ROWS:
            one, own = scoring(count), workspace_bytes(LARGE, count, top_k=TOP)
            ours, theirs = one.seconds(machine), one.torch_seconds(machine)
            row = [machine.name, f"{count:,}", f"{ours * 1e3:.1f}", f"{theirs * 1e3:.1f}"]
            row += [f"{theirs / ours:.1f} ×", f"{own / 1e6:.0f}"]
            rows.append([*row, f"{one.logits / 1e6:,.0f}", f"{one.torch_bytes() / 1e6:,.0f}"])
    head = ["", "T", "ours, ms", "torch, ms", "", "our workspace, MB"]
    return table([*head, "fp32 logits, MB", "torch at its peak, MB"], rows)


def torch() -> list[str]:
    """What the materialised path moves."""
    one = scoring(8192)
    passes = one.torch_passes()
    rows = [[what, f"{read:.2f}", f"{written:.2f}"] for what, read, written in passes]
    read, written = sum(each[1] for each in passes), sum(each[2] for each in passes)
    total = f"{(read + written) * one.logits / 1e9:,.0f}"
    rows.append([f"all of them: {total} GB for T = 8,192", f"{read:.2f}", f"{written:.2f}"])
    return table(["torch", "reads, × the logits", "writes"], rows)


def fused() -> list[str]:
    """Milliseconds of our tiles and of one kernel, and the rate at which that would be as fast."""
    rows = [
        [machine.name, f"{vocab:,}", f"{size:,}", *(cell(machine, t, vocab, size) for t in COUNTS)]
        for machine in MACHINES
        for vocab in VOCABULARIES
        for size in SIZES
    ]
    return table(["", "V", "C", *(f"T = {count:,}" for count in COUNTS)], rows)


def cell(machine: Machine, count: int, vocab: int, size: int) -> str:
    one = Scoring(count, vocab, size, TOP)
    ours, other = one.seconds(machine), one.fused_seconds(machine, by_hand(machine))
    least = one.break_even(machine)
    at = "never" if least is None else f"{least:.0%}"
    shown = f"{ours * 1e3:.2f} / {other * 1e3:.2f} / {at}"
    return f"**{shown}**" if other < ours else shown


def verdict() -> list[str]:
    """What one kernel takes of our time, over all the shapes above."""
    rows = []
    for machine in MACHINES:
        row = [machine.name]
        for count in COUNTS:
            each = [Scoring(count, v, c, TOP) for v in VOCABULARIES for c in SIZES]
            other = [one.fused_seconds(machine, by_hand(machine)) for one in each]
            tiles = [t / one.seconds(machine) for t, one in zip(other, each, strict=True)]
            row.append(f"{min(tiles):.2f}–{max(tiles):.2f}")
        rows.append([*row, f"{by_hand(machine):.0%}"])
    head = ["one kernel's time over the tiles'", *(f"T = {count:,}" for count in COUNTS)]
    return table([*head, "assumed share of cuBLAS's rate"], rows)


def few() -> list[str]:
    """Where launches and not logits are what tiles cost."""
    rows = []
    for machine in MACHINES:
        for count in (1, 64, 128, 256):
            one = scoring(count)
            times = [one.seconds(machine), one.at_once_seconds(machine)]
            times.append(one.fused_seconds(machine, by_hand(machine)))
            row = [machine.name, str(count), str(one.launches(machine))]
            row += [f"{time * 1e3:.2f}" for time in times]
            rows.append([*row, f"{one.logits / 1e6:.0f}"])
    head = ["", "T", "launches of the tiles", "tiles, ms", "one product, ms", "one kernel, ms"]
    return table([*head, "logits of one product, MB"], rows)
