"""Tables of scoring: nothing goes in, lines of Markdown come out."""

from __future__ import annotations

from benchmarks.gpu_model.head import TORCH_LAUNCHES, Scoring, by_hand, padded_vocabulary
from benchmarks.gpu_model.machines import LAUNCH, MACHINES, Machine
from benchmarks.race_report import table

HIDDEN, TOP = 4096, 10  # of all three models
TENTH = 10  # times the memory
ROWS = (256, 2048, 8192)
COUNTS = (1, 256, 1024, 8192)
VOCABULARIES, SIZES = (32000, 128256), (2048, 4096, 8192)
MANY = COUNTS[-2:]  # rows, where scoring takes its time


def faster(machine: Machine, one: Scoring) -> float:
    """Than torch's matrix, so many times."""
    return one.torch_seconds(machine) / one.seconds(machine)


def leaner(one: Scoring) -> float:
    return one.torch_bytes() / one.workspace_bytes()


def even(machine: Machine, one: Scoring) -> float:
    """Seconds of a launch with which both take as long."""
    more = one.launches(machine) - TORCH_LAUNCHES
    return LAUNCH - (one.seconds(machine) - one.torch_seconds(machine)) / more


def rank() -> list[str]:
    """Our tiles beside torch's matrix, in time and memory."""
    rows = []
    for machine in MACHINES:
        for one in (Scoring(t, v, HIDDEN, TOP) for v in VOCABULARIES for t in ROWS):
            row = [machine.name, f"{one.vocab:,}", f"{one.rows:,}", str(one.launches(machine))]
            ours, theirs = one.seconds(machine), one.torch_seconds(machine)
            row += [f"{ours * 1e3:.2f}", f"{theirs * 1e3:.2f}", f"{faster(machine, one):.2f} ×"]
            row += [f"{one.workspace_bytes() / 1e6:.1f}", f"{one.logits / 1e6:,.0f}"]
            rows.append([*row, f"{one.torch_bytes() / 1e6:,.0f}", f"{leaner(one):.0f} ×"])
    head = ["", "V", "T", "launches", "ours, ms", "torch, ms", "", "ours, MB", "fp32 logits, MB"]
    return table([*head, "torch at its peak, MB", ""], rows)


def floor() -> list[str]:
    """Whether few rows keep what is promised of any: a line for each vocabulary."""
    lines = []
    for one in (Scoring(ROWS[0], vocab, HIDDEN, TOP) for vocab in VOCABULARIES):
        times = [(machine.name, faster(machine, one)) for machine in MACHINES]
        shown = ", ".join(f"{many:.2f} × on {name}" for name, many in times)
        slow = [
            f"{m.name} (unless a launch takes {even(m, one) * 1e6:.1f} µs or less)"
            for m in MACHINES
            if faster(m, one) < 1
        ]
        said = f"**missed on {' and '.join(slow)}**" if slow else "reached everywhere"
        memory = "enough" if leaner(one) >= TENTH else "**not enough**"
        lines.append(
            f"- T = {one.rows}, V = {one.vocab:,}: torch's speed is {said} ({shown}); a tenth "
            f"of its memory is {memory} (torch takes {leaner(one):.1f} times ours)."
        )
    return lines


def torch() -> list[str]:
    """What the materialised path moves."""
    one = Scoring(8192, VOCABULARIES[-1], HIDDEN, TOP)
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


def ratio(machine: Machine, one: Scoring) -> float:
    """One kernel's time over that of the tiles."""
    return one.fused_seconds(machine, by_hand(machine)) / one.seconds(machine)


def between(ratios: list[float]) -> str:
    return f"{min(ratios):.2f}–{max(ratios):.2f}"


def verdict() -> list[str]:
    """What one kernel takes of our time, over all the shapes above."""
    rows = []
    for machine in MACHINES:
        row = [machine.name]
        for count in COUNTS:
            each = [Scoring(count, v, c, TOP) for v in VOCABULARIES for c in SIZES]
            row.append(between([ratio(machine, one) for one in each]))
        rows.append([*row, f"{by_hand(machine):.0%}"])
    head = ["one kernel's time over the tiles'", *(f"T = {count:,}" for count in COUNTS)]
    return table([*head, "assumed share of cuBLAS's rate"], rows)


def models() -> list[str]:
    """The same for the models' own heads, where scoring takes its time."""
    lines = []
    for vocab, names in zip(VOCABULARIES, ("Llama 2 and Mistral", "Llama 3"), strict=True):
        each = [Scoring(count, vocab, HIDDEN, TOP) for count in MANY]
        shown = (
            f"{between([ratio(machine, one) for one in each])} on {machine.name}"
            for machine in MACHINES
        )
        lines.append(f"- {names} (V = {vocab:,}, C = {HIDDEN:,}): {', '.join(shown)}.")
    return lines


def widths() -> list[str]:
    """What a tile's width costs few rows, in time and in memory. The backend's own is bold."""
    rows = []
    for machine in MACHINES:
        for vocab in VOCABULARIES:
            choices = 1024, 2048, 4096, padded_vocabulary(vocab)
            for count in (128, 256, 512):
                own = Scoring(count, vocab, HIDDEN, TOP)
                each = [own._replace(width=width) for width in choices]
                shown = [f"{one.seconds(machine) * 1e3:.2f} / {leaner(one):.1f} ×" for one in each]
                place = choices.index(own.tile(count))
                shown[place] = f"**{shown[place]}**"
                other = own.fused_seconds(machine, by_hand(machine)), own.torch_seconds(machine)
                row = [machine.name, f"{vocab:,}", str(count), *shown]
                rows.append([*row, *(f"{seconds * 1e3:.2f}" for seconds in other)])
    head = ["", "V", "T", "1,024", "2,048", "4,096", "V", "one kernel, ms", "torch, ms"]
    return table(head, rows)


def lost() -> list[str]:
    """How much of the time of few rows goes between kernels."""
    lines = []
    for vocab in VOCABULARIES:
        one = Scoring(ROWS[0], vocab, HIDDEN, TOP)
        shares = ", ".join(
            f"{one.launches(m) * LAUNCH / one.seconds(m):.0%} on {m.name}" for m in MACHINES
        )
        count = one.launches(MACHINES[0])
        lines.append(
            f"- T = {one.rows}, V = {vocab:,}: {count} launches take {count * LAUNCH * 1e3:.2f} ms"
            f", {shares}."
        )
    return lines
