"""The tokenizer inside a GGUF file goes in; the files that Hugging Face would have come out.

A byte-level BPE vocabulary ("gpt2") becomes `tokenizer.json`, a SentencePiece one ("llama")
`tokenizer.model`; `tokenizer_config.json` says the rest.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from sentencepiece import SentencePieceProcessor
from tokenizers import decoders, models, pre_tokenizers, processors

from .errors import TokenizerError
from .gguf_import_file import GgufFile
from .tokenizer_cut import GPT2, LLAMA3

# Token types: those of GGUF are those of SentencePiece.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

_LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3")
# How each kind of vocabulary cuts a text before its merges apply: expressions, one after the other.
_SPLITS = {
    "gpt-2": (GPT2,),
    "smollm": (r"\p{N}", GPT2),
    **dict.fromkeys(_LLAMA3_NAMES, (LLAMA3,)),
    # what llama.cpp runs where a file names no kind, or this one
    "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
}


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    tokens: list[str]
    types: list[int]
    specials: dict[str, str]  # "bos_token" -> "<s>"

    def added(self) -> Iterator[tuple[int, str, bool]]:
        """(id, text, special) of the tokens that are cut out of a text before anything else."""
        for i, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True)):
            if kind in (UNKNOWN, CONTROL, USER_DEFINED):
                yield i, token, kind != USER_DEFINED


def write_tokenizer(source: GgufFile, folder: Path) -> None:
    """Write the tokenizer's files. Raises `TokenizerError` for a kind that is not implemented."""
    kind = source.get("tokenizer.ggml.model", str)
    vocabulary = _read(source)
    if kind == "gpt2":
        add_bos = _write_bpe(source, vocabulary, folder / "tokenizer.json")
    elif kind == "llama":
        add_bos = source.find("tokenizer.ggml.add_bos_token", bool) is not False
        _write_sentencepiece(source, vocabulary, folder / "tokenizer.model")
    else:
        raise TokenizerError(
            f"{source.path}: tokenizer.ggml.model = {kind!r} is not implemented "
            "(known: gpt2, llama)"
        )
    settings: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast" if kind == "gpt2" else "LlamaTokenizer",
        "add_bos_token": add_bos,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(i): _added_token(text, special) for i, text, special in vocabulary.added()
        },
        **vocabulary.specials,
        "clean_up_tokenization_spaces": False,
        "model_max_length": source.get("llama.context_length", int),
    }
    if kind == "llama":
        settings["legacy"] = True  # the file does not say; so does llama.cpp, which made it
    if template := source.find("tokenizer.chat_template", str):
        settings["chat_template"] = template
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def _added_token(text: str, special: bool) -> dict[str, object]:
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    return {"content": text, "special": special, **flags}


def _read(source: GgufFile) -> _Vocabulary:
    tokens = source.get("tokenizer.ggml.tokens", list)
    types = source.find("tokenizer.ggml.token_type", list) or [NORMAL] * len(tokens)
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise TokenizerError(
            f"{source.path}: {len(tokens)} tokens, {len(set(tokens))} of them different, "
            f"with {len(types)} types"
        )
    specials = {}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token = source.find(f"tokenizer.ggml.{key}_token_id", int)
        if token is not None and token < len(tokens):
            specials[f"{role}_token"] = tokens[token]
    return _Vocabulary(tokens, types, specials)


def _write_bpe(source: GgufFile, vocabulary: _Vocabulary, file: Path) -> bool:
    """Returns whether a text begins with BOS."""
    kind = source.find("tokenizer.ggml.pre", str) or "default"
    if kind not in _SPLITS:
        raise TokenizerError(
            f"{source.path}: tokenizer.ggml.pre = {kind!r} is not implemented "
            f"(known: {', '.join(_SPLITS)})"
        )
    llama3 = kind in _LLAMA3_NAMES
    ids = {token: i for i, token in enumerate(vocabulary.tokens) if vocabulary.types[i] != UNUSED}
    merges = [tuple(merge.split(" ")) for merge in source.get("tokenizer.ggml.merges", list)]
    try:
        # Llama 3 takes a whole word that is a token as it is, though its merges may not lead there.
        tokenizer = tokenizers.Tokenizer(models.BPE(ids, merges, ignore_merges=llama3))
    except Exception as error:  # the library raises bare exceptions
        raise TokenizerError(f"{source.path}: the merges do not fit the tokens: {error}") from error
    steps = [pre_tokenizers.Split(tokenizers.Regex(r), "isolated") for r in _SPLITS[kind]]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for _, text, special in vocabulary.added():
        token = tokenizers.AddedToken(text, special=special, normalized=False)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
    wanted = source.find("tokenizer.ggml.add_bos_token", bool)
    add_bos = llama3 if wanted is None else wanted
    if add_bos and (bos := vocabulary.specials.get("bos_token")) in ids:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, ids[bos])]
        )
    tokenizer.save(str(file))
    return add_bos


def _write_sentencepiece(source: GgufFile, vocabulary: _Vocabulary, file: Path) -> None:
    """A ModelProto in protocol buffers' wire format; field numbers of sentencepiece_model.proto."""
    if source.find("tokenizer.ggml.precompiled_charsmap", list):
        raise TokenizerError(f"{source.path}: a normalizing SentencePiece is not implemented")
    scores = source.get("tokenizer.ggml.scores", list)
    entries = zip(vocabulary.tokens, scores, vocabulary.types, strict=True)
    pieces = b"".join(
        _field(1, _field(1, token.encode()) + _float(2, score) + _number(3, kind))
        for token, score, kind in entries
    )
    named = (("unk", 45), ("bos", 46), ("eos", 47), ("pad", 48))
    names = [
        (n, vocabulary.specials[f"{r}_token"])
        for r, n in named
        if f"{r}_token" in vocabulary.specials
    ]
    trainer = (
        _number(3, 2)  # model_type: BPE
        + _number(4, len(vocabulary.tokens))
        + _number(35, BYTE in vocabulary.types)  # byte_fallback
        + b"".join(_field(number, text.encode()) for number, text in names)
    )
    spaced = source.find("tokenizer.ggml.add_space_prefix", bool) is not False
    trimmed = source.find("tokenizer.ggml.remove_extra_whitespaces", bool) is True
    normalizer = _field(1, b"identity") + _number(3, spaced) + _number(4, trimmed) + _number(5, 1)
    data = pieces + _field(2, trainer) + _field(3, normalizer)
    try:
        SentencePieceProcessor(model_proto=data)
    except (RuntimeError, ValueError) as error:
        raise TokenizerError(f"{source.path}: not a SentencePiece vocabulary: {error}") from error
    file.write_bytes(data)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(int(value))


def _float(number: int, value: float) -> bytes:
    return _varint(number << 3 | 5) + struct.pack("<f", value)
