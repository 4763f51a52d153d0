"""What the server refuses: an error of the engine, or one of its own, comes out as one record."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import ContextError, DeviceError, NumericsError, UrialError

TOO_LONG = "context_length_exceeded"  # the word of OpenAI's clients
UNEXPECTED = "something failed inside; the server's log says what"


@dataclass(eq=False)
class Refusal(Exception):
    """An answer with `status` instead of a result. Each API gives it the form of its own errors.

    `kind`: the word by which programs know it. `param`: the field that is wrong.
    """

    status: int
    kind: str
    message: str
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message


def bad(message: str, param: str | None = None) -> Refusal:
    """The request cannot be honoured as it is."""
    return Refusal(400, "invalid_request_error", message, param)


def busy(status: int, kind: str, message: str, seconds: int) -> Refusal:
    """It may be honoured later: in about so many seconds."""
    return Refusal(status, kind, message, headers={"Retry-After": str(seconds)})


def too_late() -> Refusal:
    message = "the deadline of the request is over; ask for fewer tokens, or for longer"
    return Refusal(504, "deadline", message)


def refusal_of(error: BaseException) -> Refusal:
    """What a client is told of an error."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, (NumericsError, DeviceError)):
        return Refusal(500, "server_error", str(error))
    if isinstance(error, ContextError):
        return Refusal(400, TOO_LONG, str(error), "prompt")
    if isinstance(error, UrialError):
        return bad(str(error))
    return Refusal(500, "server_error", UNEXPECTED)
