"""What the tokenizer tests share: a corpus with recorded ids, model files, and folders of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

# Ids that transformers' legacy tokenizers gave, with how they were made in "from".
RECORDED = json.loads((Path(__file__).parent / "data" / "sentencepiece_ids.json").read_text())
CORPUS: list[str] = RECORDED["corpus"]
UNDERLINE = "\u2581"
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
# Text of the kind that goes wrong: spaces at the ends and in runs, specials, joined characters.
PIECES = [
    "  ",
    " ",
    "\n",
    "\t",
    "<s>",
    "</s>",
    "<unk>",
    "a",
    "Hello",
    "é",
    "\u0301",
    "漢",
    "👩‍👩‍👧",
    "1",
]
NASTY = st.lists(st.sampled_from(PIECES) | TEXT, max_size=8).map("".join)
few = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def mistral_model(name: str = "tokenizer.model.v1") -> Path:
    """A sentencepiece model of Mistral, from the package mistral-common."""
    spec = find_spec("mistral_common")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the package mistral-common")
    return Path(spec.submodule_search_locations[0]) / "data" / name


def model_folder(out: Path, file: Path | bytes, **config: Any) -> Path:
    """A folder with a tokenizer.model and the config given."""
    out.mkdir(exist_ok=True)
    (out / "tokenizer.model").write_bytes(file if isinstance(file, bytes) else file.read_bytes())
    (out / "tokenizer_config.json").write_text(json.dumps({**NAMED, **config}))
    return out


def json_folder(out: Path, tokenizer: tokenizers.Tokenizer, **config: Any) -> Path:
    """A folder with a tokenizer.json and the config given."""
    out.mkdir(exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps(config))
    return out


def train_llama(out: Path, texts: Sequence[str]) -> Path:
    """A small sentencepiece model with the options that Llama's was trained with."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(out / "llama"),
        model_type="bpe",
        vocab_size=700,
        character_coverage=0.995,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    return out / "llama.model"


def published_form(file: Path) -> tokenizers.Tokenizer:
    """The tokenizer.json that Llama 2 and Mistral were published with, made from the model file.

    Merges are ranked by the score of what they make; a prefix space is prepended to every text
    between special tokens.
    """
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(file))
    ids = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    ranked = [
        (pieces.get_score(i), len(piece[:cut]), len(piece[cut:]), piece[:cut], piece[cut:])
        for piece, i in ids.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    merges = [
        (left, right) for *_, left, right in sorted(ranked, key=lambda m: m[:3], reverse=True)
    ]
    bpe = models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    made = tokenizers.Tokenizer(bpe)
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend(UNDERLINE), normalizers.Replace(" ", UNDERLINE)]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace(UNDERLINE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


def byte_level(specials: Sequence[str] = ("<s>", "</s>")) -> tokenizers.Tokenizer:
    """The smallest byte-level tokenizer: the special tokens, then a token for each byte."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    ids = {token: i for i, token in enumerate([*specials, *sorted(letters)])}
    made = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(specials))
    return made
