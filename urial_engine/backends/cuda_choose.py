"""The next token on the device: hidden states and how to choose go in; one token a row comes out.

The logits of up to 128 rows stand beside each other; csrc/cuda chooses from them in place, and then
says of the chosen token what it says of any.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .base import SampleBatch, Sampled
from .cuda_forward import Rows
from .cuda_head import MOST_ROWS, Head, check_finite
from .cuda_transfer import Results, upload

SCORES = ("rank", "ties", "logprob", "entropy", "top_ids", "top_logprobs", "finite")


def next_tokens(head: Head, rows: Rows, how: SampleBatch) -> Sampled:
    """[M, C] -> one token a row."""
    parts = []
    for first in range(0, len(rows), MOST_ROWS):
        part = rows[first : first + MOST_ROWS]
        parts.append(_choose(head, part, rows_of(how, first, first + len(part)), first))
    return Sampled(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _choose(head: Head, rows: Rows, how: SampleBatch, first: int) -> Sampled:
    m, k = len(rows), how.top_logprobs
    i32, f32 = torch.int32, torch.float32
    kinds = {
        **dict.fromkeys(("token_ids", "rank", "ties", "possible", "finite", "bad"), (i32, (m,))),
        **dict.fromkeys(("logprob", "entropy"), (f32, (m,))),
        "top_ids": (i32, (m, k)),
        "top_logprobs": (f32, (m, k)),
    }
    results = Results(kinds, head.device.torch)
    out = results.on_device
    out["bad"].copy_(rows.bad)
    z = head.product(rows.values, head.weight)  # [M, V rounded up]
    _sample(head, z, how, out)
    _rate(head, z, out, k)
    found = results.fetch()
    check_finite(found["bad"], (found["finite"] != 0) & (found["possible"] != 0), first)
    return Sampled(*(found[name] for name in Sampled._fields))


def _sample(head: Head, z: torch.Tensor, how: SampleBatch, out: dict[str, torch.Tensor]) -> None:
    given = upload(sample_arrays(how), z.device)
    scratch = torch.empty(len(how.penalty_ids) + len(how.banned_ids), device=z.device)
    chosen = {"token_ids": out["token_ids"], "possible": out["possible"]}
    size = {"rows": len(z), "vocab": head.vocab, "stride": z.shape[1]}
    head.launch("sample", z=z, scratch=scratch, **given, **chosen, **size)


def _rate(head: Head, z: torch.Tensor, out: dict[str, torch.Tensor], top_k: int) -> None:
    """Log-probability, rank and likeliest tokens of the raw model."""
    m, ids = len(z), out["token_ids"]
    target = torch.empty(m, device=z.device)
    stats, entries = head.statistics(m), head.entries(m, top_k)
    where = {"rows": m, "stride": z.shape[1], "vocab": head.vocab}
    where |= {"columns": head.vocab, "first": 0}
    head.launch("take_logits", z=z, ids=ids, out=target, rows=m, stride=z.shape[1])
    head.launch("rank_tile", z=z, targets=ids, target_logit=target, stats=stats, **where)
    head.launch("top_k_tile", z=z, stats=stats, entries=entries, k=top_k, **where)
    ends = {"stats": stats, "target_logit": target, "entries": entries}
    scores = {name: out[name] for name in SCORES}
    head.launch("rank_finish", rows=m, vocab=head.vocab, k=top_k, **ends, **scores)


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
