"""The engine's outputs go in; the records that vLLM's callers read come out."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ... import outputs
from ...outputs import Logprob, Logprobs
from ...tokenizer import Tokenizer
from .sampling_params import SamplingParams

__all__ = ["CompletionOutput", "Logprob", "RequestMetrics", "RequestOutput", "request_output"]


@dataclass
class CompletionOutput:
    """One sample, as in `urial_engine.outputs`: `text` without the stop that ended it unless
    asked, `token_ids` with it. `cumulative_logprob` is always there."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[Logprobs] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    lora_request: None = None  # there are none, as there is no encoder

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass
class RequestMetrics:
    """Seconds since the epoch; None where it was not reached."""

    arrival_time: float
    first_scheduled_time: float | None
    first_token_time: float | None
    finished_time: float | None


@dataclass
class RequestOutput:
    """One prompt and its samples. `seed` is ours: with it each sample can be drawn again."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[Logprobs | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics
    num_cached_tokens: int
    seed: int
    encoder_prompt: None = None
    encoder_prompt_token_ids: None = None
    lora_request: None = None


def request_output(
    found: outputs.RequestOutput,
    params: SamplingParams,
    tokenizer: Tokenizer,
    *,
    request_id: str,
    prompt: str | None,
    arrival: float,
) -> RequestOutput:
    """`found` as vLLM has it. `arrival`: when it was asked, in seconds since the epoch."""
    m = found.metrics
    reached = (None if t is None else arrival + t for t in (m.started, m.first_token, m.finished))
    return RequestOutput(
        request_id=request_id,
        prompt=prompt,
        prompt_token_ids=found.prompt_token_ids,
        prompt_logprobs=found.prompt_logprobs,
        outputs=[_completion(sample, params, tokenizer) for sample in found.outputs],
        finished=found.finished,
        metrics=RequestMetrics(arrival, *reached),
        num_cached_tokens=m.cached_tokens,
        seed=found.seed,
    )


def _completion(
    sample: outputs.CompletionOutput, params: SamplingParams, tokenizer: Tokenizer
) -> CompletionOutput:
    same = {field.name: getattr(sample, field.name) for field in fields(outputs.CompletionOutput)}
    return CompletionOutput(**{**same, "text": _text(sample, params, tokenizer)})


def _text(sample: outputs.CompletionOutput, params: SamplingParams, tokenizer: Tokenizer) -> str:
    """With special tokens, or none at all, where that is asked for; then no string stopped it."""
    if not params.detokenize:
        return ""
    if params.skip_special_tokens:
        return sample.text
    hidden = sample.finish_reason == "stop" and not params.include_stop_str_in_output
    stream = tokenizer.stream(skip_special_tokens=False, continues=True)
    shown = sample.token_ids[: len(sample.token_ids) - hidden]
    return "".join(map(stream.push, shown)) + stream.finish()
