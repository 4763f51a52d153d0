"""The next token on the device: hidden states and how to choose go in; one token a row comes out.

The logits of up to 128 rows stand beside each other; csrc/cuda chooses from them in place, and then
says of the chosen token what it says of any. All of it is one recorded graph for so many rows, ids
that are changed (both rounded up) and likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .base import SampleBatch, Sampled
from .cuda_forward import FINITE, Rows
from .cuda_graph import MOST_ROWS, Kept, Recorder, rounded, rounded_rows, rounded_top
from .cuda_head import Head, check_finite
from .cuda_transfer import Results, pack, unpack

SCORES = ("rank", "ties", "logprob", "entropy", "top_ids", "top_logprobs", "finite")
LEAST_CHANGED = 64  # ids that are penalised or banned


@dataclass
class Recorded:
    """One graph, and the memory that it reads and writes."""

    how: SampleBatch  # as large as any that it is for
    inputs: torch.Tensor  # that, on the device
    rows: Rows
    results: Results
    replay: Callable[[], None]


class Chooser:
    """Chooses by one head."""

    def __init__(self, head: Head, recorder: Recorder) -> None:
        self._head, self._recorder = head, recorder
        self._recorded: Kept[tuple[int, ...], Recorded] = Kept()

    def next_tokens(self, rows: Rows, how: SampleBatch) -> Sampled:
        """[M, C] -> one token a row."""
        parts = []
        for first in range(0, len(rows), MOST_ROWS):
            part = rows[first : first + MOST_ROWS]
            parts.append(self._choose(part, rows_of(how, first, first + len(part)), first))
        return Sampled(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _choose(self, rows: Rows, how: SampleBatch, first: int) -> Sampled:
        m, changed = len(rows), (len(how.penalty_ids), len(how.banned_ids))
        sizes = [rounded(count, LEAST_CHANGED) if count else 0 for count in changed]
        top_k = rounded_top(how.top_logprobs, self._head.vocab)
        key = (rounded_rows(m), *sizes, top_k)
        one = self._recorded.find(key, lambda: self._record(rows, *key))
        packed, _ = pack(sample_arrays(filled_up(one.how, how)), pinned=one.inputs.is_cuda)
        one.inputs.copy_(packed, non_blocking=True)
        one.rows.values[:m].copy_(rows.values)
        one.rows.bad[:m].copy_(rows.bad)
        one.replay()
        found = {name: array[:m] for name, array in one.results.fetch().items()}
        for name in ("top_ids", "top_logprobs"):
            found[name] = found[name][:, : how.top_logprobs]
        check_finite(found["bad"], (found["finite"] != 0) & (found["possible"] != 0), first)
        return Sampled(*(found[name] for name in Sampled._fields))

    def _record(self, like: Rows, m: int, penalties: int, banned: int, top_k: int) -> Recorded:
        how = nothing_special(m, penalties, banned, top_k)
        place, hidden = like.values.device, like.values.shape[1]
        values = torch.zeros(m, hidden, dtype=like.values.dtype, device=place)
        rows = Rows(values, torch.full((m,), FINITE, dtype=torch.int32, device=place))
        i32, f32 = torch.int32, torch.float32
        kinds = {
            **dict.fromkeys(
                ("token_ids", "rank", "ties", "possible", "finite", "bad"), (i32, (m,))
            ),
            **dict.fromkeys(("logprob", "entropy"), (f32, (m,))),
            "top_ids": (i32, (m, top_k)),
            "top_logprobs": (f32, (m, top_k)),
        }
        results = Results(kinds, place)
        arrays = sample_arrays(how)
        packed, starts = pack(arrays, pinned=False)
        inputs = packed.to(place)
        given = unpack(inputs, arrays, starts)

        head = self._head

        def run() -> None:
            z = head.product(rows.values, head.weight)  # [M, V rounded up]
            results.on_device["bad"].copy_(rows.bad)
            _sample(head, z, given, results.on_device)
            _rate(head, z, results.on_device, top_k)

        return Recorded(how, inputs, rows, results, self._recorder.record(run))


def _sample(
    head: Head, z: torch.Tensor, given: Mapping[str, torch.Tensor], out: dict[str, torch.Tensor]
) -> None:
    changed = len(given["penalty_ids"]) + len(given["banned_ids"])
    scratch = torch.empty(changed, dtype=torch.float32, device=z.device)
    chosen = {"token_ids": out["token_ids"], "possible": out["possible"]}
    size = {"rows": len(z), "vocab": head.vocab, "stride": z.shape[1]}
    head.launch("sample", z=z, scratch=scratch, **given, **chosen, **size)


def _rate(head: Head, z: torch.Tensor, out: dict[str, torch.Tensor], top_k: int) -> None:
    """Log-probability, rank and likeliest tokens of the raw model."""
    m, ids = len(z), out["token_ids"]
    target = torch.empty(m, dtype=torch.float32, device=z.device)
    stats, entries = head.statistics(m), head.entries(m, top_k)
    where = {"rows": m, "stride": z.shape[1], "vocab": head.vocab}
    where |= {"columns": head.vocab, "first": 0}
    head.launch("take_logits", z=z, ids=ids, out=target, rows=m, stride=z.shape[1])
    head.launch("rank_tile", z=z, targets=ids, target_logit=target, stats=stats, **where)
    head.launch("top_k_tile", z=z, stats=stats, entries=entries, k=top_k, **where)
    ends = {"stats": stats, "target_logit": target, "entries": entries}
    scores = {name: out[name] for name in SCORES}
    head.launch("rank_finish", rows=m, vocab=head.vocab, k=top_k, **ends, **scores)


def nothing_special(m: int, penalties: int, banned: int, top_logprobs: int) -> SampleBatch:
    """Of M rows that take the largest logit, with room for so many ids that are changed."""
    offsets, off = np.zeros(m + 1, np.int32), np.zeros(m, np.float32)
    return SampleBatch(
        temperature=off,
        top_k=np.zeros(m, np.int32),
        top_p=np.ones(m, np.float32),
        min_p=off,
        repetition_penalty=np.ones(m, np.float32),
        presence_penalty=off,
        frequency_penalty=off,
        seed=np.zeros(m, np.uint64),
        sample=np.zeros(m, np.uint32),
        position=np.zeros(m, np.uint32),
        penalty_offsets=offsets,
        penalty_ids=np.zeros(penalties, np.int32),
        penalty_repeats=np.zeros(penalties, np.uint8),
        penalty_counts=np.zeros(penalties, np.int32),
        banned_offsets=offsets,
        banned_ids=np.zeros(banned, np.int32),
        top_logprobs=top_logprobs,
    )


def filled_up(larger: SampleBatch, how: SampleBatch) -> SampleBatch:
    """`how` in the corner of `larger`, whose other rows own no ids."""
    parts: dict[str, Any] = {"top_logprobs": how.top_logprobs}
    for name in (name for name in how._fields if name not in parts):
        given, array = getattr(how, name), getattr(larger, name).copy()
        array[: len(given)] = given
        if name.endswith("_offsets"):
            array[len(given) :] = given[-1]
        parts[name] = array
    return SampleBatch(**parts)


def rows_of(how: SampleBatch, first: int, end: int) -> SampleBatch:
    """What concerns the rows first .. end."""
    if first == 0 and end == len(how.seed):
        return how
    parts: dict[str, Any] = {"top_logprobs": how.top_logprobs}
    for kind in ("penalty", "banned"):
        offsets = getattr(how, f"{kind}_offsets")
        parts[f"{kind}_offsets"] = offsets[first : end + 1] - offsets[first]
        for name in (n for n in how._fields if n.startswith(f"{kind}_") and n not in parts):
            parts[name] = getattr(how, name)[offsets[first] : offsets[end]]
    for name in (n for n in how._fields if n not in parts):
        parts[name] = getattr(how, name)[first:end]
    return SampleBatch(**parts)


def sample_arrays(how: SampleBatch) -> dict[str, NDArray[Any]]:
    """By the names that the kernel gives them."""
    arrays = how._asdict()
    del arrays["top_logprobs"]
    short = {f"{name}_penalty": name for name in ("repetition", "presence", "frequency")}
    return {short.get(name, name): np.ascontiguousarray(a) for name, a in arrays.items()}
