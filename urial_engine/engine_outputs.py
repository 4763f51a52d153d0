"""Finished requests, and what runs, go in; the records that callers see come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from .outputs import Logprobs, Metrics, RequestOutput, ScoreOutput
from .scheduler_batch import logprobs_at
from .scheduler_requests import Generation, Scored

if TYPE_CHECKING:
    from .backends.base import Backend
    from .config import ModelConfig
    from .engine_inputs import Prompt
    from .tokenizer import Tokenizer
    from .weights import Weights


def about(backend: Backend, weights: Weights, blocks: int) -> dict[str, object]:
    """What `Engine.info` says of the model and where it runs; `blocks` of cache were allocated."""
    return {
        "device": backend.name,
        "isa": backend.variant,
        "dtype": backend.dtype,
        "threads": backend.threads,
        "weights": weights.fingerprint,
        "weight_bytes": backend.weight_bytes,
        "tied": weights.tied,
        "tied_reason": weights.tied_reason,
        "ignored_config_keys": weights.config.ignored_keys,
        "kv_cache_blocks": blocks,
        "kv_cache_bytes": blocks * backend.block_bytes,
    }


def identity(
    info: Mapping[str, object], config: ModelConfig, tokenizer: Tokenizer
) -> dict[str, object]:
    """All of an engine that changes the bits of a result, beside its prefix."""
    own = {name: info[name] for name in ("weights", "device", "isa", "dtype", "context")}
    return {"config": asdict(config), "tokenizer": tokenizer.fingerprint, **own}


def request_outputs(
    requests: Sequence[Generation], prompts: Sequence[Prompt], tokenizer: Tokenizer
) -> list[RequestOutput]:
    """What a caller of `generate` gets: one output a prompt, in their order."""
    texts = [prompt if isinstance(prompt, str) else None for prompt in prompts]
    each = zip(requests, texts, strict=True)
    return [request_output(request, text, tokenizer) for request, text in each]


def request_output(request: Generation, prompt: str | None, tokenizer: Tokenizer) -> RequestOutput:
    """What a caller of `generate` gets for one prompt; `prompt` is its text where it was one."""
    outputs = [sample.output() for sample in request.samples]
    return RequestOutput(
        prompt=prompt,
        prompt_token_ids=request.ids,
        outputs=outputs,
        prompt_logprobs=prompt_logprobs_of(request, tokenizer),
        seed=request.samples[0].seed,
        metrics=Metrics(
            prompt_tokens=len(request.ids),
            cached_tokens=request.cached,
            generated_tokens=sum(len(output.token_ids) for output in outputs),
            started=request.started,
            first_token=request.first_token,
            finished=request.ended,
        ),
        finished=all(output.finish_reason != "abort" for output in outputs),
    )


def prompt_logprobs_of(request: Generation, tokenizer: Tokenizer) -> list[Logprobs | None] | None:
    """Aligned with the ids: None for the first, the engine's prefix, and what never ran."""
    k, scored = request.params.prompt_logprobs, request.scored
    if k is None:
        return None
    entries: list[Logprobs | None] = []
    if scored is not None and scored.parts:
        scores = scored.joined()
        rows = zip(range(len(scores.rank)), scored.targets, strict=False)  # aborted: fewer rows
        entries = [logprobs_at(scores, row, token, k, tokenizer) for row, token in rows]
    before = request.rows_from + 1 if scored is not None else len(request.ids)
    after = len(request.ids) - before - len(entries)
    return [*[None] * before, *entries, *[None] * after]


def score_output(scored: Scored) -> ScoreOutput:
    """What a caller of `score` gets: one value for each token that was judged."""
    return ScoreOutput(np.array(scored.targets, np.int32), *scored.joined())
