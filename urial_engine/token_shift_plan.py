"""What a token shift will ask of two models: tokenizers and prompts go in, contexts come out.

All of it is known before a model runs, so what cannot be done is refused here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import ParameterError, PromptError
from .prompt import FENCE, UrialPrompt, in_urial_form, prompt_form
from .shift_data import Answer, Context
from .sources import Probe
from .token_shift_published import published_context
from .token_shift_vocabulary import SharedVocabulary
from .tokenizer import Tokenizer

SAME = "same"  # the base model reads what the aligned one does
GIVEN = "given"  # the text that stands beside the answer in its file
Contexts = dict[str, list[int]]  # by the name of a prompt: what stands before an answer


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two models, as far as its texts are concerned. `prompts` by name; what they may
    be says `prompt_form`, and SAME (of the base) and GIVEN beside it."""

    name: str  # "base" or "aligned"
    tokenizer: Tokenizer
    context: int  # tokens of a text, at most
    vocab_size: int
    prompts: dict[str, Any]

    def read(self, probe: Probe) -> Contexts:
        """All that stands before the answer; SAME is left to the plan."""
        contexts = {}
        for name, prompt in self.prompts.items():
            if prompt != SAME:
                given = self.given(probe, prompt)
                text = isinstance(given, str)
                ids = self.tokenizer.encode_prompt(str(given)) if text else [int(i) for i in given]
                if not ids:
                    raise PromptError(
                        f"{probe.where}: the context of query {probe.query!r} has no tokens under "
                        f"the prompt {name!r}; one must stand before an answer"
                    )
                contexts[name] = ids
        return contexts

    def published(self, probe: Probe) -> Contexts:
        """As `read`, in the conventions of the published code, which knows texts alone."""
        contexts = {}
        for name, prompt in self.prompts.items():
            if prompt != SAME:
                chat = [{"role": "user", "content": probe.query}]
                given = (
                    self.tokenizer.render_chat(chat)
                    if prompt == "chat"
                    else self.given(probe, prompt)
                )
                if not isinstance(given, str):
                    raise ParameterError(f"the published code has no prompts of token ids: {name}")
                contexts[as_published(name)] = published_context(self.tokenizer, given)
        return contexts

    def given(self, probe: Probe, prompt: Any) -> str | list[int]:
        """What the model is asked, before it is tokenised where it is a text."""
        if prompt != GIVEN:
            return prompt_form(prompt, self.tokenizer)(probe.query)
        if probe.prompt is None:
            raise ParameterError(f'{probe.where}: the row has no prompt text for "{GIVEN}"')
        return probe.prompt


@dataclass(frozen=True, slots=True)
class Asked:
    """A probe in all its contexts. `room`: tokens that an answer may have in each of them."""

    probe: Probe
    of_base: Contexts
    of_aligned: Contexts
    room: int

    @property
    def first(self) -> list[int]:
        """What the aligned model continues where it answers: under the first of its prompts."""
        return next(iter(self.of_aligned.values()))


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
        if SAME in aligned.prompts.values():
            raise ParameterError(f'"{SAME}" is a prompt of the base model: what the aligned reads')
        for side in (base, aligned):  # a prompt that is none is refused before any work
            for prompt in side.prompts.values():
                if prompt not in (SAME, GIVEN):
                    prompt_form(prompt, side.tokenizer)
        return cls(base, aligned, _columns(base, aligned), shared, top_k, published)

    def ask(self, probe: Probe) -> Asked:
        """Errors name the probe's place: PromptError where a context has no room for an answer."""
        of_base, of_aligned = self.base.read(probe), self.aligned.read(probe)
        if self.published:
            of_base |= self.base.published(probe)
            of_aligned |= self.aligned.published(probe)
        for base, aligned in self._pairs():
            if base not in of_base:
                what = f"{probe.where}: the prompt {aligned!r}"
                of_base[base] = self.shared.to_base(of_aligned[aligned], what)
        return Asked(probe, of_base, of_aligned, self._room(probe, of_base, of_aligned))

    def _pairs(self) -> list[tuple[str, str]]:
        """Names of the contexts that are compared with each other."""
        pairs = [(c.base, c.aligned) for c in self.contexts]
        again = [(as_published(base), as_published(aligned)) for base, aligned in pairs]
        return [*pairs, *again] if self.published else pairs

    def _room(self, probe: Probe, of_base: Contexts, of_aligned: Contexts) -> int:
        room, side, name = min(
            (own.context + 1 - len(before), own.name, name)  # an answer's last token is never read
            for own, contexts in ((self.base, of_base), (self.aligned, of_aligned))
            for name, before in contexts.items()
        )
        if room < 1:
            raise PromptError(
                f"{probe.where} is too long: {1 - room} tokens too many for an answer in the "
                f"{side} model's context under the prompt {name!r}"
            )
        return room

    def answer(
        self,
        asked: Asked,
        token_ids: Sequence[int],
        *,
        text: str | None = None,
        source: str = "generated",
        finish_reason: str | None = None,
        sample: int = 0,
    ) -> Answer:
        """An answer in all its contexts. Errors name the probe's place."""
        probe, ids = asked.probe, [int(i) for i in token_ids]
        what = f"{probe.where}: an answer"
        self.shared.check(ids, self.base.tokenizer, self.aligned.tokenizer, what)
        if len(ids) > asked.room:
            raise PromptError(
                f"{what} of {len(ids)} tokens, where the models' contexts have room for "
                f"{asked.room}"
            )
        return Answer(
            id=probe.id,
            query=probe.query,
            text=self.aligned.tokenizer.decode(ids) if text is None else text,
            token_ids=ids,
            pieces=pieces_of(self.aligned.tokenizer, ids),
            source=source,
            aligned_context_ids=asked.of_aligned,
            base_context_ids=asked.of_base,
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
        asked = self.ask(probe)
        return self.answer(asked, ids, text=probe.answer, source=source, sample=probe.sample)

    def between_fences(self, probe: Probe) -> bool:
        """Whether an answer that is generated stands in URIAL's form, and a fence ends it."""
        prompt = next(iter(self.aligned.prompts.values()))
        if prompt == GIVEN:
            return probe.prompt is not None and probe.prompt.endswith(f"\n{FENCE}\n")
        return in_urial_form(prompt)


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
    name = prompts if isinstance(prompts, str) else getattr(prompts, "__name__", "prompt")
    return {name: prompts}


def _columns(base: Side, aligned: Side) -> tuple[Context, ...]:
    """Every prompt of the base with every prompt of the aligned model."""
    columns = []
    for theirs in aligned.prompts:
        for name, prompt in base.prompts.items():
            one = len(aligned.prompts) == 1
            mine = name if prompt != SAME or one else f"{name} as {theirs}"
            columns.append(Context(name if one else f"{name} / {theirs}", mine, theirs))
    return tuple(columns)


def pieces_of(tokenizer: Tokenizer, ids: Sequence[int], *, special: bool = True) -> list[str]:
    """The text token by token; a character that is spread over several comes with the last."""
    stream = tokenizer.stream(skip_special_tokens=not special, continues=True)
    pieces = [stream.push(i) for i in ids]
    if pieces:
        pieces[-1] += stream.finish()
    return pieces
