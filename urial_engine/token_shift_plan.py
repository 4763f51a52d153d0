"""What a token shift will ask of two models: tokenizers and prompts go in, contexts come out.

All of it is known before a model runs, so what cannot be done is refused here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import ParameterError, PromptError
from .prompt import UrialPrompt, prompt_form
from .shift_data import Answer, Context
from .sources import Probe
from .token_shift_published import published_context
from .token_shift_vocabulary import SharedVocabulary
from .tokenizer import Tokenizer

SAME = "same"  # the base model reads what the aligned one does
GIVEN = "given"  # the text that stands beside the answer in its file


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two models, as far as its texts are concerned. `prompts` by name; what they may
    be says `prompt_form`, and SAME (of the base) and GIVEN beside it."""

    tokenizer: Tokenizer
    context: int  # tokens of a text, at most
    vocab_size: int
    prompts: dict[str, Any]

    def read(self, probe: Probe) -> dict[str, list[int]]:
        """By prompt, all that stands before the answer; SAME is left to the plan."""
        contexts = {}
        for name, prompt in self.prompts.items():
            if prompt != SAME:
                given = self.given(probe, prompt)
                contexts[name] = (
                    self.tokenizer.encode_prompt(given) if isinstance(given, str) else list(given)
                )
                if not contexts[name]:
                    raise PromptError(
                        f"the context of query {probe.query!r} has no tokens; one must stand "
                        "before an answer"
                    )
        return contexts

    def published(self, probe: Probe) -> dict[str, list[int]]:
        """As `read`, in the conventions of the published code, which knows texts alone."""
        contexts = {}
        for name, prompt in self.prompts.items():
            if prompt == "chat":
                chat = [{"role": "user", "content": probe.query}]
                given: str | list[int] = self.tokenizer.render_chat(chat)
            elif prompt != SAME:
                given = self.given(probe, prompt)
            if prompt != SAME:
                if not isinstance(given, str):
                    raise ParameterError(f"the published code has no prompts of token ids: {name}")
                contexts[name] = published_context(self.tokenizer, given)
        return contexts

    def given(self, probe: Probe, prompt: Any) -> str | list[int]:
        """What the model is asked, before it is tokenised where it is a text."""
        if prompt != GIVEN:
            return prompt_form(prompt, self.tokenizer)(probe.query)
        if probe.prompt is None:
            raise ParameterError(f'{probe.where}: the row has no prompt text for "{GIVEN}"')
        return probe.prompt


@dataclass(frozen=True, slots=True)
class Plan:
    """Both sides, the columns to be measured, and the tokens over which they are compared.
    `published`: measure once more, in the conventions of the published code."""

    base: Side
    aligned: Side
    contexts: tuple[Context, ...]
    shared: SharedVocabulary
    top_k: int
    published: bool = False

    @classmethod
    def make(
        cls,
        base: Side,
        aligned: Side,
        top_k: int,
        *,
        map_tokens: Mapping[str, str] | None = None,
        published: bool = False,
    ) -> Plan:
        """Raises `ParameterError` for vocabularies that differ, and a `top_k` out of range."""
        sizes = base.vocab_size, aligned.vocab_size
        shared = SharedVocabulary.of(base.tokenizer, aligned.tokenizer, sizes, map_tokens)
        most = len(shared.base_ids)
        if not 0 <= top_k <= most:
            raise ParameterError(f"top_k={top_k}: must be between 0 and the vocabulary's {most}")
        for side in (base, aligned):  # a prompt that is none is refused before any work
            for prompt in side.prompts.values():
                if prompt not in (SAME, GIVEN):
                    prompt_form(prompt, side.tokenizer)
        return cls(base, aligned, _columns(base, aligned), shared, top_k, published)

    def contexts_of(self, probe: Probe) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        """What stands before an answer: of the base and of the aligned model, by prompt."""
        of_base, of_aligned = self.base.read(probe), self.aligned.read(probe)
        self._add_same(of_base, of_aligned)
        if self.published:
            theirs = self.base.published(probe), self.aligned.published(probe)
            self._add_same(*theirs)
            of_base |= {as_published(name): ids for name, ids in theirs[0].items()}
            of_aligned |= {as_published(name): ids for name, ids in theirs[1].items()}
        return of_base, of_aligned

    def _add_same(self, of_base: dict[str, list[int]], of_aligned: dict[str, list[int]]) -> None:
        """The base reads what the aligned model does, where no prompt says what else."""
        for context in self.contexts:
            if context.base not in of_base:
                of_base[context.base] = self.shared.to_base(of_aligned[context.aligned])

    def room(self, probe: Probe) -> int:
        """Tokens that an answer may have in all contexts, at least 1; PromptError where none."""
        room, side, name = min(
            (own.context + 1 - len(before), side, name)  # an answer's last token is never read
            for side, own, contexts in self._sides(probe)
            for name, before in contexts.items()
        )
        if room < 1:
            raise PromptError(
                f"{probe.where} is too long: {1 - room} tokens too many for an answer in the "
                f"{side} model's context under the prompt {name!r}"
            )
        return room

    def _sides(self, probe: Probe) -> Iterator[tuple[str, Side, dict[str, list[int]]]]:
        of_base, of_aligned = self.contexts_of(probe)
        yield "base", self.base, of_base
        yield "aligned", self.aligned, of_aligned

    def answer(
        self,
        probe: Probe,
        token_ids: Sequence[int],
        *,
        text: str | None = None,
        source: str = "generated",
        finish_reason: str | None = None,
        sample: int = 0,
    ) -> Answer:
        """An answer to a probe in all its contexts; each must hold it, or it is a PromptError."""
        ids, decode = [int(i) for i in token_ids], self.aligned.tokenizer.decode
        self.shared.check(ids, self.base.tokenizer, self.aligned.tokenizer)
        if len(ids) > (room := self.room(probe)):
            raise PromptError(
                f"{probe.where}: an answer of {len(ids)} tokens, where the models' contexts have "
                f"room for {room}"
            )
        of_base, of_aligned = self.contexts_of(probe)
        return Answer(
            id=probe.id,
            query=probe.query,
            text=decode(ids) if text is None else text,
            token_ids=ids,
            pieces=pieces_of(self.aligned.tokenizer, ids),
            source=source,
            aligned_context_ids=of_aligned,
            base_context_ids=of_base,
            finish_reason=finish_reason,
            dataset=probe.dataset,
            generator=probe.generator,
            sample=sample,
        )

    def given(self, probe: Probe) -> Answer:
        """The answer that stands in the probe, text or token ids."""
        if probe.answer_token_ids is not None:
            ids, source = probe.answer_token_ids, "token_ids"
        else:
            assert probe.answer is not None, "a probe with an answer"
            source = "text"
            ids = self.aligned.tokenizer.encode(probe.answer, add_special_tokens=False)
        return self.answer(probe, ids, text=probe.answer, source=source, sample=probe.sample)


def as_published(name: str) -> str:
    """What a prompt is called where it is read as the published code reads it."""
    return f"{name} (published)"


def named_prompts(prompts: Any) -> dict[str, Any]:
    """One prompt under a name of its own, or a mapping of names to prompts as it is."""
    if isinstance(prompts, Mapping):
        if not prompts or not all(isinstance(name, str) and name for name in prompts):
            raise ParameterError(f"prompts by name: at least one, names are texts; not {prompts!r}")
        return dict(prompts)
    if isinstance(prompts, UrialPrompt):
        return {"urial": prompts}
    return {
        prompts if isinstance(prompts, str) else getattr(prompts, "__name__", "prompt"): prompts
    }


def _columns(base: Side, aligned: Side) -> tuple[Context, ...]:
    """Every prompt of the base with every prompt of the aligned model."""
    columns = []
    for theirs in aligned.prompts:
        for name, prompt in base.prompts.items():
            one = len(aligned.prompts) == 1
            mine = name if prompt != SAME or one else f"{name} as {theirs}"
            columns.append(Context(mine if one else f"{name} / {theirs}", mine, theirs))
    return tuple(columns)


def pieces_of(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """The text token by token; a character that is spread over several comes with the last."""
    stream = tokenizer.stream(skip_special_tokens=False)
    pieces = [stream.push(i) for i in ids]
    if pieces:
        pieces[-1] += stream.finish()
    return pieces
