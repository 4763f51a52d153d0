"""Rotary position embedding: its part of `config.json` goes in, frequencies and tables come out.

Letters: D head size. Transformers has written the same settings in two places over the years,
`rope_scaling` beside `rope_theta`, and `rope_parameters`; both are read, and must not disagree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError
from .json_values import Json, number, size

F32 = NDArray[np.float32]

KINDS = ("default", "linear", "llama3")
_FACTORS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
_CONTEXT = "original_max_position_embeddings"


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotation of all D dimensions of a head, in two halves as Hugging Face lays them out."""

    kind: str  # one of KINDS
    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192

    def inverse_frequencies(self, head_dim: int) -> F32:
        """Radians per position, [D/2]: float32 at every step, as transformers computes them."""
        exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)  # [D/2]
        # The power is taken in fp64 and rounded once: float32 powers differ between machines.
        power = np.float64(np.float32(self.theta)) ** exponent.astype(np.float64)
        inverse: F32 = np.float32(1) / power.astype(np.float32)  # [D/2]
        if self.kind == "linear":
            inverse = inverse / np.float32(self.factor)
        return self._stretch(inverse) if self.kind == "llama3" else inverse

    def _stretch(self, inverse: F32) -> F32:
        """Llama 3.1: divide low frequencies by `factor`, keep high ones, blend those between."""
        wavelength = np.float32(2 * math.pi) * (np.float32(1) / inverse)  # [D/2] positions a turn
        low, high = np.float32(self.low_freq_factor), np.float32(self.high_freq_factor)
        context = np.float32(self.original_context)
        slow, fast = wavelength > context / low, wavelength < context / high
        share = (context * (np.float32(1) / wavelength) - low) / (high - low)
        blend = (np.float32(1) - share) * inverse / np.float32(self.factor) + share * inverse
        return np.where(slow, inverse / np.float32(self.factor), np.where(fast, inverse, blend))

    def tables(self, head_dim: int, positions: int) -> tuple[F32, F32]:
        """(cos, sin), each [positions, D/2], of positions 0 ... positions - 1.

        The angle is a float32 product, as in transformers; cosine and sine are rounded once.
        """
        steps = np.arange(positions, dtype=np.float32)
        angle = steps[:, None] * self.inverse_frequencies(head_dim)  # [positions, D/2]
        exact = angle.astype(np.float64)
        return np.cos(exact).astype(np.float32), np.sin(exact).astype(np.float32)


def read_rope(d: Json, max_positions: int) -> tuple[RopeConfig, tuple[str, ...]]:
    """What `config.json` says, and the names in it that no kind of RoPE here reads."""
    keys = [key for key in ("rope_scaling", "rope_parameters") if d.get(key)] or ["rope_scaling"]
    read = [_read_one(key, d.get(key) or {}, d, max_positions) for key in keys]
    if read[0][0] != read[-1][0]:
        both = " contradicts ".join(f"{key} = {d[key]!r}" for key in keys)
        raise ConfigError(f"{both}; keep the one that is right")
    return read[0][0], tuple(name for _, unread in read for name in unread)


def _read_one(key: str, entry: object, d: Json, max_positions: int) -> tuple[RopeConfig, list[str]]:
    if not isinstance(entry, dict):
        raise ConfigError(f"{key} = {entry!r} must be an object")
    kind = _agreed(key, entry, "rope_type", entry, "type", "default")
    if kind not in KINDS:
        known = ", ".join(KINDS)
        raise ConfigError(f"{key}.rope_type = {kind!r} is not implemented (known: {known})")
    if (part := entry.get("partial_rotary_factor")) not in (None, 1):
        raise ConfigError(f"{key}.partial_rotary_factor = {part!r} is not implemented")
    if nested := [name for name, value in entry.items() if isinstance(value, dict)]:
        raise ConfigError(f"{key}.{nested[0]}: a RoPE for each layer type is not implemented")
    theta = _agreed(key, entry, "rope_theta", d, "rope_theta", 10000.0)
    named = {f"{key}.{name}": value for name, value in entry.items()}  # for errors that say where
    factors: dict[str, Any] = {name: number(named, f"{key}.{name}") for name in _FACTORS[str(kind)]}
    rope = replace(RopeConfig(str(kind), number({"rope_theta": theta}, "rope_theta")), **factors)
    used = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *factors}
    if kind == "llama3":
        if rope.low_freq_factor >= rope.high_freq_factor:
            raise ConfigError(f"{key} = {entry!r}: low_freq_factor must be below high_freq_factor")
        context = _agreed(key, entry, _CONTEXT, d, _CONTEXT, max_positions)
        rope = replace(rope, original_context=size({_CONTEXT: context}, _CONTEXT))
        used.add(_CONTEXT)
    return rope, sorted(f"{key}.{name}" for name in entry if name not in used)


def _agreed(key: str, entry: Json, name: str, other: Json, alias: str, default: object) -> object:
    """A setting that may stand in two places (null: it does not); two values are refused."""
    first, second = entry.get(name), other.get(alias)
    if first is not None and second is not None and first != second:
        raise ConfigError(
            f"{key}.{name} = {first!r} contradicts {alias} = {second!r}; keep the one that is right"
        )
    return next((value for value in (first, second) if value is not None), default)
