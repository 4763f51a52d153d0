"""Answers go in; what is wrong with them comes out: by the server's document, and by its API."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import jsonschema

from tests.fuzzing_shots import Shot

JSON, EVENTS = "application/json", "text/event-stream"
TGI = ("/", "/generate", "/generate_stream", "/info")
# The document gives ranges. Of an open server that does not end, and of bodies that come in time:
REFUSALS = frozenset({400, 404, 413, 429})
REFUSALS_TGI = frozenset({404, 413, 422, 429})
# Of the framework, for every path: no route, no such method.
UNROUTED = frozenset({404, 405})


@dataclass(frozen=True)
class Answer:
    status: int
    kind: str  # of the content
    body: bytes


class Wrong(Exception):
    """What is not right about an answer."""


class Checks:
    """Of answers, by what the document says."""

    def __init__(self, document: Any) -> None:
        self._operations = {
            f"{method.upper()} {path}": operation
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
        }
        self._components = document.get("components", {})

    def all_of(self, shot: Shot, answers: list[Answer]) -> None:
        if shot.answers is not None and len(answers) != shot.answers:
            raise Wrong(f"{len(answers)} answers, not {shot.answers}")
        for answer in answers:
            self.one(shot, answer)

    def one(self, shot: Shot, answer: Answer) -> None:
        try:
            self._status(shot, answer.status)
            if answer.status >= 400:
                self._refusal(shot, answer)
            else:
                self._result(shot, answer)
        except Wrong as wrong:
            raise Wrong(f"{wrong} (status {answer.status}: {answer.body[:300]!r})") from None

    def _status(self, shot: Shot, status: int) -> None:
        if status >= 500 and not (status == 504 and shot.has_deadline):
            raise Wrong("the server failed")
        usual = {200} | (REFUSALS_TGI if shot.path in TGI else REFUSALS)
        usual |= {504} if shot.has_deadline else set()
        usual |= UNROUTED if shot.unrouted else set()
        usual |= {400} if shot.malformed else set()
        right = (shot.allowed or usual) | {429}  # the queue may be full of others' requests
        if status not in right:
            raise Wrong(f"must be one of {sorted(right)}")
        if not (self._declared(shot, status) or shot.unrouted):
            raise Wrong(f"{shot.route or 'no route'} does not declare it")

    def _declared(self, shot: Shot, status: int) -> Any:
        """What the document says of it; None: nothing."""
        responses = self._operations.get(shot.route, {}).get("responses", {})
        return responses.get(str(status)) or responses.get(f"{status // 100}XX")

    def _refusal(self, shot: Shot, answer: Answer) -> None:
        """In the form of its API, and as the document has it."""
        if shot.malformed and answer.kind == "text/plain":
            return  # of the protocol's parser: no path is known yet
        value = _json(answer)
        own = {"error": str, "error_type": str}
        if shot.path not in TGI:
            own = {"message": str, "type": str, "code": str}
            value = value.get("error") if isinstance(value, dict) else None
        if not isinstance(value, dict) or any(
            not isinstance(value.get(name), kind) for name, kind in own.items()
        ):
            raise Wrong("not the form of an error of this API")
        self._conforms(shot, answer)

    def _result(self, shot: Shot, answer: Answer) -> None:
        self._conforms(shot, answer)
        if answer.kind == EVENTS:
            _check_events(shot, answer)
        elif answer.kind == JSON:
            _check_choices(_json(answer))

    def _conforms(self, shot: Shot, answer: Answer) -> None:
        content = (self._declared(shot, answer.status) or {}).get("content", {})
        if content and answer.kind not in content:
            raise Wrong(f"{answer.kind} is not declared")
        schema = content.get(answer.kind, {}).get("schema")
        if schema and answer.kind == JSON:
            try:
                jsonschema.validate(_json(answer), {**schema, "components": self._components})
            except jsonschema.ValidationError as error:
                raise Wrong(f"not of its schema: {error.message[:200]}") from None


def _strange(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _json(answer: Answer) -> Any:
    try:
        return json.loads(answer.body.decode(), parse_constant=_strange)
    except ValueError as error:
        raise Wrong(f"not JSON: {error}") from None


def _check_events(shot: Shot, answer: Answer) -> None:
    """Each of them JSON; the last one says that all came."""
    *events, rest = answer.body.decode().split("\n\n")
    if rest or not all(event.startswith("data: ") for event in events):
        raise Wrong("not a stream of events")
    told = [event.removeprefix("data: ") for event in events]
    done = told[-1:] == ["[DONE]"] and told.pop() != ""
    values = [_json(Answer(200, EVENTS, text.encode())) for text in told]
    if "error" in (values or [{}])[-1]:
        if not shot.has_deadline:
            raise Wrong("an error within a stream")
    elif shot.path in TGI and values[-1].get("generated_text") is None:
        raise Wrong("a stream without its end")
    elif shot.path not in TGI and not done:
        raise Wrong("a stream that does not end with [DONE]")


def _check_choices(value: Any) -> None:
    """Each with its own index, and ended for a reason."""
    choices = value.get("choices", []) if isinstance(value, dict) else []
    if [choice["index"] for choice in choices] != list(range(len(choices))):
        raise Wrong("choices are lost, or stand twice")
    if any(choice["finish_reason"] not in ("stop", "length") for choice in choices):
        raise Wrong("a choice without an end")
