"""The native module as the type checker sees it: csrc/bindings.cpp documents what it holds."""

from typing import Any

def __getattr__(name: str) -> Any: ...
