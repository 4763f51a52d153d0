"""vLLM's `LLM`: prompts and its sampling parameters go in; its outputs come out."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

from ... import sampling
from ...engine import Engine
from ...engine_inputs import Prompt
from ...errors import CapacityError, ParameterError
from ...outputs import RequestOutput as EngineOutput
from .arguments import CALLS, check_only, check_others, default_params, dtype_name, model_folder
from .chat import Message, chat_text
from .inputs import given_prompts
from .outputs import RequestOutput, request_output
from .prefix import ConstantPrefix
from .sampling_params import SamplingParams
from .tokenizer import ModelTokenizer

LOG = logging.getLogger(__name__)
Params = SamplingParams | Sequence[SamplingParams] | None


class LLM:
    """A model as vLLM's offline callers open it. `engine` is the `Engine` behind it.

    Arguments that change results are honoured or refused (`arguments.ONLY`), those that change
    none are named once in a warning of this module's logger (`UNUSED`), unknown ones are errors.
    dtype: "auto" = as the checkpoint has it. max_num_seqs: how many samples run at the same time.
    seed: from it and a request's number comes the seed of each that has none, so a script run again
    draws the same. kv_cache_memory_bytes: None = as the engine has it. Errors are those of
    `Engine`; bad arguments and prompts are ValueErrors, as in vLLM.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        tokenizer: str | Path | None = None,
        dtype: object = "auto",
        seed: int | None = 0,
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        max_logprobs: int = 20,
        device: object = "auto",
        kv_cache_memory_bytes: int | None = None,
        download_dir: str | Path | None = None,
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        generation_config: str | Path = "auto",
        override_generation_config: Mapping[str, object] | None = None,
        **others: object,
    ) -> None:
        if unused := check_others(others):
            LOG.warning("of no meaning here, and so not used: %s", ", ".join(unused))
        folder = model_folder(model, tokenizer, revision, tokenizer_revision, download_dir)
        self._defaults = default_params(folder, generation_config, override_generation_config)
        sizes: dict[str, Any] = {} if max_num_seqs is None else {"max_batch": max_num_seqs}
        self.engine = Engine(
            folder,
            device=str(device),
            dtype=dtype_name(dtype),
            max_model_len=max_model_len,
            kv_cache_gib=None if kv_cache_memory_bytes is None else kv_cache_memory_bytes / 2**30,
            **sizes,
        )
        self._prefix = ConstantPrefix(self.engine)
        self._tokenizer = ModelTokenizer(self.engine.tokenizer, folder)
        self._max_logprobs = max_logprobs
        self._seed = seed or 0
        self._numbers = count()

    def generate(
        self,
        prompts: Any = None,
        sampling_params: Params = None,
        prompt_token_ids: Any = None,
        use_tqdm: object = True,
        **others: object,
    ) -> list[RequestOutput]:
        """Continue each prompt; one output a prompt, in order.

        prompts: a text, token ids, `{"prompt": …}`, `{"prompt_token_ids": …}`, or a list of them.
        sampling_params: for all, or one a prompt; None = the model's own defaults. What the prompts
        begin with in common is computed once, also in later calls. Ctrl-C ends the call.
        """
        check_only(others, CALLS)
        given = given_prompts(prompts, prompt_token_ids)
        each = self._each(sampling_params, len(given))
        encode = self.engine.tokenizer.encode_prompt
        ids = [encode(g.text or "") if g.ids is None else g.ids for g in given]
        numbers = [next(self._numbers) for _ in given]
        own = self._engine_params(each, numbers)
        arrival = time.time()
        self._prefix.follow(ids)
        found = self._run(ids, own, shown=bool(use_tqdm))
        return [
            request_output(
                output,
                params,
                self.engine.tokenizer,
                request_id=str(number),
                prompt=g.text,
                arrival=arrival,
            )
            for output, params, number, g in zip(found, each, numbers, given, strict=True)
        ]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: Params = None,
        use_tqdm: object = True,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **others: object,
    ) -> list[RequestOutput]:
        """Reply to one conversation or to each of several, in the model's chat template."""
        check_only(others, CALLS)
        several = bool(messages) and not isinstance(messages[0], Mapping)
        chats: Any = messages if several else [messages]
        prompts = []
        for chat in chats:
            text = chat_text(
                self.engine.tokenizer,
                chat,
                self._tokenizer.special_tokens_map,
                template=chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                more=chat_template_kwargs,
            )
            ids = self._tokenizer.encode(text, add_special_tokens=False)  # it wrote its own
            prompts.append({"prompt": text, "prompt_token_ids": ids})
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def get_tokenizer(self) -> ModelTokenizer:
        return self._tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What `generate` takes where it is given none: the model's generation_config.json."""
        return self._defaults.clone()

    def close(self) -> None:
        """Free the memory, as deleting it does. It cannot be used afterwards."""
        self.engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if "engine" in self.__dict__:  # else it was never opened
            self.close()

    def __getattr__(self, name: str) -> NoReturn:
        there = ", ".join(n for n in dir(type(self)) if not n.startswith("_"))
        raise AttributeError(f"LLM has no {name} here: there are engine, {there}")

    def _each(self, params: Params, count: int) -> list[SamplingParams]:
        """One for each of `count` prompts."""
        if params is None or isinstance(params, SamplingParams):
            return [params or self._defaults] * count
        each: list[Any] = list(params)
        if not all(isinstance(one, SamplingParams) for one in each):
            raise ParameterError("sampling_params must be vLLM's SamplingParams, or a list of them")
        if len(each) != count:
            raise ParameterError(f"sampling_params has {len(each)} entries for {count} prompts")
        return each

    def _engine_params(
        self, each: Sequence[SamplingParams], numbers: Sequence[int]
    ) -> list[sampling.SamplingParams]:
        limits = {"vocab_size": self.engine.config.vocab_size, "max_logprobs": self._max_logprobs}
        own = {id(params): params.engine_params(**limits) for params in each}
        if unused := dict.fromkeys(text for params in each for text in params.unused()):
            LOG.warning("of no meaning here, and so not used: %s", ", ".join(unused))
        pairs = zip((own[id(params)] for params in each), numbers, strict=True)
        return [p if p.seed is not None else self._seeded(p, number) for p, number in pairs]

    def _seeded(self, params: sampling.SamplingParams, number: int) -> sampling.SamplingParams:
        digest = hashlib.blake2b(f"{self._seed} {number}".encode(), digest_size=8).digest()
        return replace(params, seed=int.from_bytes(digest, "little"))

    def _run(
        self, ids: Sequence[Prompt], params: list[sampling.SamplingParams], *, shown: bool
    ) -> list[EngineOutput]:
        try:
            found = self.engine.generate(ids, params, progress=shown)
        except CapacityError:  # raised before anything ran; the kept prefix may be what is too much
            if not self._prefix.drop():
                raise
            found = self.engine.generate(ids, params, progress=shown)
        if not all(output.finished for output in found):
            raise KeyboardInterrupt  # the engine gives what there is; a script of vLLM must end
        return found
