"""A model opened to run: its backend, its cache, the requests made for it, and who runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from .backends import choose_device, open_backend
from .backends.base import I32
from .checkpoint import Checkpoint
from .engine_inputs import (
    Prompt,
    PromptReader,
    check_top,
    context_length,
)
from .engine_outputs import about, identity
from .engine_prefix import Pinning, Prefix
from .engine_runner import Runner
from .errors import ParameterError, PromptError
from .head import Head
from .kv_cache import KVCache, common_run
from .kv_cache_budget import cache_blocks
from .prompt import UrialPrompt
from .sampling import SamplingParams, fresh_seed
from .scheduler import Scheduler
from .scheduler_requests import Generation, Request, Scored
from .tokenizer import Tokenizer
from .weights import Weights

E = TypeVar("E", bound="EngineBase")


class Load(NamedTuple):
    """How busy an engine is."""

    waiting: int  # sequences
    running: int
    blocks: int  # of the cache
    available: int  # of these, that nobody uses


class EngineBase:
    """What `Engine` stands on, for who takes requests into his own hands: make them (`generation`,
    `scoring`), then `run` them, or `submit` them and make the steps."""

    def __init__(
        self,
        model: str | Path,
        *,
        prefix: str | UrialPrompt | None = None,
        device: str = "auto",
        dtype: str = "auto",
        threads: int | None = None,
        isa: str = "auto",
        kv_cache_gib: float | None = None,
        max_batch: int = 32,
        prefix_dir: str | Path | None = None,
        max_model_len: int | None = None,
        chunk: int = 512,
        invariant: bool = False,
    ) -> None:
        for name, value in (("max_batch", max_batch), ("chunk", chunk)):
            if value < 1:
                raise ParameterError(f"{name}={value}: must be at least 1")
        if prefix_dir is not None and not prefix:
            raise ParameterError(f"prefix_dir={str(prefix_dir)!r} without a prefix to keep in it")
        self.prompt = prefix if isinstance(prefix, UrialPrompt) else None
        self.prefix = prefix.text if isinstance(prefix, UrialPrompt) else prefix or ""
        with Checkpoint.open(model) as checkpoint:
            self.config = checkpoint.config
            self.context = context_length(self.config, max_model_len)
            self.tokenizer = Tokenizer.load(checkpoint.folder)
            self.tokenizer.check_fits(self.config.vocab_size)
            weights = Weights.open(checkpoint)
            device, reason = choose_device(device)
            how: dict[str, Any] = {"dtype": dtype, "threads": threads, "isa": isa}
            how["invariant"] = invariant
            self.backend = open_backend(device, weights, **how)
            self._head = partial(Head, model, device=device, **how)
        try:
            self._open(weights, kv_cache_gib, max_batch, chunk, prefix_dir)
            self.info["device_reason"] = reason
        except BaseException:
            self.backend.close()
            raise

    def _open(
        self,
        weights: Weights,
        gib: float | None,
        max_batch: int,
        chunk: int,
        prefix_dir: str | Path | None,
    ) -> None:
        """The cache, what runs on it, and the prefix in it."""
        backend = self.backend
        most = (max_batch + 1) * -(-self.context // backend.block_size)  # each of full length
        room = backend.cache_room(max_batch, self.context, chunk)
        blocks = cache_blocks(gib, block_bytes=backend.block_bytes, most=most, room=room)
        backend.allocate(blocks)
        cache = KVCache(backend, blocks)
        self._scheduler = Scheduler(
            backend, cache, self.tokenizer, max_batch=max_batch, chunk=chunk
        )
        self._runner = Runner(self._scheduler)
        self._reader = self._reader_after("")
        ends = {*self.config.eos_token_ids, self.tokenizer.eos_token_id}
        self._eos = frozenset(t for t in ends if t is not None and t < self.config.vocab_size)
        self.info = about(backend, weights, blocks) | {"context": self.context}
        self.prefix_ids: list[int] = []
        self._cache = cache
        self.max_batch = max_batch
        self._pinning = Pinning(backend, cache, self._runner, weights.fingerprint)
        self._own: Prefix | None = None
        if self.prefix:
            self._own = self.pin(self.prefix, prefix_dir)
            self._reader = self._own.reader
            self.info |= self._own.info
            self.prefix_ids = self._own.ids

    @property
    def identity(self) -> dict[str, object]:
        """All of it that changes the bits of a result, beside the prefix."""
        return identity(self.info, self.config, self.tokenizer)

    def open_head(self, rows: I32 | None = None) -> Head:
        """The model's head once more, by itself; `rows` as `Head` has them."""
        return self._head(rows=rows)

    def exclusive(self) -> AbstractContextManager[None]:
        """Nobody else works meanwhile: for who calls the backend itself."""
        return self._runner.exclusive()

    def generation(
        self,
        prompt: Prompt,
        params: SamplingParams,
        label: str,
        *,
        stream: bool = False,
        prefix: Prefix | None = None,
    ) -> Generation:
        """A checked request for `run` or `submit`; `label` names it in errors.

        A text continues `prefix`, by default the engine's own.
        """
        ids = self.token_ids(prompt, label, prefix)
        for name in ("logprobs", "prompt_logprobs"):
            check_top(name, getattr(params, name) or 0, self.backend)
        if outside := [t for t in params.stop_token_ids if t >= self.config.vocab_size]:
            raise ParameterError(
                f"stop_token_ids={outside}: the vocabulary has {self.config.vocab_size} tokens"
            )
        room = self.context - len(ids)
        return Generation(
            label,
            ids,
            params,
            seed=fresh_seed() if params.seed is None else params.seed,
            max_tokens=room if params.max_tokens is None else min(params.max_tokens, room),
            prefix=common_run(prefix.ids if prefix else self.prefix_ids, ids),
            eos=self._eos,
            tokenizer=self.tokenizer,
            stream=stream,
        )

    def token_ids(self, prompt: Prompt, label: str, prefix: Prefix | None = None) -> list[int]:
        """What the model reads: all of it, that of `prefix` (by default the engine's own) too."""
        return self._after(prefix, prompt, label).read(prompt, label, room=1)

    def scoring(
        self,
        prompt: Prompt,
        continuation: Prompt,
        top_k: int,
        label: str,
        *,
        prefix: Prefix | None = None,
        urgent: bool = False,
    ) -> Request:
        """A checked request for `run` or `submit`, as `score` makes them. `urgent`: the next to be
        read, whoever else waits."""
        check_top("top_k", top_k, self.backend)
        ids, start = self._after(prefix, prompt, label).read_pair(prompt, continuation, label)
        scored = Scored(ids[start:], top_k)
        return Request(label, ids[:-1], start - 1, scored=scored, urgent=urgent)

    def run(
        self, requests: Sequence[Request], after_step: Callable[[], None] | None = None
    ) -> None:
        """Until all are finished; for who takes each result as it comes, in `after_step`."""
        self._runner.run(requests, after_step)

    def submit(self, request: Request) -> None:
        """For who makes the steps by himself. CapacityError where it can never run."""
        self._runner.submit(request)

    def step(self) -> bool:
        """One step for all that was submitted; False where nothing is left to do."""
        return self._runner.step()

    def cancel(self, request: Request) -> None:
        """It ends with what it has, at the next step. Any thread, at any time."""
        self._runner.cancel(request)

    @property
    def load(self) -> Load:
        return Load(*self._scheduler.load, self._cache.blocks, self._cache.available)

    def pin(
        self,
        prefix: str | UrialPrompt | Sequence[int],
        folder: str | Path | None = None,
        *,
        spare: int = 1,
    ) -> Prefix:
        """Compute a prefix once, or restore it from `folder`, and keep it until `unpin`.

        Prompts find it by themselves, as they do everything in the cache. CapacityError where there
        is no room for it and `spare` tokens of others; PrefixStoreError where it must be stored and
        cannot be.
        """
        text = prefix.text if isinstance(prefix, UrialPrompt) else prefix
        reader = self._reader_after(text if isinstance(text, str) else "")
        ids = reader.read("" if isinstance(text, str) else text, "the prefix", room=1)
        leaf, info = self._pinning.pin(ids, folder, spare)
        return Prefix(text if isinstance(text, str) else None, ids, reader, leaf, info)

    def capacity(self, ids: list[int], rows_from: int) -> int:
        """How many tokens a text that begins with `ids`, and is read from `rows_from` on, can have:
        as many as the context, or as the cache holds beside all that is pinned."""
        return min(self.context, self._cache.room(ids, rows_from) * self._cache.block_size)

    def unpin(self, prefix: Prefix) -> None:
        """From now on it gives way to what needs its memory."""
        self._pinning.unpin(prefix.leaf)

    def _reader_after(self, prefix: str) -> PromptReader:
        return PromptReader(self.tokenizer, prefix, self.config.vocab_size, self.context)

    def _after(self, prefix: Prefix | None, prompt: Prompt, label: str) -> PromptReader:
        if prefix is not None and prefix.text is None and isinstance(prompt, str):
            raise PromptError(f"{label}: no text continues a prefix of token ids; give ids")
        return prefix.reader if prefix else self._reader

    def close(self) -> None:
        """Free the weights, the cache and the threads. Any use after that is an UrialError."""
        self._runner.close(self.backend.close)

    def __enter__(self: E) -> E:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
