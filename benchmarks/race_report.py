"""What a race measured goes in, a page of Markdown comes out."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.race import Contender

FIGURES = ("prefill", "ttft_ms", "decode_1", "urial_32", "score")
QUIET = 0.05  # of the machine: what others may take before the page says so
SMALLER_IS_BETTER = {"ttft_ms", "peak_MB"}


def markdown(entered: Sequence[Contender], skipped: Sequence[str]) -> str:
    """The whole page. The first who entered is ours, and ran."""
    own = entered[0].runs[-1]
    lines = [f"# {own['model']['name']}, bfloat16, {own['engine']['threads']} threads", ""]
    lines += [introduction(entered[0]), ""]
    groups = list(dict.fromkeys(group for c in entered for group in c.groups))
    for group in groups:
        ran = [c for c in entered if group in c.groups and c.runs]
        lines += [f"## {group[0].upper()}{group[1:]}", "", *group_tables(ran)]
    lines += ["## What the machine could do", "", SHARES, ""]
    for contender in entered:
        lines += [*shares(contender), ""] if contender.own and contender.runs else []
    lines += [*table(["machine", ""], [[k, v] for k, v in own["machine"].items()]), ""]
    lines += [f"- not run: {reason}" for reason in skipped]
    lines += [f"- failed: {c.name}: {c.error}" for c in entered if c.error]
    lines += [f"- {remark}" for c in entered if c.runs for remark in remarks(c, own)]
    return "\n".join(lines).rstrip() + "\n"


def introduction(own: Contender) -> str:
    run = own.runs[-1]
    texts, counts = run["workload"], run["workload"]
    return (
        f"{run['model']['parameters'] / 1e6:,.0f} million parameters; {texts['texts']} texts: a "
        f"prefix of {texts['prefix_tokens']} tokens, {texts['queries']} queries, "
        f"{counts['new_batch']} tokens for each. Medians of {len(own.runs)} runs (least–most), "
        "engines in turn, each in its own process. Tokens a second; ttft in milliseconds. "
        "Tokenising the prompts is in every figure, compiling and the first touch of memory in "
        "none. Memory is the most that the process held, loading included, and beside it how many "
        f"times the weights ({run['memory']['weights_MB']:,.0f} MB) and the keys and values of "
        f"urial_32 ({run['memory']['kv_MB']:,.0f} MB) that is."
    )


def group_tables(ran: Sequence[Contender]) -> list[str]:
    """What each did, and for each of our entries how many times as fast it was."""
    own = [c for c in ran if c.own]
    lines = table(
        ["", *FIGURES, "memory, MB"],
        [[c.shown, *(cell(c.values(f)) for f in FIGURES), memory(c, own[:1])] for c in ran],
    )
    lines += [""]
    for mine in own:
        rows = [[c.shown, *(ratio(mine, c, f) for f in FIGURES)] for c in ran if not c.own]
        lines += [*table([f"{mine.shown} as fast as", *FIGURES], rows), ""] if rows else []
    return lines


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """In Markdown; nothing where there are no rows."""
    lines = [head, ["---"] * len(head), *rows] if rows else []
    return [f"| {' | '.join(line)} |" for line in lines]


def cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    return f"**{median(values):,.1f}** ({min(values):,.1f}–{max(values):,.1f})"


def memory(contender: Contender, own: Sequence[Contender]) -> str:
    peak = contender.middle("peak_MB")
    if peak is None or not own:
        return "–"
    least = own[0].runs[-1]["memory"]
    return f"{peak:,.0f} ({peak / (least['weights_MB'] + least['kv_MB']):.1f} ×)"


def ratio(own: Contender, other: Contender, figure: str) -> str:
    """How many times as fast we are."""
    mine, theirs = own.middle(figure), other.middle(figure)
    if mine is None or theirs is None:
        return "–"
    return f"{theirs / mine if figure in SMALLER_IS_BETTER else mine / theirs:.2f} ×"


SHARES = (
    "Measured by the same process, before and after its figures: reading as many bytes as the "
    "weights have, and multiplying in registers. What is counted is what the mathematics needs: "
    "each weight once a call, each block of the cache once however many sequences share it. The "
    "roofline is the time that the calls need at least, each for its bytes or for its operations, "
    "whichever takes longer."
)


def shares(own: Contender) -> list[str]:
    """Our figures against the machine's limits, each share that of its own run."""

    def middle(figure: str, key: str) -> float:
        return float(median(run["figures"][figure][key] for run in own.runs))

    def limit(key: str) -> float:
        return float(median(run["limits"][key] for run in own.runs))

    rows: list[list[Any]] = [
        [
            figure,
            f"{middle(figure, 'GBps'):.1f}",
            f"{middle(figure, 'of_read'):.0%}",
            f"{middle(figure, 'GFLOPs'):,.0f}",
            f"{middle(figure, 'of_arithmetic'):.1%}",
            f"{middle(figure, 'of_roofline'):.0%}",
            f"{middle(figure, 'in_backend'):.0%}",
        ]
        for figure in FIGURES
    ]
    read, arithmetic = f"{limit('read_GBps'):.1f}", f"{limit('GFLOPs'):,.0f}"
    head = [own.shown, f"GB/s of {read}", "share", f"GFLOP/s of {arithmetic}", "share"]
    return table([*head, "of the roofline", "time in native code"], rows)


def remarks(contender: Contender, own: dict[str, Any]) -> list[str]:
    """Where an engine was not alone on the machine, or had not the same tokens as we."""
    run, found = contender.runs[-1], []
    disturbed = max(run["disturbed"] for run in contender.runs)
    if disturbed > QUIET:
        found.append(f"other processes took up to {disturbed:.0%} of the machine meanwhile")
    if run["prefix_tokens"] != own["prefix_tokens"]:
        found.append(f"cuts the prefix into {run['prefix_tokens']} tokens")
    pairs = zip(run["tokens"], own["tokens"], strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(own["tokens"]))
    if same < len(own["tokens"]):
        found.append(f"its greedy answer leaves ours after {same} of {len(own['tokens'])} tokens")
    return [f"{contender.name}: {remark}" for remark in found]
