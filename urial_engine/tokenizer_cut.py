"""Where a text may be cut: a tokenizer and a text go in; a place comes out whose sides, tokenised
apart, give the ids of the whole, whatever follows.

Such a place is a space between two letters of ASCII, if the rules let nothing reach across it:

- The expressions below that find words match no letter with a space behind it, so a word ends there
  whatever stands around it. They look ahead of what they match and never back, and each piece that
  they cut out is merged by itself.
- Where a text is merged as a whole (Llama 2, Mistral), a merge across the space would make a token
  in which a space follows a letter. It is enough that the vocabulary holds none.
- Added tokens are found first. None may hold a space, or begin or end with a letter: then none lies
  across the place, is told by what is beside it, or takes its space away.

Other rules may have such places too. They are not known here, and their texts stay whole.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tokenizers import Tokenizer, models

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (  # Mistral's
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS = {GPT2, LLAMA3, TEKKEN}
# Neither a letter nor a space has a part in what these cut out.
OTHERS = {r"\p{N}", r"\p{N}+", "[0-9][0-9][0-9]", r"[\p{P}\$\+<=>\^~\|]+", "Digits", "ByteLevel"}
PLACE = re.compile("[A-Za-z] (?=[A-Za-z])")
UNDERLINE = "\N{LOWER ONE EIGHTH BLOCK}"  # a space, where texts are merged as a whole
LLAMA2 = [f"Prepend{UNDERLINE}", f"Replace {UNDERLINE}"]  # a normalizer
METASPACE = [f"Metaspace{UNDERLINE}"]  # a pre-tokenizer


def last_cut(tokenizer: Tokenizer, text: str) -> tuple[int, int]:
    """(end, start): text[:end], and text[start:] with any text behind it, are tokenised apart.

    The space between them is left out where the rules put one before every text. (0, 0): no place.
    """
    places, added = list(PLACE.finditer(text)), tokenizer.get_added_tokens_decoder().values()
    if not places or any(re.search("^[A-Za-z]|[A-Za-z]$| ", token.content) for token in added):
        return 0, 0
    end, model = places[-1].start() + 1, tokenizer.model
    normal, kinds = _kinds(tokenizer.normalizer), _kinds(tokenizer.pre_tokenizer)
    if not isinstance(model, models.BPE) or model.dropout:
        return 0, 0
    if not normal and WORDS.intersection(kinds) and {*kinds} <= WORDS | OTHERS:
        return end, end
    if model.ignore_merges or model.continuing_subword_prefix or model.end_of_word_suffix:
        return 0, 0
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    if UNDERLINE not in vocabulary or re.search(f"[A-Za-z]{UNDERLINE}", "\n".join(vocabulary)):
        return 0, 0
    if normal == LLAMA2 and not kinds:
        return end, end + 1
    return (end, end) if kinds == METASPACE and not normal else (0, 0)


def _kinds(part: Any) -> list[str]:
    """Each step of a normalizer or pre-tokenizer in a word: see `_kind`."""
    state = json.loads(part.__getstate__()) if part else {"normalizers": []}
    steps = state.get("normalizers", state.get("pretokenizers", [state]))
    return [_kind(step) for step in steps]


def _kind(step: dict[str, Any]) -> str:
    """The expression whose matches it cuts out, else its type, what it replaces and by what."""
    pattern, split = step.get("pattern", {}), step["type"] == "Split"
    if split and step["behavior"] == "Isolated" and not step["invert"]:
        return str(pattern.get("Regex"))
    if step["type"] == "ByteLevel" and step["use_regex"]:
        return GPT2  # is written into it
    new = step.get("prepend") or step.get("replacement") or step.get("content") or ""
    return f"{step['type']}{pattern.get('String', '')}{new}"
