"""The engine: enters a model and prompts, leaves answers, scores and hidden states.

It reads what callers pass, hands requests to the scheduler, and turns the results into outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .backends import choose_device, open_backend
from .backends.base import F32, I32
from .checkpoint import Checkpoint
from .engine_inputs import (
    Prompt,
    PromptReader,
    as_list,
    check_top,
    context_length,
    each_params,
)
from .engine_outputs import about, identity, request_outputs, score_output
from .engine_prefix import pin_prefix
from .engine_progress import progress_bar
from .engine_runner import Runner
from .errors import ParameterError, PromptError, UrialError
from .head import Head
from .kv_cache import KVCache, common_run
from .kv_cache_budget import cache_blocks
from .outputs import RequestOutput, ScoreOutput, StreamEvent
from .prompt import UrialPrompt
from .sampling import FOR_PEOPLE, SamplingParams, fresh_seed
from .scheduler import Scheduler
from .scheduler_requests import Generation, Request, Scored
from .tokenizer import Tokenizer
from .weights import Weights


class Engine:
    """One model, ready to run.

    model: a folder or a hub id. prefix: a text (or UrialPrompt) that every text prompt continues;
    its keys and values are computed once, and kept in `prefix_dir` if that is given. device: "cpu",
    "cuda", "cuda:1", "reference", or "auto" for a GPU where one can be used, else the CPU (`info`
    says why). dtype, threads, isa: as the device has them. kv_cache_gib: None = as much as the
    device can spare, and no more than max_batch texts of full length can use. max_batch: how many
    samples run at the same time. max_model_len: a context shorter than the model's. chunk: prompt
    tokens read in one step, and half as many while others wait for their next token. invariant: on
    a GPU, no bit of a result depends on the batch; on a CPU none ever does.

    Threads may share an engine. Errors are those of `urial_engine.errors`.
    """

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
        backend, vocab_size = self.backend, self.config.vocab_size
        most = (max_batch + 1) * -(-self.context // backend.block_size)  # each of full length
        room = backend.cache_room(max_batch, self.context, chunk)
        blocks = cache_blocks(gib, block_bytes=backend.block_bytes, most=most, room=room)
        backend.allocate(blocks)
        cache = KVCache(backend, blocks)
        self._scheduler = Scheduler(
            backend, cache, self.tokenizer, max_batch=max_batch, chunk=chunk
        )
        self._runner = Runner(self._scheduler)
        self._reader = PromptReader(self.tokenizer, self.prefix, vocab_size, self.context)
        ends = {*self.config.eos_token_ids, self.tokenizer.eos_token_id}
        self._eos = frozenset(t for t in ends if t is not None and t < vocab_size)
        self.info = about(backend, weights, blocks) | {"context": self.context}
        self.prefix_ids: list[int] = []
        if self.prefix:
            ids = self._reader.read("", "the prefix", room=1)
            read = Request("the prefix", ids, rows_from=len(ids))
            self.info |= pin_prefix(
                ids,
                backend,
                cache,
                lambda: self._runner.run([read]),
                folder=prefix_dir,
                weights=weights.fingerprint,
            )
            self.prefix_ids = ids

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Continue each prompt; one output a prompt, in order.

        A prompt is a text, which continues the engine's prefix and is tokenised together with it,
        or a list of token ids, which is taken as it is: the whole prompt. `params` is for all, or
        one a prompt. `progress` shows a bar. Ctrl-C ends the call with what is there:
        `finish_reason` of unfinished samples is "abort".

        PromptError, ParameterError or CapacityError before anything runs; NumericsError, which
        names the prompt, when all others are finished; DeviceError where a GPU fails. The last two
        carry what there is in `outputs`.
        """
        items = as_list(prompts)
        each = each_params(params, len(items))
        requests = [
            self.generation(item, own, f"prompts[{i}]")
            for i, (item, own) in enumerate(zip(items, each, strict=True))
        ]

        try:
            with progress_bar(requests, shown=progress) as show, suppress(KeyboardInterrupt):
                self._runner.run(requests, show)
        except UrialError as error:
            error.outputs = request_outputs(requests, items, self.tokenizer)
            raise
        return request_outputs(requests, items, self.tokenizer)

    def answer(
        self, queries: str | Sequence[str], params: SamplingParams | None = None
    ) -> list[str]:
        """The cleaned answer to each query, under the engine's UrialPrompt.

        URIAL's stop strings are added to those of `params`. ParameterError where the engine was
        opened without a UrialPrompt.
        """
        if self.prompt is None:
            raise ParameterError("answer() needs an engine with prefix=UrialPrompt(...)")
        params = params or FOR_PEOPLE
        if params.n != 1:
            raise ParameterError(f"n={params.n}: answer() gives one answer a query; use generate()")
        params = replace(params, stop=(*params.stop_strings, *self.prompt.stop))
        queries = [queries] if isinstance(queries, str) else queries
        outputs = self.generate([self.prompt.render(query) for query in queries], params)
        if not all(output.finished for output in outputs):
            raise KeyboardInterrupt  # generate() came back early; a text cannot say that it is cut
        return [self.prompt.clean(output.outputs[0].text) for output in outputs]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[StreamEvent]:
        """One prompt, an event a token, errors as `generate`.

        Work begins with the first `next`; closing the iterator ends it and frees its cache.
        """
        request = self.generation(prompt, params or SamplingParams(), "the prompt", stream=True)
        with self._runner.exclusive():
            self._scheduler.check(request)
        return self._runner.events(request)

    def score(
        self,
        prompts: Prompt | Sequence[Prompt],
        continuations: Prompt | Sequence[Prompt],
        top_k: int = 0,
    ) -> list[ScoreOutput]:
        """What the model says of each token of each continuation, given all before it, in one pass.

        A text prompt continues the engine's prefix. Prompt and continuation, both texts, are
        tokenised as one; the continuation's tokens are those after as many as the prompt has alone
        (the convention of lm-eval). Where either is given as token ids, the other is tokenised by
        itself, and ids stay as they are. `top_k`: how many of the likeliest tokens to report.

        PromptError where either is empty or both are longer than the context; else as `generate`.
        """
        pairs = [as_list(prompts), as_list(continuations)]
        if len(pairs[0]) != len(pairs[1]):
            raise PromptError(f"{len(pairs[0])} prompts, {len(pairs[1])} continuations: not pairs")
        check_top("top_k", top_k, self.backend)
        requests = [
            self.scoring(prompt, continuation, top_k, f"prompts[{i}]")
            for i, (prompt, continuation) in enumerate(zip(*pairs, strict=True))
        ]
        self.run(requests)
        return [score_output(request.scored) for request in requests if request.scored]

    def hidden_states(
        self,
        ids_list: Sequence[Sequence[int]],
        first_positions: Sequence[int],
        labels: Sequence[str] | None = None,
    ) -> list[F32]:
        """For each text of ids the hidden states [n, C] of its positions first .. end; `labels`
        name them in errors."""
        requests = []
        for i, (ids, first) in enumerate(zip(ids_list, first_positions, strict=True)):
            label = labels[i] if labels else f"ids_list[{i}]"
            own = self._reader.read_from(ids, first, label)
            requests.append(Request(label, own, first, keep=True))
        self._runner.run(requests)
        return [np.concatenate(request.kept or []) for request in requests]

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

    def close(self) -> None:
        """Free the weights, the cache and the threads. Any use after that is an UrialError."""
        self._runner.close(self.backend.close)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def generation(
        self, prompt: Prompt, params: SamplingParams, label: str, *, stream: bool = False
    ) -> Generation:
        """A checked request for `run`; `label` names it in errors."""
        ids = self._reader.read(prompt, label, room=1)
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
            prefix=common_run(self.prefix_ids, ids),
            eos=self._eos,
            tokenizer=self.tokenizer,
            stream=stream,
        )

    def scoring(self, prompt: Prompt, continuation: Prompt, top_k: int, label: str) -> Request:
        """A checked request for `run`, as `score` makes them."""
        check_top("top_k", top_k, self.backend)
        ids, start = self._reader.read_pair(prompt, continuation, label)
        return Request(label, ids[:-1], start - 1, scored=Scored(ids[start:], top_k))

    def run(
        self, requests: Sequence[Request], after_step: Callable[[], None] | None = None
    ) -> None:
        """Until all are finished; for who takes each result as it comes, in `after_step`."""
        self._runner.run(requests, after_step)
