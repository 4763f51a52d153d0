"""From a path or a hub id to a folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures import TinyModel
from urial_engine.checkpoint import INDEX, SINGLE, resolve
from urial_engine.errors import CheckpointError


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert resolve(tmp_path) == resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.gguf", "import-gguf"),
        ("model.safetensors", "give the folder"),
        ("/no/such/folder", "there is no folder"),
        ("nothing-here", "owner/name"),
    ],
)
def test_a_path_that_is_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if name.startswith("model."):
        Path(name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=words) as caught:
        resolve(name)
    assert name in str(caught.value)


def test_offline_hub_says_what_to_do(tmp_path: Path) -> None:
    """In a process of its own: the hub's client reads the environment when it is imported."""
    code = (
        "from urial_engine.checkpoint import Checkpoint\n"
        "from urial_engine.errors import CheckpointError\n"
        "try: Checkpoint.open('owner/name')\n"
        "except CheckpointError as error: print(error)\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[1],
        check=True,
    )
    assert "owner/name is no folder here" in done.stdout
    assert "hf download owner/name" in done.stdout


def test_the_hub_is_asked_for_exactly_what_is_needed(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub of one repository, which notes what it is asked for."""
    folder = tiny_model(shards=2, folder="0123abcd")
    asked: list[tuple[str, Any, list[str]]] = []
    caches = []

    def snapshot_download(
        repository: str, *, allow_patterns: list[str], revision: str | None, cache_dir: Any
    ) -> str:
        asked.append((repository, revision, allow_patterns))
        caches.append(cache_dir)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert resolve("owner/name") == folder
    (_, _, small), (repository, revision, weights) = asked
    assert (repository, revision) == ("owner/name", "0123abcd")
    assert {"config.json", "tokenizer.json", "tokenizer.model", INDEX} <= set(small)
    assert not any("*" in pattern for pattern in small)
    assert weights == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    (folder / INDEX).unlink()
    resolve("owner/name")
    assert asked[-1][2] == [SINGLE]
    resolve("owner/name", revision="v2", cache_dir="here")
    assert [one[1] for one in asked[-2:]] == ["v2", "0123abcd"]
    assert caches == [*[None] * 4, "here", "here"]
