"""What the harness hands over by name: model_args and generation arguments go in; checked values
come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs

from ...errors import ParameterError
from ...prompt import UrialPrompt
from ...sampling import SamplingParams
from ...tokenizer import Tokenizer

MAX_GEN_TOKS = 256  # where a task does not say: that of the harness's `hf`
# What model_args may hold, and of which type.
KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("pretrained", "prompt", "prefix_dir", "device", "dtype", "isa"), (str,)),
    **dict.fromkeys(("max_length", "max_batch", "threads"), (int,)),
    **dict.fromkeys(("add_bos_token", "invariant"), (bool,)),
    "kv_cache_gib": (int, float),
}


def check_model_args(given: Mapping[str, object]) -> None:
    """ParameterError for a name that is not known, and for a value of another type."""
    if unknown := sorted(given.keys() - KINDS):
        raise ParameterError(
            f"model_args has no {', '.join(unknown)}; there are {', '.join(KINDS)}"
        )
    for name, value in given.items():
        # A bool is an int only to Python.
        if value is not None and type(value) not in KINDS[name]:
            kinds = " or ".join(kind.__name__ for kind in KINDS[name])
            raise ParameterError(f"model_args has {name}={value!r}: must be of type {kinds}")


def load_prompt(prompt: str) -> UrialPrompt:
    """`default`, or a file."""
    return UrialPrompt.default() if prompt == "default" else UrialPrompt.load(prompt)


def sampling_params(
    fields: Mapping[str, Any], tokenizer: Tokenizer, *, stop: Sequence[str], seed: int
) -> SamplingParams:
    """From the generation arguments of a task. `stop` ends a text too; `seed` where none is given.

    ParameterError for what cannot be honoured.
    """
    own: dict[str, Any] = {"seed": seed, **normalize_gen_kwargs(dict(fields), MAX_GEN_TOKS)}
    if own.pop("do_sample", False) and not own.get("temperature"):
        raise ParameterError("do_sample=True without a temperature above 0: give one")
    if (beams := own.pop("num_beams", 1)) != 1:
        raise ParameterError(f"num_beams={beams}: there is no beam search; 1 is all that works")
    until = own.pop("until")
    special = {string: ids for string in until if len(ids := _special(tokenizer, string)) == 1}
    own["stop_token_ids"] = [ids[0] for ids in special.values()]
    own["stop"] = [*(string for string in until if string not in special), *stop]
    own["max_tokens"] = own.pop("max_gen_toks")
    return SamplingParams.from_dict(own)


def _special(tokenizer: Tokenizer, string: str) -> list[int]:
    """The ids of a string where special tokens are among them: they are in no text."""
    ids = tokenizer.encode(string, add_special_tokens=False)
    shown = tokenizer.decode(ids, skip_special_tokens=False)
    return ids if tokenizer.decode(ids) != shown else []
