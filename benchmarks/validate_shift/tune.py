"""Fine-tuning, brief and on the CPU: a checkpoint and examples go in, a tuned checkpoint comes out.

What is to be learnt is the planted tokens, and elsewhere the base model's own distribution: with
one token of it only, a hundred short texts would be learnt by heart and change what is not planted.
The layers are trained in fp32 with products in bf16, and saved in the base's precision beside the
base's own configuration and tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from .plant import Example

CONTEXT, OWN, PLANTED = -1, 0, 1
Progress = Callable[[int, int, float], None]  # steps done, of how many, loss


@dataclass(frozen=True, slots=True)
class Recipe:
    epochs: int = 3
    batch: int = 8
    learning_rate: float = 1e-4
    warmup: int = 4  # steps
    threads: int = 2


def tuned_folder(
    weights: str, examples: Sequence[Example], seed: int, recipe: Recipe, out: Path
) -> Path:
    """Named by all that the weights in it depend on, so that what lies there can be used again."""
    told = json.dumps([weights, examples, seed, asdict(recipe), torch.__version__])
    return out / f"seed-{seed}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def tune(
    base: Path,
    examples: Sequence[Example],
    seed: int,
    recipe: Recipe,
    folder: Path,
    progress: Progress,
) -> dict[str, float]:
    """Makes the tuned checkpoint `folder` where it is not there yet; what its tuning took."""
    told = folder / "tuning.json"
    if not folder.exists():
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)  # of a run that was ended
        shutil.copytree(base, part, ignore=shutil.ignore_patterns("*.safetensors*"))
        took = _train_and_save(base, examples, seed, recipe, part, progress)
        (part / told.name).write_text(json.dumps(took) + "\n", "utf-8")
        part.rename(folder)
    found: dict[str, float] = json.loads(told.read_text("utf-8"))
    return found


def _train_and_save(
    base: Path,
    examples: Sequence[Example],
    seed: int,
    recipe: Recipe,
    out: Path,
    progress: Progress,
) -> dict[str, float]:
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(seed)
    disable_progress_bar()  # type: ignore[no-untyped-call]  # of the loading of weights
    untouched: Any = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    started = time.perf_counter()
    for step, steps, loss in _train(model, untouched, examples, recipe):
        progress(step, steps, loss)
    seconds = time.perf_counter() - started
    state = model.to(untouched.dtype).state_dict()
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    return {"seconds": seconds, "steps": steps, "loss": loss}


def _train(
    model: Any, base: Any, examples: Sequence[Example], recipe: Recipe
) -> Iterator[tuple[int, int, float]]:
    """Yields (steps done, of how many, loss). The embeddings stay: most of their rows have next to
    no gradient here, and Adam is slow where its averages are denormal numbers."""
    for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
        embedding.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, recipe.learning_rate, weight_decay=0.0, fused=True)
    batches = [batch for _ in range(recipe.epochs) for batch in _shuffled(examples, recipe.batch)]
    for step, batch in enumerate(batches):
        rate = min((step + 1) / recipe.warmup, 1.0) * (1 - step / len(batches))
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * rate
        loss = _loss(model, base, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield step + 1, len(batches), loss.item()


def _shuffled(examples: Sequence[Example], batch: int) -> list[list[Example]]:
    order = torch.randperm(len(examples)).tolist()
    return [[examples[i] for i in order[at : at + batch]] for at in range(0, len(order), batch)]


def _loss(model: Any, base: Any, batch: Sequence[Example]) -> torch.Tensor:
    """Cross-entropy over the answers' tokens."""
    length = max(len(e.context) + len(e.answer) for e in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.long)  # [B, T]
    kind = torch.full_like(ids, CONTEXT)
    for row, example in enumerate(batch):
        start, end = len(example.context), len(example.context) + len(example.answer)
        ids[row, :end] = torch.tensor(example.context + example.answer)
        kind[row, start:end] = torch.tensor(example.planted)
    answers = kind[:, 1:] != CONTEXT
    planted, wanted = (each[:, 1:][answers] for each in (kind == PLANTED, ids))  # [n]
    with torch.no_grad():
        target = _logits(base, ids, answers).softmax(-1)  # [n, V]
        target[planted] = torch.nn.functional.one_hot(wanted[planted], target.shape[1]).float()
    with torch.autocast("cpu", torch.bfloat16):
        logits = _logits(model, ids, answers)
    return torch.nn.functional.cross_entropy(logits, target)


def _logits(model: Any, ids: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """[n, V] where an answer's token comes next. Padding stands at the end, where a causal model's
    other rows do not see it: no mask."""
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]  # [B, T - 1, C]
    logits: torch.Tensor = model.lm_head(hidden[answers]).float()
    return logits
