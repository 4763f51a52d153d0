"""Text out of ids one by one: as soon as it is certain, never broken, and bounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, decoders

from tests.tokenizer_cases import byte_level, json_folder, mistral_model, model_folder
from urial_engine.errors import TokenizerError
from urial_engine.tokenizer import Tokenizer
from urial_engine.tokenizer_stream import Decoding, Detokenizer

BYTES = {
    "byte level": Decoding(byte_level=True),
    "byte fallback": Decoding(byte_fallback=True),
}


def stream_of_bytes(kind: str) -> Detokenizer:
    """Ids are bytes."""
    return Detokenizer(lambda i: bytes([i]), BYTES[kind])


@pytest.mark.parametrize("kind", BYTES)
@given(text=st.text(max_size=20))
def test_a_character_comes_with_its_last_byte(kind: str, text: str) -> None:
    stream = stream_of_bytes(kind)
    for character in text:
        data = character.encode()
        assert [stream.push(b) for b in data] == [""] * (len(data) - 1) + [character]
    assert stream.finish() == ""


@pytest.mark.parametrize("kind", BYTES)
@given(data=st.binary(max_size=40))
def test_only_bytes_that_are_no_text_are_replaced(kind: str, data: bytes) -> None:
    stream = stream_of_bytes(kind)
    pieces = [stream.push(b) for b in data] + [stream.finish()]
    text = "".join(pieces)
    if kind == "byte level":
        assert text == data.decode(errors="replace")
    assert text.replace("\ufffd", "") == data.decode(errors="ignore").replace("\ufffd", "")
    given_out = 0
    for count, piece in enumerate(pieces[:-1], 1):  # at most three bytes wait
        given_out += len(piece)
        assert given_out >= len(data[: max(count - 3, 0)].decode(errors="ignore"))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\n\xe4\n", "\n\ufffd\n"),
        (b"\xf0\x9f\x98", "\ufffd\ufffd\ufffd"),
        (b"\xf0\x9fA", "\ufffd\ufffdA"),
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),
        (b"\xc0\xaf\xff", "\ufffd\ufffd\ufffd"),
        (b"\xef\xbf\xbd", "\ufffd"),
    ],
)
def test_fallback_replaces_byte_by_byte(data: bytes, text: str) -> None:
    stream = stream_of_bytes("byte fallback")
    assert "".join(map(stream.push, data)) + stream.finish() == text


def test_a_newline_that_is_a_byte_token_comes_at_once(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(model_folder(tmp_path / "m", mistral_model()))
    stream = tokenizer.stream()
    assert [stream.push(i) for i in tokenizer.encode("a\n\nb")] == ["", "a", "\n", "\n", "b"]


def test_only_the_prefix_space_is_taken_off(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(model_folder(tmp_path / "m", mistral_model()))
    stream = tokenizer.stream(skip_special_tokens=False)
    ids = [2, *tokenizer.encode("  a", add_special_tokens=False)]
    assert "".join(map(stream.push, ids)) == "</s>   a"
    assert tokenizer.decode(ids) == "  a"


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.WordPiece(),
        decoders.Metaspace(),
        decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()]),
        decoders.Sequence([decoders.ByteFallback(), decoders.Strip(" ", 1, 0)]),
        decoders.Sequence([decoders.Fuse(), decoders.Strip("x", 1, 0)]),
        decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]),
        decoders.Sequence([decoders.Fuse(), decoders.ByteFallback()]),
        decoders.Replace(Regex("a+"), "b"),
    ],
    ids=lambda d: json.loads(d.__getstate__())["type"],
)
def test_a_decoder_that_cannot_be_streamed_is_refused(tmp_path: Path, decoder: Any) -> None:
    made = byte_level()
    made.decoder = decoder
    with pytest.raises(TokenizerError, match=r"the decoder \[.*\] is not one that can be streamed"):
        Tokenizer.load(json_folder(tmp_path / "m", made))
