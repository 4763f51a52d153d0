"""One request as the fuzz sends it: what is written to the connection, and what may come back."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

JSON = {"Content-Type": "application/json"}
LONGEST = 4000  # characters of a command that repeats a request


@dataclass(frozen=True)
class Shot:
    """`pieces`: seconds to wait, and then these bytes. `route`: as the document writes it, "" where
    it has none; `path`: as it is asked for."""

    name: str
    route: str
    path: str
    pieces: tuple[tuple[float, bytes], ...]
    answers: int | None = 1  # None: some, or none
    allowed: frozenset[int] = frozenset()  # statuses; none named: those that the document declares
    then: Literal["read", "leave", "half-close"] = "read"
    malformed: bool = False  # not HTTP, or not all of it: the connection may be cut
    unrouted: bool = False  # may have no route

    @property
    def wire(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)

    @property
    def method(self) -> str:
        return self.wire[:20].partition(b" ")[0].decode("latin-1")

    @property
    def has_deadline(self) -> bool:
        return b'"deadline"' in self.wire

    def repeat(self, url: str) -> str:
        """A command of a shell that sends the same; of what is too long for one, its beginning."""
        head, _, body = self.wire.partition(b"\r\n\r\n")
        words = ["curl", "-g", "--path-as-is", "-X", self.method]
        for line in head.decode("latin-1").split("\r\n")[1:]:
            if not line.startswith(("Host", "Connection", "Content-Length")):
                words += ["-H", line]
        words += ["--data-binary", body.decode("latin-1")] if body else []
        command = shlex.join([*words, url + self.path])
        plain = not self.malformed and body.isascii() and b"\0" not in body
        if plain and len(command) <= LONGEST:
            return command
        return f"bytes on a connection: {self.wire[:600]!r} ({len(self.wire)} in all)"


def request(
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] = JSON,
    *,
    version: str = "1.1",
) -> bytes:
    """A whole request, after which the connection ends."""
    own = {"Host": "localhost", "Connection": "close"}
    own |= headers if body is not None else {}
    if body is not None and "Transfer-Encoding" not in headers:
        own.setdefault("Content-Length", str(len(body)))
    lines = [
        f"{method} {path} HTTP/{version}",
        *(f"{name}: {value}" for name, value in own.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")
