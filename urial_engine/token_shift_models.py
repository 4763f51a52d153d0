"""Two models that are not open yet: their paths, options and prompts; engines and heads come out.

What a plan needs of them (tokenizers and configurations) is read without their weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .checkpoint import Checkpoint, resolve
from .engine import Engine
from .engine_inputs import context_length
from .errors import ParameterError
from .head import Head
from .outputs import I32
from .prompt import UrialPrompt
from .token_shift_plan import Side
from .tokenizer import Tokenizer

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja", "chat_template.json"),
)


@dataclass(frozen=True)
class Model:
    """One of the two. `options` are those of `Engine`, `prompts` what it will read, by name."""

    path: str
    options: Mapping[str, Any]
    prompts: Mapping[str, Any]

    def side(self, name: str) -> Side:
        """Its texts. Errors as `Engine`."""
        with Checkpoint.open(self.path) as checkpoint:
            config, tokenizer = checkpoint.config, Tokenizer.load(checkpoint.folder)
        tokenizer.check_fits(config.vocab_size)
        context = context_length(config, self.options.get("max_model_len"))
        return Side(name, tokenizer, context, config.vocab_size, dict(self.prompts))

    @property
    def name(self) -> str:
        """A hub id as it is, a folder by its own name."""
        folder = Path(self.path)
        return folder.resolve().name if folder.exists() else self.path

    def tokenizer_files(self) -> dict[str, str]:
        """Hashes of all files that say how a text is cut, its chat template included."""
        folder = resolve(self.path)
        paths = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest()[:32] for p in paths}

    def open(self) -> Engine:
        """With the first of its URIAL prompts as prefix, which is then computed only once."""
        prefixes = [p for p in self.prompts.values() if isinstance(p, UrialPrompt) and p.text]
        options = dict(self.options)
        if not prefixes:  # nothing to keep on a disk
            options.pop("prefix_dir", None)
        return Engine(self.path, prefix=prefixes[0] if prefixes else None, **options)

    def open_head(self, rows: I32 | None) -> Head:
        """Its head alone."""
        names = ("device", "dtype", "threads", "isa", "invariant")
        return Head(
            self.path, rows=rows, **{n: self.options[n] for n in names if n in self.options}
        )


@dataclass(frozen=True)
class Models:
    """The pair. `sequential`: never both in memory; the aligned model comes first."""

    base: Model
    aligned: Model
    sequential: bool = False

    def __post_init__(self) -> None:
        if self.sequential and self.one:
            raise ParameterError("sequential is for two models; base and aligned are the same")

    @property
    def names(self) -> dict[str, str]:
        """How the two were called when the run was begun."""
        return {"base_model": self.base.name, "aligned_model": self.aligned.name}

    @property
    def one(self) -> bool:
        """Whether both are the same model, which is then opened once."""
        mine, theirs = self.base.path, self.aligned.path
        return mine == theirs or Path(mine).resolve() == Path(theirs).resolve()

    @contextmanager
    def opened(self) -> Iterator[tuple[Engine, Engine]]:
        """(base, aligned), both in memory."""
        with ExitStack() as stack:
            both = {**self.aligned.prompts, **self.base.prompts} if self.one else self.base.prompts
            base = stack.enter_context(replace(self.base, prompts=both).open())
            yield base, base if self.one else stack.enter_context(self.aligned.open())
