"""The independent oracle: Hugging Face transformers, and our backends run on the same token ids.

Enters a model's configuration; leaves a checkpoint folder, the oracle's logits and ours.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from urial_engine.backends import Backend, Batch, open_backend
from urial_engine.checkpoint import Checkpoint
from urial_engine.config import ModelConfig
from urial_engine.weights import Weights

F64 = NDArray[np.float64]
ALL = 1 << 30  # a chunk that holds any text


def build(
    folder: Path,
    family: str = "llama",
    *,
    dtype: str = "float32",
    seed: int = 0,
    max_shard_size: str = "1GB",
    old_rope_spelling: bool = False,
    **config: Any,
) -> Path:
    """Write a random checkpoint with transformers. `config` is its own; `dtype` is that on disk."""
    kind = {"llama": "Llama", "mistral": "Mistral"}[family]
    settings = getattr(transformers, f"{kind}Config")(**config)
    model = getattr(transformers, f"{kind}ForCausalLM")(settings)
    _randomise(model, torch.Generator().manual_seed(seed))
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
    if old_rope_spelling:
        path = folder / "config.json"
        d = json.loads(path.read_text())
        rope = d.pop("rope_parameters")
        d["rope_theta"] = rope.pop("rope_theta")
        d["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
        path.write_text(json.dumps(d))
    return folder


@torch.no_grad()
def _randomise(model: Any, generator: torch.Generator) -> None:
    """Weights that let every term be seen: peaked attention, norms that are not 1, real biases."""
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.dim() == 1:
            p.copy_((1 if "norm" in name else 0) + 0.3 * noise)
        else:
            p.copy_(noise if "embed" in name else noise * 1.5 / p.shape[1] ** 0.5)


@torch.no_grad()
def oracle_logits(folder: Path, ids: Sequence[int], dtype: str = "float32") -> F64:
    """transformers' logits [T, V] of one text, computed in `dtype`."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    if dtype == "float64":
        _lift_to_double(model, ModelConfig.load(folder))
    out = model(torch.tensor([list(ids)]), use_cache=False).logits[0]  # from_pretrained: eval mode
    return np.asarray(out.double().numpy())


def _lift_to_double(model: Any, config: ModelConfig) -> None:
    """transformers fixes two things to fp32 whatever the model's dtype: the norm, and the angles.

    The norm gives way to torch's own. The angles become our tables, whose last bit is not theirs
    (the float32 power and cosine differ); the comparison in float32 uses transformers' own.
    """
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            weight, eps = module.weight, module.variance_epsilon
            norm = torch.nn.functional.rms_norm
            module.forward = lambda x, w=weight, e=eps, f=norm: f(x, w.shape, w, e)
    tables = config.rope.tables(config.head_dim, config.max_positions)
    cos, sin = (torch.from_numpy(np.hstack([t, t])).double() for t in tables)
    model.model.rotary_emb.forward = lambda x, position_ids: (cos[position_ids], sin[position_ids])


def open_ours(
    folder: Path,
    device: str,
    *,
    dtype: str = "auto",
    threads: int | None = None,
    isa: str = "auto",
) -> Backend:
    """Our backend on a checkpoint folder."""
    with Checkpoint.open(folder) as checkpoint:
        weights = Weights.open(checkpoint)
        return open_backend(device, weights, dtype=dtype, threads=threads, isa=isa)


def run_hidden(
    backend: Backend,
    texts: Sequence[Sequence[int]],
    *,
    chunks: Sequence[int] = (ALL,),
    shared_blocks: int = 0,
) -> list[NDArray[Any]]:
    """Hidden states [T, C] of every token of each text, all in one pool whose blocks lie scattered.

    Sequence i advances by chunks[i % len(chunks)] tokens a call, so one call may hold a prefill
    beside a decode. The first `shared_blocks` whole blocks, which must be equal in all texts, are
    computed once by the first sequence and read by all.
    """
    size = backend.block_size
    own = [-(-len(text) // size) - shared_blocks for text in texts]  # blocks of each sequence
    blocks = list(np.random.default_rng(0).permutation(shared_blocks + sum(own)))
    backend.allocate(len(blocks))
    common, blocks = blocks[:shared_blocks], blocks[shared_blocks:]
    tables = np.full((len(texts), shared_blocks + max(own)), -1, np.int32)  # [B, blocks]
    for row, count in enumerate(own):
        tables[row, : shared_blocks + count] = [*common, *blocks[:count]]
        blocks = blocks[count:]
    prefix = shared_blocks * size
    hidden: list[list[NDArray[Any]]] = [[] for _ in texts]
    first = [_call(backend, [texts[0]], tables, [0], [prefix])[0]] if prefix else []
    done = [prefix] * len(texts)
    while any(done[i] < len(text) for i, text in enumerate(texts)):
        ends = [min(done[i] + chunks[i % len(chunks)], len(t)) for i, t in enumerate(texts)]
        for i, rows in enumerate(_call(backend, texts, tables, done, ends)):
            hidden[i].append(rows)
        done = ends
    return [np.concatenate(first + rows) for rows in hidden]


def _call(
    backend: Backend,
    texts: Sequence[Sequence[int]],
    tables: NDArray[np.int32],
    starts: Sequence[int],
    ends: Sequence[int],
) -> list[NDArray[Any]]:
    """One forward of tokens starts[i] .. ends[i] of each text -> hidden states of each."""
    spans = [range(a, b) for a, b in zip(starts, ends, strict=True)]
    batch = Batch(
        token_ids=np.array([texts[i][p] for i, s in enumerate(spans) for p in s], np.int32),
        positions=np.array([p for s in spans for p in s], np.int32),
        sequences=np.array([i for i, s in enumerate(spans) for _ in s], np.int32),
        block_tables=tables,
    )
    return np.split(backend.forward(batch), np.cumsum([len(s) for s in spans])[:-1])


def run_logits(
    backend: Backend,
    texts: Sequence[Sequence[int]],
    *,
    chunks: Sequence[int] = (ALL,),
    shared_blocks: int = 0,
) -> list[F64]:
    """As `run_hidden`, through the head: logits [T, V], beyond fp32 where the backend has them."""
    head = getattr(backend, "raw_logits", backend.logits)
    hidden = run_hidden(backend, texts, chunks=chunks, shared_blocks=shared_blocks)
    return [np.asarray(head(rows), np.float64) for rows in hidden]


def error(ours: F64, truth: F64) -> float:
    """The largest difference, in units of the largest true logit."""
    return float(np.abs(ours - truth).max() / np.abs(truth).max())
