"""The engine as a model of lm-evaluation-harness: its requests go in; log-likelihoods and texts
come out.

A request means what it means to the harness's own `hf`: its base class splits contexts from
continuations, its functions cut windows and read generation arguments. What runs together, and in
what order, is the engine's affair and changes no figure.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, warning_once
from tqdm import tqdm

from ...engine import Engine
from ...errors import ParameterError, PromptError
from ...scheduler_requests import Generation, Request, Scored
from . import chat
from .arguments import check_model_args, load_prompt, sampling_params

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

LOG = logging.getLogger(__name__)
HARNESS_DEVICE = "cuda:0"  # what its command line hands to every model where nobody named one
Result = TypeVar("Result")
Pair = tuple[tuple[str, str], list[int], list[int]]  # cache key, context, continuation


def _score(request: Request) -> tuple[float, bool]:
    """The log-probability of what it judges, and whether greedy decoding would give that."""
    scored = request.scored
    assert scored is not None
    found = scored.joined()
    # The likeliest token, the smallest id among equals: what greedy decoding chooses.
    greedy = bool((found.top_ids[:, 0] == scored.targets).all())
    return float(found.logprob.sum(dtype=np.float64)), greedy


@register_model("urial")
class UrialLM(TemplateLM):  # type: ignore[misc]  # the harness has no types
    """`--model urial --model_args pretrained=FOLDER,...`

    pretrained: a folder or a hub id. prompt: a URIAL prefix file, or `default`: every request
    continues that text, and --apply_chat_template renders chats in URIAL's form. max_length: a
    context shorter than the model's. add_bos_token: whether a text begins with BOS, where the
    tokenizer's configuration is not to decide. The others are those of `Engine`, which are all
    optional: device (on the command line --device), dtype, threads, isa, invariant, kv_cache_gib,
    max_batch, prefix_dir.

    The harness hands some to every model. Its device "cuda:0" means "auto" here, as it does to
    `hf`: the GPU where one can be used. Its batch sizes are not read: `max_batch` says how much
    runs at the same time, and no figure depends on it. ParameterError for all else.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        prompt: str | None = None,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        device: str = HARNESS_DEVICE,
        batch_size: object = None,
        max_batch_size: object = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        settings["device"] = "auto" if device == HARNESS_DEVICE else device
        given = {"pretrained": pretrained, "prompt": prompt, "max_length": max_length}
        check_model_args({**given, "add_bos_token": add_bos_token, **settings})
        if prompt is not None and add_bos_token is not None:
            raise ParameterError(
                f"add_bos_token={add_bos_token} with prompt={prompt!r}: a URIAL prefix begins as "
                "the tokenizer's configuration says; leave one of them out"
            )
        self.prompt = None if prompt is None else load_prompt(prompt)
        self.engine = Engine(pretrained, prefix=self.prompt, max_model_len=max_length, **settings)
        LOG.info("device %(device)s: %(device_reason)s", self.engine.info)
        self.tokenizer = self.engine.tokenizer
        self.max_length = self.engine.context
        self._add_bos = add_bos_token
        self._name = pretrained
        self._encode = self.tokenizer.encoder_after(self.engine.prefix)

    @property
    def eot_token_id(self) -> int:
        """The end of a text, and what an empty context is made of where there is no BOS."""
        if self.tokenizer.eos_token_id is None:
            raise ParameterError(f"the tokenizer of {self._name} has no EOS, which the task needs")
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """For the names of the harness's files of prepared requests: with what makes a prompt."""
        form = self.chat_template(True) or ""
        name = self._name.strip("/").replace("/", "__")
        return f"{name}-{hashlib.sha256(form.encode()).hexdigest()[:12]}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """What --apply_chat_template applies."""
        if self.prompt is None or not chat_template:
            template: str | None = super().chat_template(chat_template)
            return template
        return self.prompt.text + self.prompt.render("{query}")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        if self.prompt is not None:
            return chat.by_prompt(self.prompt, chat_history, answer_next=add_generation_prompt)
        return chat.by_template(self.tokenizer, chat_history, answer_next=add_generation_prompt)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results about the model."""
        return {"engine": self.engine.info}

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: object
    ) -> list[int]:
        """A text behind the URIAL prefix; without special tokens, the text alone."""
        if add_special_tokens is False:
            return self.tokenizer.encode(string, add_special_tokens=False)
        if self._add_bos is None:
            return self._encode(string)
        bos = self.tokenizer.bos_token_id
        ids = self.tokenizer.encode(string, add_special_tokens=False)
        if self._add_bos and bos is None:
            raise ParameterError(f"add_bos_token=True: the tokenizer of {self._name} has no BOS")
        return [bos, *ids] if self._add_bos and bos is not None and ids[:1] != [bos] else ids

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context:
            pair: tuple[list[int], list[int]] = super()._encode_pair(context, continuation)
            return pair
        ids, start = self.tok_encode(continuation), len(self.engine.prefix_ids)
        return ids[:start], ids[start:]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Of each continuation in nats, and whether greedy decoding would give it."""
        if self.prompt is None:  # an empty context is then BOS
            scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm)
            return scores
        pairs: list[Pair] = [(r.args, *self._encode_pair(*r.args)) for r in requests]
        return self._loglikelihood_tokens(pairs, disable_tqdm)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Of each whole text in nats, read in windows; each window follows the URIAL prefix."""
        own = [
            [self._scoring(*window, f"loglikelihood_rolling request {i}") for window in windows]
            for i, windows in enumerate(self._windows(request.args[0]) for request in requests)
        ]

        def total(i: int) -> float:
            logprob = sum((_score(window)[0] for window in own[i]), 0.0)
            self.cache_hook.add_partial("loglikelihood_rolling", requests[i].args, logprob)
            return logprob

        return self._run(own, total, "loglikelihood_rolling", disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Each text up to the first string of `until`.

        Sampled texts are the same in every run: request i of the call has the seed i, if none is
        given. In URIAL's form an answer also ends where URIAL ends it.
        """
        own = [self._generation(i, *request.args) for i, request in enumerate(requests)]

        def text(i: int) -> str:
            context, fields = requests[i].args
            answer = own[i].samples[0].output().text
            answer = chat.clean(self.prompt, context, answer) if self.prompt else answer
            answer = str(postprocess_generated_text(answer, fields.get("until"), None))
            self.cache_hook.add_partial("generate_until", requests[i].args, answer)
            return answer

        return self._run([[request] for request in own], text, "generate_until", disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = False, **kwargs: object
    ) -> list[tuple[float, bool]]:
        own = [
            [self._scoring(context, continuation, f"loglikelihood request {i}")]
            for i, (_, context, continuation) in enumerate(requests)
        ]

        def score(i: int) -> tuple[float, bool]:
            answer = _score(own[i][0])
            self.cache_hook.add_partial("loglikelihood", requests[i][0], answer)
            return answer

        return self._run(own, score, "loglikelihood", disable_tqdm)

    def _run(
        self,
        groups: Sequence[Sequence[Request]],
        result: Callable[[int], Result],
        what: str,
        disable_tqdm: bool,
    ) -> list[Result]:
        """What `result` makes of each group, as soon as it and all before it are finished."""
        results: list[Result] = []
        todo = deque(groups)
        title = f"Running {what} requests"
        with tqdm(total=len(groups), desc=title, disable=disable_tqdm) as bar:

            def take() -> None:
                while todo and all(own.finished and own.error is None for own in todo[0]):
                    todo.popleft()
                    results.append(result(len(results)))
                    bar.update(1)

            self.engine.run([own for group in groups for own in group], take)
            take()  # groups of nothing, behind which no step comes
        return results

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        before = self.engine.prefix_ids
        cut = get_rolling_token_windows(
            token_list=self.tok_encode(text)[len(before) :],
            prefix_token=before[-1] if before else self.prefix_token_id,
            max_seq_len=self.max_length - len(before),
            context_len=1,
        )
        pairs = [make_disjoint_window(pair) for pair in cut]
        if before and pairs:  # its last token stands before the first window already
            pairs[0] = ([], pairs[0][1])
        return [(before + context, continuation) for context, continuation in pairs]

    def _scoring(self, context: list[int], continuation: list[int], label: str) -> Request:
        ids = self._cut(context + continuation, self.max_length + 1)  # the last is never read
        start = len(ids) - len(continuation)
        least = max(len(self.engine.prefix_ids), 1)
        if not continuation or start < least:
            raise PromptError(
                f"{label}: {len(context)} tokens of context and {len(continuation)} to judge; each "
                f"needs one at least, and no more than {self.max_length + 1 - least} can be judged"
            )
        return Request(label, ids[:-1], start - 1, scored=Scored(continuation, top_k=1))

    def _generation(self, index: int, context: str, fields: dict[str, Any]) -> Generation:
        stop = self.prompt.stop if self.prompt and chat.OPENS in context else ()
        params = sampling_params(fields, self.tokenizer, stop=stop, seed=index)
        ids = self._cut(self.tok_encode(context), self.max_length - (params.max_tokens or 0))
        return self.engine.generation(ids, params, f"generate_until request {index}")

    def _cut(self, ids: list[int], room: int) -> list[int]:
        """Without the first of what follows the URIAL prefix, where there is not so much room."""
        kept = len(self.engine.prefix_ids)
        if len(ids) <= room:
            return ids
        if room <= kept:
            raise PromptError(
                f"a context of {self.max_length} tokens leaves {room} for the prompt"
                + (f", and the URIAL prefix alone has {kept}" if kept else "")
                + ": generate fewer tokens, or take a model with a longer context"
            )
        warning_once(LOG, f"requests longer than {room} tokens are cut from the left")
        return ids[:kept] + ids[len(ids) - room + kept :]
