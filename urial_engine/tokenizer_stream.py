"""Token ids go in one by one; text comes out, never a broken character, as soon as it is certain.

Every token gives a fixed run of bytes, so text is the UTF-8 reading of one byte stream and a whole
answer is decoded by the same code that streams it. Both families of tokenizers come down to this:
byte-level ones write a byte as a stand-in character, sentencepiece ones write a character that
their vocabulary lacks as tokens `<0x00>` to `<0xFF>`.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count

from .errors import TokenizerError

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# One U+FFFD for each byte that is not UTF-8: `surrogateescape` marks each such byte.
ESCAPED = {0xDC00 + byte: "\N{REPLACEMENT CHARACTER}" for byte in range(0x80, 0x100)}
ORDER = ("Replace", "ByteFallback", "Fuse", "Strip")


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's stand-in character of each byte: itself where it prints, else the next from 256."""
    prints = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = count(0x100)
    return {chr(byte if byte in prints else next(spare)): byte for byte in range(0x100)}


ALPHABET = _byte_level_alphabet()


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a vocabulary's tokens become bytes.

    `strip` spaces are taken off the start of the whole text: the prefix space that encoding added.
    """

    byte_level: bool = False
    byte_fallback: bool = False
    replace: tuple[tuple[str, str], ...] = ()
    strip: int = 0
    separator: str = ""

    def bytes_of(self, token: str) -> bytes:
        """What one token adds to the stream."""
        if self.byte_level:
            # A token with a character outside the alphabet was added as plain text.
            known = all(c in ALPHABET for c in token)
            return bytes(ALPHABET[c] for c in token) if known else token.encode()
        if self.byte_fallback and (byte := BYTE.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        for old, new in self.replace:
            token = token.replace(old, new)
        return token.encode()

    @classmethod
    def of_json(cls, decoder: Mapping[str, object] | None) -> Decoding:
        """The `decoder` of a tokenizer.json. Raises `TokenizerError` for one we cannot stream.

        Known: none (tokens are words), `ByteLevel` (Llama 3, SmolLM), and the sequence `Replace`,
        `ByteFallback`, `Fuse`, `Strip` or the start of it (Llama 1 and 2, Mistral).
        """
        if decoder is None:
            return cls(separator=" ")
        steps = decoder.get("decoders", [decoder])
        assert isinstance(steps, list)
        kinds = [step["type"] for step in steps]
        if kinds == ["ByteLevel"]:
            return cls(byte_level=True)
        strips = [s for s in steps if s["type"] == "Strip"]
        plain = all(s["pattern"].get("String") for s in steps if s["type"] == "Replace")
        spaces = all(s["content"] == " " and not s["stop"] for s in strips)
        fused = not strips or "Fuse" in kinds
        ordered = set(kinds) <= {*ORDER} and kinds == sorted(kinds, key=ORDER.index)
        if not (plain and spaces and fused and ordered):
            raise TokenizerError(
                f"tokenizer.json: the decoder {kinds} is not one that can be streamed here; known"
                f" are ByteLevel, the sequence {', '.join(ORDER)}, and none"
            )
        return cls(
            byte_fallback="ByteFallback" in kinds,
            replace=tuple(
                (s["pattern"]["String"], s["content"]) for s in steps if s["type"] == "Replace"
            ),
            strip=sum(s["start"] for s in strips),
        )


class Detokenizer:
    """Text of a growing answer. The pieces join exactly to `Tokenizer.decode` of all the ids.

    A character is given out with its last byte; until then at most three bytes wait. Bytes that can
    never become a character give U+FFFD: one each in a byte-fallback vocabulary, as sentencepiece
    does (the `tokenizers` library gives up the valid neighbours in such a run too, which no stream
    can honour without holding all of it back), one for each broken sequence in a byte-level one.
    """

    def __init__(self, piece: Callable[[int], bytes | None], decoding: Decoding) -> None:
        errors = "replace" if decoding.byte_level else "surrogateescape"
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors)
        self._piece = piece
        self._separator = decoding.separator.encode()
        self._strip = decoding.strip
        self._begun = False

    def push(self, token_id: int) -> str:
        """The text that this token completes: often a word, sometimes nothing yet."""
        piece = self._piece(token_id)
        if piece is None:
            return ""
        joined = self._separator + piece if self._begun else piece
        self._begun = True
        return self._text(self._utf8.decode(joined))

    def finish(self) -> str:
        """What still waits when no token follows."""
        return self._text(self._utf8.decode(b"", final=True))

    def _text(self, text: str) -> str:
        text = text if text.isascii() else text.translate(ESCAPED)
        while self._strip and text:
            self._strip = self._strip - 1 if text[0] == " " else 0
            text = text.removeprefix(" ")
        return text
