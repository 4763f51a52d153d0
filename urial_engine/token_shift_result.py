"""A token shift as its callers see it: measures go in; ratios, tables, files and pages come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .shift_data import CLASSES, Answer, Context, Published, ShiftData
from .token_shift_files import read_folder, to_table, write_folder

if TYPE_CHECKING:
    import pyarrow

__all__ = ["CLASSES", "Answer", "Context", "Published", "TokenShift"]


@dataclass(frozen=True, slots=True)
class TokenShift(ShiftData):
    """A row an answer token and context. `only(name)` has the rows of one context."""

    @classmethod
    def of(cls, data: ShiftData) -> TokenShift:
        """The same, with all that follows."""
        return cls(**{f.name: getattr(data, f.name) for f in fields(ShiftData)})

    def ratios(self, rows: NDArray[np.bool_] | slice = slice(None)) -> dict[str, float]:
        """Share of each class among the rows, of all contexts; empty when there are none."""
        chosen = self.shift_class[rows]
        return {name: float(np.mean(chosen == i)) for i, name in enumerate(CLASSES) if chosen.size}

    def summary(self, **options: Any) -> dict[str, Any]:
        """What it all comes to, ready for JSON: see `report.summary.summarize` and its options; and
        how varied the samples are where a query has several (`report.diversity`)."""
        from .report.diversity import diversity
        from .report.summary import summarize

        own = {name: options[name] for name in ("resamples", "seed") if name in options}
        return {**summarize(self, **options), "diversity": diversity(self.answers, **own)}

    def table(self) -> pyarrow.Table:
        """A row a token and context, as `pyarrow.Table` (extra `analysis`). Top-k columns are
        lists."""
        return to_table(self)

    def save(self, folder: str | Path) -> None:
        """Write answers.jsonl (a row an answer, with its contexts), tokens.parquet (a row a token
        and context), vocabulary.json and summary.json; each is whole or as it was."""
        write_folder(self, Path(folder), self.summary())

    @classmethod
    def load(cls, folder: str | Path) -> TokenShift:
        """Read back what `save`, or the command `shift`, has written."""
        return cls.of(read_folder(Path(folder)))

    def html(
        self,
        path: str | Path,
        *,
        title: str = "Token shift",
        about: Mapping[str, str] | None = None,
    ) -> None:
        """One self-contained page with every answer, the summary and its plots; opens offline."""
        from .report.page import write_page

        write_page(self, self.summary(), Path(path), title=title, about=about or {})

    def plots(self, folder: str | Path) -> list[Path]:
        """The summary's plots, as PNG and SVG (extra `analysis`)."""
        from .report.plots import write_plots

        return write_plots(self.summary(), Path(folder))
