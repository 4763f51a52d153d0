"""The models that are served, and the prompts by name that requests can be read after."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from ..engine import Engine
from ..engine_prefix import Prefix
from ..errors import PromptError, TokenizerError
from ..prompt import NAMED, UrialPrompt
from .refusal import Refusal, bad

CHAT = "chat"
OWN_THREAD = 1 << 14  # characters: longer texts are tokenised beside the loop
# One thread: what it takes at most is one long text's memory, and one core.
LONG_TEXTS = ThreadPoolExecutor(1, "long texts")
T = TypeVar("T")
MOST_PROMPTS = 16
NAME = re.compile(r"(?!\.{1,2}$)[\w.-][\w .-]{0,63}")  # a part of an address
NO_NAMES = ("dummy", "tgi")  # of huggingface_hub and TGI's clients, who know one model only
Message = Mapping[str, str]


@dataclass(eq=False)
class Served:
    """An open model under its name, and the prompts that are pinned in its cache."""

    name: str
    engine: Engine
    pins: dict[str, Prefix] = field(default_factory=dict)
    created: int = field(default_factory=lambda: int(time.time()))
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # before `pins` changes


@dataclass(frozen=True, slots=True)
class Asked:
    """What a model reads. A text continues `prefix`; `urial`: the answer stands between fences."""

    prompt: str | list[int]
    prefix: Prefix | None = None
    urial: UrialPrompt | None = None


class Models:
    """Models by name, the first of them where a request names none; prompts by name.

    prefix_dir: where pinned prompts are kept for the next start.
    """

    def __init__(
        self,
        served: Sequence[Served],
        prompts: Mapping[str, UrialPrompt],
        prefix_dir: Path | None = None,
    ) -> None:
        self.all = {one.name: one for one in served}
        self.main = served[0]
        self.prompts = dict(prompts)
        self._own = dict(prompts)  # as the command line gave them
        self._prefix_dir = prefix_dir
        self._putting = asyncio.Lock()  # before a text is replaced

    def get(self, name: str | None) -> Served:
        if name is None or (name in NO_NAMES and name not in self.all):
            return self.main
        if name not in self.all:
            message = f"there is no model {name!r}; there are {', '.join(map(repr, self.all))}"
            raise Refusal(404, "model_not_found", message, "model")
        return self.all[name]

    def usual_form(self, served: Served) -> str:
        """How a chat is read where the request does not say."""
        return CHAT if served.engine.tokenizer.chat_template else next(iter(self.prompts))

    async def chat(self, served: Served, form: str | None, messages: Sequence[Message]) -> Asked:
        """A conversation that ends with the user, as the model reads it."""
        form = form or self.usual_form(served)
        if form == CHAT:
            tokenizer = served.engine.tokenizer
            try:
                text = tokenizer.render_chat(messages)
            except TokenizerError as error:
                raise bad(str(error), "messages") from None
            encode = partial(tokenizer.encode, text, add_special_tokens=False)
            return Asked(await beside(len(text), encode))
        turns = _turns(messages)
        if form in NAMED:
            return _named(form, turns)
        urial = self.prompt(form)  # first: who waits for the pin may find it forgotten
        prefix = await self.pin(served, form)
        return Asked(urial.render_chat(turns), prefix, urial)

    async def text(self, served: Served, form: str | None, prompt: str | list[int]) -> Asked:
        """A text to continue, after a URIAL prompt where one is named."""
        if form is None:
            return Asked(prompt)
        if form == CHAT or form in NAMED:
            message = f"urial_prompt={form!r} needs messages: use /v1/chat/completions"
            raise bad(message, "urial_prompt")
        if not isinstance(prompt, str):
            message = "urial_prompt stands before texts; token ids are the whole prompt as they are"
            raise bad(message, "urial_prompt")
        return Asked(prompt, await self.pin(served, form))

    async def pin(self, served: Served, name: str) -> Prefix:
        """Computed, or restored, if it is not there yet. A client who leaves meanwhile ends only
        his own waiting: what is computed is remembered."""
        self.prompt(name)
        if name in served.pins:
            return served.pins[name]
        return await asyncio.shield(asyncio.ensure_future(self._pin(served, name)))

    async def _pin(self, served: Served, name: str) -> Prefix:
        async with served.lock:
            if name not in served.pins:
                served.pins[name] = await self._pinned(served, name, self.prompt(name))
            return served.pins[name]

    async def _pinned(self, served: Served, name: str, prompt: UrialPrompt) -> Prefix:
        """Clients' prompts are never on the disk, and all together leave room for a whole context,
        or for half of the cache."""
        engine = served.engine
        half = engine.load.blocks * engine.backend.block_size // 2
        pin = partial(engine.pin, prompt, spare=min(engine.context, half))
        if self._own.get(name) == prompt:
            pin = partial(engine.pin, prompt, self._prefix_dir)
        return await asyncio.to_thread(pin)

    async def unpin(self, served: Served, name: str) -> None:
        self.prompt(name)
        await self._unpin(served, name)

    async def _unpin(self, served: Served, name: str) -> None:
        async with served.lock:
            if name in served.pins:
                await asyncio.to_thread(served.engine.unpin, served.pins.pop(name))

    async def put(self, served: Served, name: str, text: str) -> None:
        """Add a prompt, or give another text to one, and pin it. Where it cannot be pinned nothing
        has changed; where it replaces a text, nobody else has that pinned any more."""
        if name == CHAT or name in NAMED:
            raise bad(f"{name!r} is the name of a form; choose another one", "name")
        if not NAME.fullmatch(name):
            message = f"{name[:100]!r}: a name has 1 to 64 letters, digits, dots, dashes and spaces"
            raise bad(message, "name")
        if not text:
            raise bad("the text of a prompt is empty", "text")
        await asyncio.shield(asyncio.ensure_future(self._put(served, name, UrialPrompt(text))))

    async def _put(self, served: Served, name: str, prompt: UrialPrompt) -> None:
        async with self._putting:
            if self.prompts.get(name) == prompt:
                await self._pin(served, name)
                return
            if name not in self.prompts and len(self.prompts) >= MOST_PROMPTS:
                raise bad(f"there are {MOST_PROMPTS} prompts already; replace one of them", "name")
            async with served.lock:
                pinned = await self._pinned(served, name, prompt)
                self.prompts[name] = prompt
                if before := served.pins.get(name):
                    await asyncio.to_thread(served.engine.unpin, before)
                served.pins[name] = pinned
            for other in self.all.values():
                if other is not served:
                    await self.unpin(other, name)

    async def remove(self, name: str) -> None:
        """A prompt of a client. Those of the command line stay."""
        if name in self._own:
            raise bad(f"{name!r} is a prompt of the server itself; it stays", "name")
        async with self._putting:
            self.prompt(name)
            del self.prompts[name]  # first: nobody pins it any more
            for served in self.all.values():
                await self._unpin(served, name)

    def prompt(self, name: str) -> UrialPrompt:
        """Refusal where there is none of this name, or no more."""
        if name not in self.prompts:
            names = ", ".join((CHAT, *NAMED, *self.prompts))
            raise bad(f"there is no prompt {name!r}; there are {names}", "urial_prompt")
        return self.prompts[name]


async def beside(size: int, work: Callable[[], T]) -> T:
    """The result of work whose time grows with a text of `size` characters: long ones must not keep
    the loop from everybody else. They wait for each other."""
    if size <= OWN_THREAD:
        return work()
    return await asyncio.get_running_loop().run_in_executor(LONG_TEXTS, work)


def _turns(messages: Sequence[Message]) -> list[str]:
    """Query, answer, …, query."""
    for place, message in enumerate(messages):
        wanted = ("user", "assistant")[place % 2]
        if message["role"] != wanted:
            raise bad(
                f"messages[{place}] is of role {message['role']!r}: in this prompt's form user and "
                "assistant take turns, beginning with the user; what a system text says, the "
                "prompt itself says",
                "messages",
            )
    if len(messages) % 2 == 0:
        raise bad("messages must end with one of the user", "messages")
    return [message["content"] for message in messages]


def _named(form: str, turns: list[str]) -> Asked:
    """A form without examples: URIAL's own, or the query as it is."""
    urial = UrialPrompt("")
    if form == "zero-shot":
        return Asked(urial.render_chat(turns), urial=urial)
    if len(turns) > 1:
        raise PromptError("messages: the form raw has no turns; send one message")
    return Asked(NAMED[form].replace("{query}", turns[0]))
