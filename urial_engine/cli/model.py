"""`inspect` and `import-gguf`: what a model folder holds, and how a GGUF becomes one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Model, console

if TYPE_CHECKING:
    from ..config import ModelConfig
    from ..tokenizer import Tokenizer
    from ..weights import Weights

File = Annotated[
    Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="The GGUF.")
]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="The folder, new or empty.")]
OnDisk = Annotated[str, typer.Option(help="What weights are rounded to: also float16, float32.")]


def import_gguf(file: File, out: Out, dtype: OnDisk = "bfloat16") -> None:
    """Turn a Llama-architecture GGUF into a model folder, tokenizer included."""
    from ..gguf_import import import_gguf as convert

    convert(file, out, dtype=dtype)
    console().print(f"{file.name} is now the model folder {out}", soft_wrap=True)


def inspect(model: Model) -> None:
    """What a model folder holds, and what it needs, without loading its weights."""
    from rich.table import Table

    from ..checkpoint import Checkpoint
    from ..tokenizer import Tokenizer
    from ..weights import Weights

    with Checkpoint.open(model) as checkpoint:
        weights = Weights.open(checkpoint)
        tokenizer = Tokenizer.load(checkpoint.folder)
    table = Table("", str(checkpoint.folder), show_header=True, box=None)
    facts = {**_model(weights.config), **_weights(weights), **_cache(weights)}
    for name, value in {**facts, **_tokenizer(tokenizer), **_machine()}.items():
        table.add_row(name, value)
    console().print(table)
    tokenizer.check_fits(weights.config.vocab_size)


def _model(c: ModelConfig) -> dict[str, str]:
    rope = f"{c.rope.kind}, theta {c.rope.theta:g}"
    return {
        "kind": c.model_type,
        "layers": str(c.num_layers),
        "hidden size": f"{c.hidden_size}, feed-forward {c.intermediate_size}",
        "heads": f"{c.num_heads} of size {c.head_dim}, {c.num_kv_heads} for keys and values",
        "vocabulary": f"{c.vocab_size:,}",
        "context": f"{c.max_positions:,}, window {c.sliding_window or 'none'}",
        "RoPE": rope if c.rope.kind == "default" else f"{rope}, factor {c.rope.factor:g}",
        "biases": f"attention {_yes(c.attention_bias)}, MLP {_yes(c.mlp_bias)}",
        "ends at": ", ".join(map(str, c.eos_token_ids)) or "no token",
        "ignored keys": ", ".join(c.ignored_keys) or "none",
    }


def _weights(weights: Weights) -> dict[str, str]:
    count = sum(math.prod(shape) for shape in weights.shapes.values())
    return {
        "parameters": f"{count:,}",
        "on disk": weights.dtype,
        "tied head": f"{_yes(weights.tied)}: {weights.tied_reason}",
    }


def _cache(weights: Weights) -> dict[str, str]:
    c, width = weights.config, 4 if weights.dtype == "float32" else 2
    per_token = 2 * c.num_layers * c.num_kv_heads * c.head_dim * width
    return {"KV-cache": f"{per_token * 1000 / 2**20:.1f} MiB per 1,000 tokens"}


def _tokenizer(tokenizer: Tokenizer) -> dict[str, str]:
    return {
        "tokenizer": f"{tokenizer.vocab_size:,} tokens",
        "BOS": f"{tokenizer.bos_token_id}, put before a text: {_yes(tokenizer.add_bos)}",
        "EOS": str(tokenizer.eos_token_id),
        "chat template": _yes(tokenizer.chat_template is not None),
    }


def _machine() -> dict[str, str]:
    from ..backends.cpu import available_isas

    best, *others = available_isas()
    return {"instruction set": f"{best} (also {', '.join(others) or 'none'})"}


def _yes(value: bool) -> str:
    return "yes" if value else "no"
