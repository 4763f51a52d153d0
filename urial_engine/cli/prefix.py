"""`prefix`: what a folder of stored prefixes holds, and how it gets in and out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ParameterError, PrefixStoreError
from .options import (
    EngineOptions,
    Model,
    PromptOption,
    console,
    note,
    urial_prompt,
    with_options,
)

if TYPE_CHECKING:
    from ..prefix_store import StoredPrefix

Folder = Annotated[
    Path, typer.Option("--prefix-dir", file_okay=False, exists=True, help="Of stored prefixes.")
]


@with_options
def store(model: Model, engine: EngineOptions, prompt: PromptOption = "default") -> None:
    """Compute a prefix and store it, unless it is there."""
    if engine.prefix_dir is None:
        raise ParameterError("give --prefix-dir, the folder to store the prefix in")
    with engine.open(model, urial_prompt(prompt)) as opened:
        info = opened.info
    console().print(
        f"{info['prefix_tokens']} tokens {info['prefix_source']} in "
        f"{info['prefix_seconds']:.2f} s; {engine.prefix_dir} has them"
    )


def list_stored(folder: Folder) -> None:
    """What is stored."""
    from rich.table import Table

    table = Table("file", "tokens", "MB", "backend", "dtype", "weights")
    for path in _paths(folder):
        stored = _open(path)
        if isinstance(stored, PrefixStoreError):
            table.add_row(path.name, "damaged")
            continue
        print_ = stored.fingerprint
        table.add_row(
            path.name,
            str(stored.tokens),
            f"{stored.bytes / 1e6:.1f}",
            f"{print_.backend} {print_.variant}",
            print_.dtype,
            print_.weights[:12],
        )
    console().print(table)


def verify(folder: Folder) -> None:
    """Read every stored prefix and compare it with its checksum. Exit code 1 where one differs."""
    damaged = 0
    for path in _paths(folder):
        stored = _open(path, verify=True)
        bad = isinstance(stored, PrefixStoreError)
        damaged += bad
        console().print(str(stored) if bad else f"{path.name}: whole", soft_wrap=True)
    if damaged:
        note(f"{damaged} damaged; the next engine that wants one replaces it")
        raise typer.Exit(1)


def clear(folder: Folder) -> None:
    """Remove all stored prefixes."""
    from ..prefix_store import PrefixStore

    console().print(f"{PrefixStore(folder).clear()} removed")


def _paths(folder: Path) -> list[Path]:
    from ..prefix_store import PrefixStore

    return PrefixStore(folder).paths()


def _open(path: Path, *, verify: bool = False) -> StoredPrefix | PrefixStoreError:
    from ..prefix_store import StoredPrefix

    try:
        stored = StoredPrefix.open(path)
        if verify:
            stored.verify()
    except PrefixStoreError as error:
        return error
    return stored
