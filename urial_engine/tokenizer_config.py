"""A model's folder goes in; what its small tokenizer files say comes out, in one form.

`tokenizer_config.json` speaks first. `special_tokens_map.json` and `added_tokens.json` are older
ways to say the same and count only where it does not list its added tokens itself, as in
transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import TokenizerError


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is cut out of the text before the vocabulary's own rules see it.

    `lstrip` and `rstrip` swallow the white space on that side; `single_word` matches between word
    boundaries only.
    """

    content: str
    id: int
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """What the folder says about its tokenizer. `None` means that it says nothing."""

    folder: Path
    names: Mapping[str, str]  # "bos_token" -> "<s>": every key that ends in _token and holds text
    special: tuple[str, ...]  # the texts of all special tokens, in the order of the files
    added: tuple[AddedToken, ...]  # by id
    add_bos: bool | None
    add_eos: bool | None
    legacy: bool
    add_prefix_space: bool
    split_special_tokens: bool
    chat_template: object  # text, or a list of named templates

    @classmethod
    def load(cls, folder: Path) -> TokenizerConfig:
        """Raises `TokenizerError` where a file is damaged; a missing file says nothing."""
        config = read_object(folder / "tokenizer_config.json")
        listed = "added_tokens_decoder" in config
        older = {} if listed else read_object(folder / "special_tokens_map.json")
        roles = ((k, _text(v)) for k, v in {**config, **older}.items() if k.endswith("_token"))
        names = {role: text for role, text in roles if text}
        special = [*names.values(), *_extra(config), *_extra(older)]
        where = "tokenizer_config.json" if listed else "added_tokens.json"
        added = sorted(_listed(config) if listed else _older(folder, special), key=lambda t: t.id)
        special += [token.content for token in added if token.special]
        if any(token.id < 0 or not token.content for token in added):
            raise TokenizerError(f"{folder / where}: an added token needs a text and an id >= 0")
        return cls(
            folder=folder,
            names=names,
            special=tuple(dict.fromkeys(special)),
            added=tuple(added),
            add_bos=_flag(config, "add_bos_token"),
            add_eos=_flag(config, "add_eos_token"),
            legacy=_flag(config, "legacy") is not False,
            add_prefix_space=_flag(config, "add_prefix_space") is not False,
            split_special_tokens=_flag(config, "split_special_tokens") is True,
            chat_template=config.get("chat_template"),
        )


def read_object(path: Path) -> Mapping[str, object]:
    """The object in a JSON file; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} cannot be read as JSON: {error}. Fetch it again.") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} must hold an object, not a {type(value).__name__}")
    return value


def find_template(folder: Path, declared: object) -> str | None:
    """The default template of a model's folder, or None.

    chat_template.jinja comes before `declared`, what tokenizer_config.json holds (a text, or a list
    of named templates), and that before chat_template.json.
    """
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise TokenizerError(f"{file} cannot be read: {error}") from error
    found = declared or read_object(folder / "chat_template.json").get("chat_template")
    if isinstance(found, list):
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _text(value: object) -> str | None:
    """A token is written as its text, or as an object with a `content`."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) and value else None


def _extra(config: Mapping[str, object]) -> Iterator[str]:
    for key in ("additional_special_tokens", "extra_special_tokens"):
        value = config.get(key)
        values = list(value.values()) if isinstance(value, dict) else value
        yield from (t for v in values if (t := _text(v))) if isinstance(values, list) else ()


def _flag(config: Mapping[str, object], key: str) -> bool | None:
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise TokenizerError(f"tokenizer_config.json: {key} = {value!r} must be true or false")
    return value


def _listed(config: Mapping[str, object]) -> Iterator[AddedToken]:
    tokens = config["added_tokens_decoder"]
    try:
        if not isinstance(tokens, dict):
            raise TypeError(f"it is a {type(tokens).__name__}")
        for key, token in tokens.items():
            flags = {f: bool(token.get(f)) for f in ("special", "lstrip", "rstrip", "single_word")}
            normalized = bool(token.get("normalized", not flags["special"]))
            yield AddedToken(str(token["content"]), int(key), normalized=normalized, **flags)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TokenizerError(
            "tokenizer_config.json: added_tokens_decoder must map each id to an object with a"
            f" content; {error!r} came of it"
        ) from error


def _older(folder: Path, special: list[str]) -> Iterator[AddedToken]:
    path = folder / "added_tokens.json"
    for content, number in read_object(path).items():
        if not isinstance(number, int):
            raise TokenizerError(f"{path}: the id of {content!r} is {number!r}, not a number")
        known = content in special
        yield AddedToken(content, number, special=known, normalized=not known)
