"""What a caller asks of a generation: enters keywords or a mapping, leaves `SamplingParams`.

Nothing is chosen here: a backend's head chooses, in the order that `kernels.sample` fixes.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from .errors import ParameterError

SCOPES = ("all", "no_prefix", "output")
SMALLEST_TEMPERATURE = 1e-4  # below, logits divided by it could leave the range of fp32
SEEDS = 1 << 64

# name: smallest, largest (None: no bound), both included but where `_check_together` says more.
_FLOATS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-100.0, 100.0),
    "frequency_penalty": (-100.0, 100.0),
}
_INTEGERS: dict[str, tuple[int, int | None]] = {
    "n": (1, 1 << 16),
    "top_k": (-1, (1 << 31) - 1),
    "max_tokens": (1, None),
    "min_tokens": (0, None),
    "seed": (0, SEEDS - 1),
    "logprobs": (0, None),
    "prompt_logprobs": (0, None),
}
_OPTIONAL = ("max_tokens", "seed", "logprobs", "prompt_logprobs")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to generate. Names and meanings follow vLLM; the default is greedy.

    ParameterError where a value cannot be honoured.

    n: samples of one prompt, which share its cache. More than one needs a temperature.
    temperature: 0 = greedy: the largest logit, the smallest id among equals.
    top_k, top_p, min_p: keep the k likeliest (0 or -1 = all), then the smallest set of mass top_p,
        then those with at least min_p times the largest probability.
    repetition_penalty: divides the positive and multiplies the negative logits of tokens seen in
        repetition_penalty_scope: "all" (the prompt with the engine's prefix, and the output),
        "no_prefix" (the prompt after the engine's prefix, and the output) or "output".
    presence_penalty, frequency_penalty: subtracted from the logit of each token of the output,
        once, and once for each time it stands there.
    max_tokens: None = up to the end of the context.
    min_tokens: before so many tokens EOS and stop_token_ids are banned, and stop strings are not
        looked for.
    stop: strings that end the text, which is cut exactly before the one that completes first.
    stop_token_ids: tokens that end it, as EOS does.
    include_stop_str_in_output: leave the stop string, or the stop token's text, in the text.
    ignore_eos: do not end at EOS.
    seed: 0 <= seed < 2^64; None = a fresh one for each request, reported in its output.
    logprobs: None = off; k = of each token and of the k likeliest at its place. They are the
        model's own: before penalties and temperature, in nats.
    prompt_logprobs: the same for the prompt's tokens after the engine's prefix.
    """

    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_penalty_scope: str = "all"
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: str | Iterable[str] = ()
    stop_token_ids: Iterable[int] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        for name in _FLOATS:
            self._set(name, _real(name, getattr(self, name)))
        for name, bounds in _INTEGERS.items():
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                self._set(name, _integer(name, value, *bounds))
        for name in ("include_stop_str_in_output", "ignore_eos"):
            if not isinstance(getattr(self, name), bool):
                raise ParameterError(f"{name}={getattr(self, name)!r}: must be True or False")
        self._set("top_k", max(self.top_k, 0))
        self._set("stop", _stop_strings(self.stop))
        ids = _items("stop_token_ids", self.stop_token_ids)
        self._set("stop_token_ids", tuple(_integer("stop_token_ids", t, 0, None) for t in ids))
        self._check_together()

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> SamplingParams:
        """From a row of JSON or a command line. ParameterError names an unknown field."""
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(fields) - set(known)):
            names = ", ".join(map(repr, unknown))
            raise ParameterError(
                f"unknown sampling parameter: {names}; there are {', '.join(known)}"
            )
        return cls(**fields)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop`, with the one type that it has after checking."""
        return tuple(self.stop)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # frozen for all but the normalisation at birth

    def _check_together(self) -> None:
        """What no single field's range says."""
        if 0 < self.temperature < SMALLEST_TEMPERATURE:
            raise ParameterError(
                f"temperature={self.temperature}: below {SMALLEST_TEMPERATURE} logits could "
                "overflow; use 0 for greedy"
            )
        if self.top_p == 0:
            raise ParameterError(
                "top_p=0.0: keeps no token; use temperature=0 for greedy, 1 for all tokens"
            )
        if self.repetition_penalty_scope not in SCOPES:
            scope = self.repetition_penalty_scope
            raise ParameterError(f"repetition_penalty_scope={scope!r}: must be one of {SCOPES}")
        if self.n > 1 and self.temperature == 0:
            raise ParameterError(f"n={self.n}: greedy samples are all equal; set temperature > 0")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ParameterError(
                f"min_tokens={self.min_tokens} is more than max_tokens={self.max_tokens}"
            )


def _real(name: str, value: Any) -> float:
    low, high = _FLOATS[name]
    wrong = isinstance(value, bool) or not isinstance(value, Real)
    number = math.nan if wrong else float(value)
    if not math.isfinite(number):
        raise ParameterError(f"{name}={value!r}: must be a finite number")
    if not low <= number <= high:
        raise ParameterError(f"{name}={value!r}: must be between {low} and {high}")
    return number


def fresh_seed() -> int:
    """Nobody can tell which. (The module `secrets` takes longer to import than this to ask.)"""
    return int.from_bytes(os.urandom(8), "little") % SEEDS


def _integer(name: str, value: Any, low: int, high: int | None) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ParameterError(f"{name}={value!r}: must be a whole number")
    number = int(value)
    if number < low or (high is not None and number > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ParameterError(f"{name}={number}: must be {bounds}")
    return number


def _stop_strings(stop: Any) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else _items("stop", stop)
    for string in strings:
        if not isinstance(string, str) or not string:
            raise ParameterError(f"stop={string!r}: a stop string is text, and not empty")
    return strings


def _items(name: str, value: Any) -> tuple[Any, ...]:
    if value is not None and not isinstance(value, Iterable):
        raise ParameterError(f"{name}={value!r}: must be a list")
    return tuple(value or ())


# How `answer` asks. With a long prefix, a penalty on the whole prompt punishes every common word.
FOR_PEOPLE = SamplingParams(
    max_tokens=512, repetition_penalty=1.1, repetition_penalty_scope="output"
)
