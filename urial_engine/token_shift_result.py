"""What a token shift found, a row a token: measures go in; ratios, tables and files come out.

Shift classes (arXiv 2312.01552): unshifted where the base model would have chosen the same token,
marginal at ranks 2 and 3, shifted above.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import ParameterError
from .jsonl import Row, read_rows
from .token_shift_rows import ANSWERS, read_columns, write_rows, write_tables

if TYPE_CHECKING:
    import pyarrow

CLASSES = ("unshifted", "marginal", "shifted")


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer with everything that was fed to the two models. Ids are the ground truth, texts
    are for people."""

    query: str
    text: str
    token_ids: list[int]
    base_context_ids: list[int]
    aligned_context_ids: list[int]
    finish_reason: str | None  # None for an answer that was given, not generated
    id: str | int | None = None  # of the row that it comes from


@dataclass(frozen=True, slots=True)
class TokenShift:
    """A row an answer token, all answers in a row. `answer` and `position` (from 0) say where a
    row stands."""

    answers: list[Answer]
    answer: NDArray[np.int32]  # [N]
    position: NDArray[np.int32]  # [N]
    token_id: NDArray[np.int32]  # [N]
    token: list[str]  # [N]
    base_rank: NDArray[np.int32]  # [N] 1 = the base model's first choice
    base_ties: NDArray[np.int32]  # [N]
    base_logprob: NDArray[np.float32]  # [N] nats
    aligned_logprob: NDArray[np.float32]  # [N]
    kl_aligned_base: NDArray[np.float32]  # [N] KL(aligned || base) over the whole vocabulary
    kl_base_aligned: NDArray[np.float32]  # [N]
    base_entropy: NDArray[np.float32]  # [N]
    aligned_entropy: NDArray[np.float32]  # [N]
    base_top_ids: NDArray[np.int32]  # [N, k]
    base_top_logprobs: NDArray[np.float32]  # [N, k]

    @property
    def shift_class(self) -> NDArray[np.int8]:
        """[N] index into CLASSES: rank 1 unshifted, 2 and 3 marginal, above shifted."""
        return np.digitize(self.base_rank, (2, 4)).astype(np.int8)

    def ratios(self, rows: NDArray[np.bool_] | slice = slice(None)) -> dict[str, float]:
        """Share of each class among the rows; empty when there are none."""
        chosen = self.shift_class[rows]
        return (
            {name: float(np.mean(chosen == i)) for i, name in enumerate(CLASSES)}
            if chosen.size
            else {}
        )

    def summary(self, *, window: int = 16, most: int = 20) -> dict[str, Any]:
        """Class ratios overall and by `window` positions, mean KL, and the most shifted tokens
        with their counts."""
        shifted = self.shift_class == 2
        ids, counts = np.unique(self.token_id[shifted], return_counts=True)
        text = dict(zip(self.token_id.tolist(), self.token, strict=True))
        order = np.lexsort((ids, -counts))[:most]
        starts = range(0, int(self.position.max(initial=-1)) + 1, window)
        return {
            "answers": len(self.answers),
            "tokens": int(self.token_id.size),
            "overall": self.ratios(),
            "mean_kl_aligned_base": float(self.kl_aligned_base.mean())
            if self.token_id.size
            else 0.0,
            "by_position": [
                {"from": s, "to": s + window, **self._window(s, s + window)} for s in starts
            ],
            "most_shifted": [
                {"token": text[int(ids[i])], "token_id": int(ids[i]), "count": int(counts[i])}
                for i in order
            ],
        }

    def _window(self, begin: int, end: int) -> dict[str, Any]:
        rows = (self.position >= begin) & (self.position < end)
        kl = float(self.kl_aligned_base[rows].mean()) if rows.any() else 0.0
        return {"tokens": int(rows.sum()), "mean_kl_aligned_base": kl, **self.ratios(rows)}

    def table(self) -> pyarrow.Table:
        """A row a token, as `pyarrow.Table` (extra `analysis`). Top-k columns are lists."""
        try:
            import pyarrow as pa
        except ImportError as e:
            raise ParameterError(
                "a table needs pyarrow: pip install 'urial-engine[analysis]'"
            ) from e
        columns: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name != "answers":
                columns[f.name] = (
                    list(value) if isinstance(value, np.ndarray) and value.ndim == 2 else value
                )
        names = np.array(CLASSES, dtype=object)[self.shift_class]
        return pa.table({**columns, "shift_class": names.astype(str)})

    def rows(self) -> Iterator[dict[str, Any]]:
        """For JSON, a row an answer with all of it: its `id` (its number, from 1, where it has
        none), its other fields, and each measure as a list with an entry for each of its tokens.

        A float32 becomes the double of the same value, which JSON writes and reads exactly.
        """
        end = 0
        for number, answer in enumerate(self.answers, start=1):
            start, end = end, end + len(answer.token_ids)
            told = {f.name: getattr(answer, f.name) for f in fields(answer) if f.name != "id"}
            own = {name: getattr(self, name)[start:end] for name in COLUMNS}
            own = {n: v.tolist() if isinstance(v, np.ndarray) else v for n, v in own.items()}
            yield {"id": number if answer.id is None else answer.id, **told, **own}

    @classmethod
    def of_rows(cls, rows: Sequence[Row]) -> TokenShift:
        """The inverse of `rows`. ParameterError names the row that is not one of them."""
        told, measures = read_columns(rows, COLUMNS)
        answers = [Answer(**fields) for fields in told]
        lengths = [len(a.token_ids) for a in answers]
        return cls(
            answers=answers,
            answer=np.repeat(np.arange(len(answers), dtype=np.int32), lengths),
            position=np.array([p for n in lengths for p in range(n)], np.int32),
            token_id=np.array([i for a in answers for i in a.token_ids], np.int32),
            **measures,
        )

    def save(self, folder: str | Path) -> None:
        """Write tokens.parquet (a row a token), answers.jsonl (a row an answer, with its contexts
        and its measures), summary.json; each is whole or not there."""
        write_tables(Path(folder), self.table(), self.summary())
        write_rows(Path(folder), self.rows())

    @classmethod
    def load(cls, folder: str | Path) -> TokenShift:
        """Read back what `save`, or the command `shift`, has written, from answers.jsonl alone."""
        return cls.of_rows(read_rows(Path(folder) / ANSWERS))


DERIVED = {"answers", "answer", "position", "token_id"}  # follow from the answers' token_ids
COLUMNS = [f.name for f in fields(TokenShift) if f.name not in DERIVED]
