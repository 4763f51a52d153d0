"""Llama and Mistral inference with a constant URIAL prefix, and exact token shift.

The public names, each imported at first use: `import urial_engine` itself loads nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .engine import Engine as Engine
    from .errors import UrialError as UrialError
    from .outputs import CompletionOutput as CompletionOutput
    from .outputs import RequestOutput as RequestOutput
    from .outputs import ScoreOutput as ScoreOutput
    from .prompt import UrialPrompt as UrialPrompt
    from .sampling import SamplingParams as SamplingParams
    from .token_shift import token_shift as token_shift
    from .token_shift_result import TokenShift as TokenShift

_HOME = {
    "CompletionOutput": "outputs",
    "Engine": "engine",
    "RequestOutput": "outputs",
    "SamplingParams": "sampling",
    "ScoreOutput": "outputs",
    "UrialError": "errors",
    "UrialPrompt": "prompt",
    "TokenShift": "token_shift_result",
    "token_shift": "token_shift",
}
__all__ = sorted(_HOME)


class _Package(ModuleType):
    """This package. Its `token_shift` is always the function, never the module of that name."""

    def __getattr__(self, name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)

    def __setattr__(self, name: str, value: object) -> None:
        # The import system binds a submodule to its package under its own name.
        if name in _HOME and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_HOME})


sys.modules[__name__].__class__ = _Package
