"""A run's folder goes in; its summary, its plots and its page come out, in the same folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import ParameterError
from .report.page import write_page
from .report.plots import write_plots
from .token_shift_files import SUMMARY, write_json
from .token_shift_kept import PAGE, PLOTS, RUN
from .token_shift_published import published_pair
from .token_shift_result import TokenShift

SIDE = ("model", "weights", "dtype", "device", "isa", "prompts")
NEEDED = {f"{side}_{name}" for side in ("base", "aligned") for name in SIDE}
NEEDED |= {"generated", "version"}


def write_report(folder: Path, **options: Any) -> dict[str, Any]:
    """summary.json, plots/ and page.html of a finished run; `options` are those of `summarize`.

    Returns the summary. `ParameterError` where the folder holds no finished run.
    """
    data, made = TokenShift.load(folder), read_header(folder)
    # The paper's own figures stand beside the run's where it is about one of their pairs.
    pair = published_pair(made["base_model"], made["aligned_model"])
    summary = data.summary(**options) | {"published_ratios": [pair] if pair else None}
    write_json(folder / SUMMARY, summary)
    write_plots(summary, folder / PLOTS)
    names = list(dict.fromkeys(made[f"{side}_model"] for side in ("aligned", "base")))
    write_page(data, summary, folder / PAGE, title=" against ".join(names), about=_about(made))
    return summary


def read_header(folder: Path) -> dict[str, Any]:
    """What run.json says of a run. `ParameterError` where it cannot be read."""
    try:
        made = dict(json.loads((folder / RUN).read_bytes()))
        if lacking := NEEDED - made.keys():
            raise ValueError(f"it lacks {', '.join(sorted(lacking))}")
        return made
    except (OSError, ValueError, TypeError) as error:
        raise ParameterError(f"{folder} is no run: its {RUN} cannot be read: {error}") from None


def _about(made: Mapping[str, Any]) -> dict[str, str]:
    """For the head of the page."""
    about = {}
    for side in ("base", "aligned"):
        about[f"{side} model"] = (
            f"{made[f'{side}_model']} (weights {made[f'{side}_weights']}, {made[f'{side}_dtype']}, "
            f"{made[f'{side}_device']} {made[f'{side}_isa']})"
        )
        about[f"{side} prompts"] = ", ".join(made[f"{side}_prompts"])
    how = {n.removeprefix("sampling_"): v for n, v in made.items() if n.startswith("sampling_")}
    shown = ("max_tokens", "temperature", "top_p", "repetition_penalty", "n", "seed")
    about["answers"] = (
        "generated: " + ", ".join(f"{n} {how[n]}" for n in shown if how.get(n) is not None)
        if made["generated"]
        else "given"
    )
    about["made by"] = f"urial-engine {made['version']}"
    return about
