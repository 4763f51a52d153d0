"""The errors a user can meet. Each is raised at the door, names the thing, shows the values on
both sides and says what to do.

A caller who does not care which catches `UrialError`; each class also derives from the built-in
that a Python user expects.
"""

from __future__ import annotations

from collections.abc import Sequence


class UrialError(Exception):
    """Base of every error that the engine raises on purpose.

    `outputs`: where it ended a call of `generate`, the `RequestOutput`s as far as they came.
    """

    outputs: Sequence[object] = ()


class ConfigError(UrialError, ValueError):
    """`config.json` asks for mathematics that is not implemented, or contradicts itself."""


class CheckpointError(UrialError, ValueError):
    """A file of the checkpoint is missing, damaged, or does not hold the tensors that its
    configuration needs."""


class TokenizerError(UrialError, ValueError):
    """The tokenizer's files are missing, damaged, or do not fit the model."""


class ParameterError(UrialError, ValueError):
    """A parameter (sampling, engine, command line) has a value that cannot be honoured."""


class PromptError(UrialError, ValueError):
    """A prompt cannot be run: empty, longer than the context, token ids outside the vocabulary."""


class ContextError(PromptError):
    """A prompt is longer than the context."""


class CapacityError(UrialError, MemoryError):
    """The KV-cache budget can never hold what is asked for."""


class NumericsError(UrialError, ArithmeticError):
    """A value that is not finite appeared in the forward pass. `layer` is -1 for the
    embedding, None for the head.

    `row` counts rows of the call, and positions of the text once the engine has translated it.
    """

    def __init__(self, message: str, *, layer: int | None, row: int) -> None:
        super().__init__(message)
        self.layer = layer
        self.row = row


class PrefixStoreError(UrialError, OSError):
    """The prefix folder cannot be written or read."""


class DeviceError(UrialError, RuntimeError):
    """A GPU cannot be used, or failed while it was."""
