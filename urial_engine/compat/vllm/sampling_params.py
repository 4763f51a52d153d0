"""What vLLM's callers ask of a generation goes in; the engine's `SamplingParams` come out."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ... import sampling
from ...errors import ParameterError

LOG = logging.getLogger(__name__)
SMALLEST_TEMPERATURE = 0.01  # what vLLM takes for one between 0 and this
PENALTIES = ("presence", "frequency", "repetition")

# They would change results, and are not implemented: anything but nothing is refused.
REFUSED = (
    *("use_beam_search", "length_penalty", "early_stopping", "bad_words", "logit_bias"),
    *("allowed_token_ids", "logits_processors", "guided_decoding", "structured_outputs"),
    *("truncate_prompt_tokens", "prompt_logprob_token_ids", "prompt_logprob_start"),
    *("logprob_token_ids", "flat_logprobs", "thinking_token_budget", "repetition_detection"),
    "trace_decode_token_ids",
)
# They change no result here.
UNUSED = (
    *("spaces_between_special_tokens", "output_kind", "stream_interval", "skip_clone"),
    *("extra_args", "skip_reading_prefix_cache", "routed_experts_prompt_start"),
)


@dataclass(slots=True)
class SamplingParams:
    """vLLM's names, order and defaults; attributes may be set until it is used.

    Those of `urial_engine.SamplingParams` mean the same here, but for the defaults. `logprobs` and
    `prompt_logprobs`: -1 = the whole vocabulary. `seed`: -1 = none. `skip_special_tokens=False`
    cannot be had with stop strings. ParameterError (a ValueError) when used with what REFUSED
    names, or with values out of range.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | Iterable[str] | None = None
    stop_token_ids: Iterable[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    best_of: int | None = None
    use_beam_search: bool = False
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    bad_words: Iterable[str] | None = None
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Iterable[int] | None = None
    logits_processors: Iterable[object] | None = None
    guided_decoding: object = None
    structured_outputs: object = None
    truncate_prompt_tokens: int | None = None
    prompt_logprob_token_ids: Iterable[int] | None = None
    prompt_logprob_start: int | None = None
    logprob_token_ids: Iterable[int] | None = None
    flat_logprobs: bool = False
    thinking_token_budget: int | None = None
    repetition_detection: object = None
    trace_decode_token_ids: Iterable[int] | None = None
    spaces_between_special_tokens: bool = True
    output_kind: object = None
    stream_interval: int | None = None
    skip_clone: bool = False
    extra_args: Mapping[str, object] | None = None
    skip_reading_prefix_cache: bool | None = None
    routed_experts_prompt_start: int = 0

    def __post_init__(self) -> None:
        """As in vLLM every value is checked at birth too, and there are lists to append to."""
        self.stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        self.stop_token_ids = self.stop_token_ids or []
        self.engine_params(vocab_size=1, max_logprobs=-1)
        self.stop, self.stop_token_ids = list(self.stop), list(self.stop_token_ids)
        if 0 < self.temperature < SMALLEST_TEMPERATURE:
            LOG.warning("temperature=%s: %s is taken", self.temperature, SMALLEST_TEMPERATURE)
            self.temperature = SMALLEST_TEMPERATURE

    @classmethod
    def from_optional(cls, **asked: Any) -> SamplingParams:
        """As the constructor, and None is the default of what cannot be None."""
        plain = ("n", "temperature", "top_p", *(f"{p}_penalty" for p in PENALTIES))
        return cls(**{k: v for k, v in asked.items() if k not in plain or v is not None})

    def clone(self) -> SamplingParams:
        return copy.deepcopy(self)

    def engine_params(self, *, vocab_size: int, max_logprobs: int) -> sampling.SamplingParams:
        """The engine's own. `max_logprobs`: the most that may be asked for; -1 = no limit."""
        self._refuse()
        own = {field.name for field in fields(sampling.SamplingParams)}
        asked: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        asked = {name: value for name, value in asked.items() if name in own}
        for name in ("logprobs", "prompt_logprobs"):
            asked[name] = _top(name, asked[name], vocab_size, max_logprobs)
        if isinstance(self.seed, int) and self.seed < 0:  # torch takes its 64 bits as they are
            asked["seed"] = None if self.seed == -1 else self.seed % sampling.SEEDS
        asked["stop"] = self.stop or ()
        asked["stop_token_ids"] = self.stop_token_ids or ()
        return sampling.SamplingParams(**asked)

    def unused(self) -> list[str]:
        """What was asked for and has no meaning here, as `name=value`."""
        return [f"{name}={value!r}" for name, value in self._asked(UNUSED)]

    def _refuse(self) -> None:
        for name, value in self._asked(REFUSED):
            raise ParameterError(f"{name}={value!r}: not implemented here; leave it out")
        if self.best_of not in (None, self.n):
            raise ParameterError(f"best_of={self.best_of}: must be n={self.n}; ask for more with n")
        if self.stop and not (self.detokenize and self.skip_special_tokens):
            raise ParameterError(
                f"stop={self.stop!r}: stop strings are looked for in the text without special "
                "tokens; leave detokenize and skip_special_tokens at True, or use stop_token_ids"
            )

    def _asked(self, names: tuple[str, ...]) -> list[tuple[str, object]]:
        found = ((f.name, getattr(self, f.name), f.default) for f in fields(self))
        return [(n, value) for n, value, d in found if n in names and value not in (d, [], {})]


def _top(name: str, value: Any, vocab_size: int, most: int) -> Any:
    """How many of the likeliest tokens, which the engine checks further."""
    count = vocab_size if value == -1 else 1 if value is True else value
    if isinstance(count, int) and -1 < most < count:
        raise ParameterError(f"{name}={value}: more than LLM(max_logprobs={most}); -1 is no limit")
    return count
