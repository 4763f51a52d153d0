"""The bodies of requests: JSON goes in, checked for names and types; values are the engine's to
check.

A field that would change the answer and that nobody here implements is refused by its name. One
that nobody here knows is passed over, and named in the log once: clients of these APIs send new
ones with every version.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from .refusal import bad

LOG = logging.getLogger(__name__)

MOST_TOLD = 100  # unknown names, of all clients together: they can make up any number
Ids = list[Annotated[int, Field(ge=0, lt=2**31)]]
# Fields of each API that change an answer, or what is told of it, and that are not implemented.
OPENAI = (
    *("logit_bias", "use_beam_search", "allowed_token_ids", "bad_words", "truncate_prompt_tokens"),
    *("logits_processors", "structured_outputs", "structural_tag", "guided_json", "guided_regex"),
    *("guided_choice", "guided_grammar", "repetition_detection", "logprob_token_ids", "cache_salt"),
    *("thinking_token_budget", "return_token_ids", "return_tokens_as_token_ids", "response_format"),
    *("skip_special_tokens", "add_special_tokens", "watermarking", "vllm_xargs"),
)
COMPLETIONS = (*OPENAI, "suffix", "prompt_embeds")
TEMPLATE = (
    *("add_generation_prompt", "continue_final_message", "chat_template", "chat_template_kwargs"),
    *("documents", "tools"),
)
CHATS = (
    *(*OPENAI, *TEMPLATE, "echo", "tool_choice", "functions", "function_call", "audio"),
    *("modalities", "web_search_options", "return_prompt_text"),
)
MESSAGE = ("tool_calls", "function_call", "audio")
TGI = (
    *("typical_p", "watermark", "grammar", "adapter_id", "stop_sequences", "presence_penalty"),
    *("min_new_tokens", "ignore_eos_token", "response_format", "apply_chat_template"),
    *("num_beams", "num_return_sequences", "return_k_alternatives"),
)
# Values that change nothing: of nearly all of them these (False is one), of a few others.
NOTHING: tuple[Any, ...] = (None, "", 0, [], {})
HARMLESS: dict[str, tuple[Any, ...]] = {
    "skip_special_tokens": (None, True),
    "add_generation_prompt": (None, True),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    **dict.fromkeys(("tool_choice", "function_call"), (None, "none", "auto")),
}


class Body(BaseModel):
    """`extra` fields are kept, so that they can be named; those of `refused` are."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())
    refused: ClassVar[tuple[str, ...]] = ()
    harmless: ClassVar[Mapping[str, tuple[Any, ...]]] = HARMLESS

    def pass_over_unknown(self, known: set[str], where: str = "") -> None:
        """Or refuse it; in the bodies within this one, too."""
        extra = self.model_extra or {}
        for name in self.refused:
            if extra.get(name) not in self.harmless.get(name, NOTHING):
                raise bad(f"{where}{name} is not implemented; leave it out", f"{where}{name}")
        names = {f"{where}{name}"[:100] for name in extra if name not in self.refused} - known
        for name in sorted(names)[: MOST_TOLD - len(known)]:
            known.add(name)
            LOG.warning("the field %r is not known here, and is passed over", name)
        for field, value in self.__dict__.items():
            inner = value if isinstance(value, list) else [value]
            if inner and isinstance(inner[0], Body):
                for one in inner:
                    one.pass_over_unknown(known, f"{where}{field}.")


class StreamOptions(Body):
    refused = ("continuous_usage_stats",)
    include_usage: bool | None = None


class Asked(Body):
    """What every request that generates may say: the engine's own parameters, and where to read."""

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    best_of: int | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    user: str | None = None
    # Ours, and vLLM's:
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    repetition_penalty_scope: str | None = None
    min_tokens: int | None = None
    stop_token_ids: Ids | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    prompt_logprobs: int | None = None
    urial_prompt: str | None = None
    compare_with: CompareWith | None = None
    deadline: float | None = None


class CompareWith(Body):
    """The second context: the same conversation in another form, or under another model."""

    model: str | None = None
    urial_prompt: str | None = None


class CompletionBody(Asked):
    refused = COMPLETIONS
    harmless = {**HARMLESS, "add_special_tokens": (None, True)}
    prompt: str | Ids | list[str] | list[Ids]
    echo: bool | None = None
    logprobs: int | None = None


class Part(Body):
    type: str
    text: str | None = None


class MessageBody(Body):
    refused = MESSAGE
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None

    def plain(self) -> Mapping[str, str]:
        """Its text alone: a model of text reads nothing else."""
        parts = self.content or ""
        if not isinstance(parts, str):
            if strange := [part.type for part in parts if part.type != "text"]:
                raise bad(f"a message holds a part of type {strange[0]!r}; only text is read")
            parts = "".join(part.text or "" for part in parts)
        return {"role": self.role, "content": parts}


class ChatBody(Asked):
    refused = CHATS
    messages: list[MessageBody] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class TokenizeBody(Body):
    refused = TEMPLATE
    model: str | None = None
    prompt: str | None = None
    messages: list[MessageBody] | None = None
    add_special_tokens: bool | None = None


class DetokenizeBody(Body):
    model: str | None = None
    tokens: Ids


class ScoreBody(Body):
    model: str | None = None
    prompt: str | Ids | list[str] | list[Ids]
    continuation: str | Ids | list[str] | list[Ids]
    top_k: int = 0
    urial_prompt: str | None = None
    deadline: float | None = None


class ShiftBody(Body):
    """As `token_shift` has them; a prompt is a form by its name, or a template with {query}."""

    base: str | None = None
    aligned: str | None = None
    queries: list[str] = Field(min_length=1)
    base_prompt: str = "raw"
    aligned_prompt: str = "chat"
    answers: list[str] | list[Ids] | None = None
    top_k: int = 0
    max_tokens: int | None = None
    temperature: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    deadline: float | None = None


class PromptBody(Body):
    text: str
    model: str | None = None


class PinBody(Body):
    model: str | None = None


class TgiParameters(Body):
    """TGI's own names and defaults; the last two are ours."""

    refused = TGI
    best_of: int | None = Field(None, ge=1)
    decoder_input_details: bool | None = None
    details: bool | None = None
    do_sample: bool | None = None
    frequency_penalty: float | None = None
    max_new_tokens: int | None = None
    repetition_penalty: float | None = None
    return_full_text: bool | None = None
    seed: int | None = None
    stop: list[str] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_n_tokens: int | None = Field(None, ge=0, le=20)
    top_p: float | None = None
    truncate: int | None = Field(None, ge=1)
    urial_prompt: str | None = None
    repetition_penalty_scope: str | None = None


class TgiBody(Body):
    inputs: str
    parameters: TgiParameters = Field(default_factory=lambda: TgiParameters.model_validate({}))
    stream: bool | None = None
    model: str | None = None


# What else routes answer, for the document of the API.
Responses = dict[int | str, dict[str, Any]]


def _object(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": [*fields]}


def _refused(form: dict[str, Any], statuses: str) -> Responses:
    content = {"application/json": {"schema": form}}
    about = {"description": f"refused: {statuses}", "content": content}
    return {"4XX": about, "5XX": about}


_TEXT = {"type": "string"}
_FAILURE = _object(message=_TEXT, type=_TEXT, param={"type": ["string", "null"]}, code=_TEXT)
REFUSED = _refused(_object(error=_FAILURE), "400, 401, 403, 404, 408, 413, 429, 500, 503, 504")
REFUSED_TGI = _refused(
    _object(error=_TEXT, error_type=_TEXT), "401, 403, 404, 408, 413, 422, 424, 429, 503"
)
STREAMED: Responses = {200: {"content": {"text/event-stream": {}}}}
