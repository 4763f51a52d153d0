"""Parsed JSON and a key go in; a value of the right type, or a `ConfigError`, comes out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from .errors import ConfigError

Json = Mapping[str, object]


def read_json(path: Path) -> Json:
    """The object that a JSON file holds."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def size(d: Json, key: str, default: int | None = None) -> int:
    """A positive whole number. Without a default the key must be there."""
    value = _present(d, key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{key} = {value!r} must be a positive whole number")
    return value


def optional_size(d: Json, key: str, default: int | None = None) -> int | None:
    """A positive whole number; null is None, and an absent key is the default."""
    return None if d.get(key, default) is None else size(d, key, default)


def number(d: Json, key: str, default: float | None = None) -> float:
    """A positive finite number. Without a default the key must be there."""
    value = _present(d, key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{key} = {value!r} must be a number")
    if not 0 < value < math.inf:
        raise ConfigError(f"{key} = {value!r} must be positive and finite")
    return float(value)


def boolean(d: Json, key: str) -> bool:
    """true or false; false where the key is absent."""
    value = d.get(key, False)
    if not isinstance(value, bool):
        raise ConfigError(f"{key} = {value!r} must be true or false")
    return value


def token_ids(d: Json, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """A token id, a list of them, or null for none."""
    value = d.get(key, list(default))
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise ConfigError(f"{key} = {value!r} must be a token id, a list of them, or null")
    return tuple(ids)


def _present(d: Json, key: str, default: object) -> object:
    if default is None and key not in d:
        raise ConfigError(f"{key} is missing")
    return d.get(key, default)
