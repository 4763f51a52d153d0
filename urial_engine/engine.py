"""The engine: enters a model and prompts, leaves answers, scores and hidden states.

It reads what callers pass, hands requests to the scheduler, and turns the results into outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from .backends.base import F32
from .engine_base import EngineBase
from .engine_inputs import (
    Prompt,
    as_list,
    check_top,
    each_params,
)
from .engine_outputs import request_outputs, score_output
from .engine_progress import progress_bar
from .errors import ParameterError, PromptError, UrialError
from .outputs import RequestOutput, ScoreOutput, StreamEvent
from .sampling import FOR_PEOPLE, SamplingParams
from .scheduler_requests import Request


class Engine(EngineBase):
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
