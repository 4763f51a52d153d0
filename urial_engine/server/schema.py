"""The bodies of requests: JSON goes in, checked for names and types; values are the engine's to
check.

A field that a client sends and nobody here knows is passed over, and named in the log once: clients
of these APIs send new ones with every version.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .refusal import bad

LOG = logging.getLogger(__name__)

MOST_TOLD = 100  # unknown names, of all clients together: they can make up any number
Ids = list[Annotated[int, Field(ge=0, lt=2**31)]]


class Body(BaseModel):
    """`extra` fields are kept, so that they can be named."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())

    def pass_over_unknown(self, known: set[str]) -> None:
        names = {name[:100] for name in self.model_extra or {}} - known
        for name in sorted(names)[: MOST_TOLD - len(known)]:
            known.add(name)
            LOG.warning("the field %r is not known here, and is passed over", name)

    def refuse_set(self, *names: str) -> None:
        """Fields that change the answer, and that nobody here implements."""
        for name in names:
            if getattr(self, name) not in (None, "", False, {}, []):
                raise bad(f"{name} is not implemented; leave it out", name)


class Asked(Body):
    """What every request that generates may say: the engine's own parameters, and where to read."""

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
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

    def usage_in_stream(self) -> bool:
        return bool((self.stream_options or {}).get("include_usage"))


class CompareWith(Body):
    """The second context: the same conversation in another form, or under another model."""

    model: str | None = None
    urial_prompt: str | None = None


class CompletionBody(Asked):
    prompt: str | Ids | list[str] | list[Ids]
    best_of: int | None = None
    echo: bool = False
    logprobs: int | None = None
    suffix: str | None = None


class Part(Body):
    type: str
    text: str | None = None


class MessageBody(Body):
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
    messages: list[MessageBody] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None


class TokenizeBody(Body):
    model: str | None = None
    prompt: str | None = None
    messages: list[MessageBody] | None = None
    add_special_tokens: bool = True


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

    best_of: int | None = Field(None, ge=1)
    decoder_input_details: bool = False
    details: bool = True
    do_sample: bool = False
    frequency_penalty: float | None = None
    max_new_tokens: int | None = None
    repetition_penalty: float | None = None
    return_full_text: bool | None = None
    seed: int | None = None
    stop: list[str] = []
    temperature: float | None = None
    top_k: int | None = None
    top_n_tokens: int | None = Field(None, ge=0, le=20)
    top_p: float | None = None
    truncate: int | None = Field(None, ge=1)
    typical_p: float | None = None
    watermark: bool = False
    grammar: Any = None
    adapter_id: str | None = None
    urial_prompt: str | None = None
    repetition_penalty_scope: str | None = None


class TgiBody(Body):
    inputs: str
    parameters: TgiParameters = Field(default_factory=lambda: TgiParameters.model_validate({}))
    stream: bool = False
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
REFUSED = _refused(_object(error=_FAILURE), "400, 401, 404, 408, 413, 429, 500, 503, 504")
REFUSED_TGI = _refused(
    _object(error=_TEXT, error_type=_TEXT), "401, 404, 408, 413, 422, 424, 429, 503"
)
STREAMED: Responses = {200: {"content": {"text/event-stream": {}}}}
