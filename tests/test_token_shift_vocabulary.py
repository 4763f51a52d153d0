"""Two models whose vocabularies differ: what is shared, what is refused, and measures over it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.fixtures import TinyModel
from tests.test_token_shift import ALIGNED, BASE, check_measures, logits
from urial_engine import Engine, token_shift
from urial_engine.errors import ParameterError
from urial_engine.shift_data import ARRAYS
from urial_engine.token_shift_vocabulary import SharedVocabulary
from urial_engine.tokenizer import Tokenizer

OTHER = "</turn>"  # what one of the models ends its answers with


def moved(folder: Path, order: list[int], rename: dict[str, str] | None = None) -> Path:
    """The same model under other ids: token order[i] becomes token i, and some have other names."""
    weights = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = np.ascontiguousarray(weights[name][order])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    places = {old: new for new, old in enumerate(order)}
    config |= {"bos_token_id": places[1], "eos_token_id": places[2], "vocab_size": len(order)}
    (folder / "config.json").write_text(json.dumps(config))
    text = (folder / "tokenizer.json").read_text()
    for old, new in (rename or {}).items():
        text = text.replace(json.dumps(old), json.dumps(new))
    tokenizer = json.loads(text)
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {t: places[i] for t, i in vocabulary.items() if i in places}
    kept = tokenizer["model"]["vocab"]
    tokenizer["model"]["merges"] = [
        pair for pair in tokenizer["model"]["merges"] if "".join(pair) in kept
    ]
    for added in tokenizer["added_tokens"]:
        added["id"] = places[added["id"]]
    ids = tokenizer["post_processor"]["special_tokens"]["<s>"]
    ids["ids"] = [places[1]]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = (folder / "tokenizer_config.json").read_text()
    for old, new in (rename or {}).items():
        settings = settings.replace(json.dumps(old), json.dumps(new))
    (folder / "tokenizer_config.json").write_text(settings)
    return folder


def open_pair(base: Path, aligned: Path, device: str = "cpu") -> tuple[Engine, Engine]:
    dtype = {"cpu": "float32", "reference": "float64"}[device]
    opened = [Engine(f, device=device, dtype=dtype, kv_cache_gib=0.02) for f in (base, aligned)]
    return opened[0], opened[1]


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_ids_that_moved_are_the_same_measures(device: str, tiny_model: TinyModel) -> None:
    """All tokens are there, elsewhere: no number differs from that of the model as it was."""
    order = [*range(3), *np.random.default_rng(0).permutation(np.arange(3, 320)).tolist()]
    base = tiny_model(folder="base", seed=1)
    as_it_was = tiny_model(folder="tuned", seed=2)
    elsewhere = moved(tiny_model(folder="moved", seed=2), order)
    answers = [[5, 6, 5, 6, 7, 300], [], [9]]
    places = {old: new for new, old in enumerate(order)}
    there = [[places[i] for i in ids] for ids in answers]
    found = []
    for folder, ids in ((as_it_was, answers), (elsewhere, there)):
        with Engine(base, device=device) as one, Engine(folder, device=device) as other:
            found.append(
                token_shift(
                    one,
                    other,
                    ["ab", "ba", "b"],
                    base_prompt={"q": BASE, "same": "same"},
                    aligned_prompt=ALIGNED,
                    answers=ids,
                    top_k=4,
                )
            )
    whole, mapped = found
    for a, b in zip(whole.answers, mapped.answers, strict=True):
        assert (a.text, a.base_context_ids["q"]) == (b.text, b.base_context_ids["q"])
    for name in ARRAYS:
        mine, theirs = getattr(mapped, name), getattr(whole, name)
        if name.endswith(("token_id", "top_ids")):
            mine = np.array(order)[mine]
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_tokens_of_one_model_alone_are_left_out_of_both(device: str, tiny_model: TinyModel) -> None:
    """The aligned model has ten tokens more, and the base another name for the end of a text."""
    few = tiny_model(folder="base", seed=1, vocab_size=310)
    many = moved(tiny_model(folder="tuned", seed=2), [*range(320)], {"</s>": OTHER})
    base, aligned = open_pair(few, many, device)
    with base, aligned:
        ids = [5, 40, 309, 2]
        with pytest.raises(ParameterError, match=r"'</turn>'\): the base model has no token"):
            token_shift(
                base, aligned, ["x"], base_prompt=BASE, aligned_prompt=ALIGNED, answers=[ids]
            )
        shift = token_shift(
            base,
            aligned,
            ["x"],
            base_prompt=BASE,
            aligned_prompt=ALIGNED,
            answers=[ids],
            top_k=5,
            map_tokens={OTHER: "</s>"},
        )
        (a,) = shift.answers
        z = logits(base, a.base_context_ids[BASE], ids)
        z_q = logits(aligned, a.aligned_context_ids[ALIGNED], ids)[:, :310]
    check_measures(shift, np.ones(4, bool), z, z_q)
    assert shift.vocabulary[2] == OTHER


def test_a_prompt_the_base_has_no_tokens_for_is_not_the_same(tiny_model: TinyModel) -> None:
    few = tiny_model(folder="base", seed=1, vocab_size=310)
    base, aligned = open_pair(few, tiny_model(folder="tuned", seed=2))
    with (
        base,
        aligned,
        pytest.raises(ParameterError, match=r"the prompt 'ids': .* 315"),
    ):
        token_shift(
            base,
            aligned,
            ["x"],
            base_prompt="same",
            aligned_prompt={"ids": lambda query: [1, 315, 9]},
            answers=[[9]],
        )


def test_a_few_tokens_that_moved_are_followed(tiny_model: TinyModel) -> None:
    """Two ids changed places: nothing else says so, and a model is still itself."""
    order = [*range(320)]
    order[70], order[80] = 80, 70
    there = moved(tiny_model(folder="there", seed=1), order)
    base, aligned = open_pair(tiny_model(folder="base", seed=1), there)
    with base, aligned:
        shift = token_shift(
            base, aligned, ["x"], base_prompt="same", aligned_prompt=BASE, answers=[[70, 9, 80]]
        )
    assert not SharedVocabulary.of(base.tokenizer, aligned.tokenizer, (320, 320)).whole
    assert np.abs(shift.kl_aligned_base).max() < 1e-5
    assert np.array_equal(shift.base_rank, shift.aligned_rank)


def test_padding_rows_of_the_head_are_no_tokens(tiny_model: TinyModel) -> None:
    """As many models have them: V of the weights is larger than the tokenizer's."""
    padded = tiny_model(folder="padded", seed=2, vocab_size=320)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (padded / name).write_bytes((tiny_model(vocab_size=310) / name).read_bytes())
    base, aligned = open_pair(tiny_model(folder="base", seed=1, vocab_size=310), padded)
    with base, aligned:
        shift = token_shift(
            base,
            aligned,
            ["x"],
            base_prompt=BASE,
            aligned_prompt=ALIGNED,
            answers=[[9, 8]],
            top_k=3,
        )
        (a,) = shift.answers
        z = logits(base, a.base_context_ids[BASE], [9, 8])
        z_q = logits(aligned, a.aligned_context_ids[ALIGNED], [9, 8])[:, :310]
    check_measures(shift, np.ones(2, bool), z, z_q)


def change(folder: Path, edit: Callable[[dict[str, int]], dict[str, int]]) -> Path:
    """The tokenizer's vocabulary edited in its file."""
    tokenizer: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = edit(tokenizer["model"]["vocab"])
    tokenizer["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def test_another_tokenizer_is_refused_with_what_is_shared(tiny_model: TinyModel) -> None:
    other = change(
        tiny_model(folder="other"),
        lambda v: {t if i < 200 else f"{t}§": i for t, i in v.items()},
    )
    base, aligned = Tokenizer.load(tiny_model()), Tokenizer.load(other)
    with pytest.raises(
        ParameterError, match=r"320 tokens and the aligned one 320, and only 200 of them .* share a"
    ):
        SharedVocabulary.of(base, aligned, (320, 320))


def test_a_few_other_names_are_the_same_vocabulary_unless_an_answer_has_them(
    tiny_model: TinyModel,
) -> None:
    """Reserved tokens get names when a model is tuned; the rows stay where they are."""
    renamed = change(
        tiny_model(folder="renamed"),
        lambda v: {f"{t}§" if i == 300 else t: i for t, i in v.items()},
    )
    base, aligned = Tokenizer.load(tiny_model()), Tokenizer.load(renamed)
    shared = SharedVocabulary.of(base, aligned, (320, 320))
    assert shared.whole and len(shared.base_ids) == 320
    shared.check([299, 301], base, aligned, "x")
    with pytest.raises(ParameterError, match=r"token id 300 is .* in the base model"):
        shared.check([300], base, aligned, "x")
    with pytest.raises(ParameterError, match="x has token id 320, outside the vocabulary of 320"):
        shared.check([320], base, aligned, "x")


def test_tokens_are_mapped_only_where_both_are_there(tiny_model: TinyModel) -> None:
    own = Tokenizer.load(tiny_model())
    for same, lacking in (({"nothing": "</s>"}, "aligned"), ({"</s>": "nothing"}, "base")):
        with pytest.raises(ParameterError, match=f"the {lacking} model has no such token"):
            SharedVocabulary.of(own, own, (320, 320), same)
    shared = SharedVocabulary.of(own, own, (320, 320), {"</s>": "<unk>"})
    pairs = dict(zip(shared.aligned_ids.tolist(), shared.base_ids.tolist(), strict=True))
    assert pairs[2] == 0 and 0 not in pairs and len(pairs) == 319
