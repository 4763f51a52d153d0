"""A script written for vLLM goes in, as it is; it runs with this engine under the name `vllm`."""

from __future__ import annotations

import builtins
import io
import os
import runpy
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import NoReturn

USAGE = """usage: python -m urial_engine.compat.vllm SCRIPT [ARGUMENT ...]
       python -m urial_engine.compat.vllm -m MODULE [ARGUMENT ...]

Runs an unmodified script as python would; its `vllm` is urial-engine, also where vLLM is
installed, and so is that of the Python processes that it starts."""
SHIM = str(Path(__file__).with_name("shim"))  # a folder whose `vllm` stands in for itself
HERE = "urial_engine.compat.vllm"
# vLLM's modules, and which of ours each is.
MODULES = {
    "vllm": HERE,
    "vllm.entrypoints": HERE,
    "vllm.entrypoints.llm": f"{HERE}.llm",
    "vllm.inputs": f"{HERE}.inputs",
    "vllm.logprobs": f"{HERE}.outputs",
    "vllm.outputs": f"{HERE}.outputs",
    "vllm.sampling_params": f"{HERE}.sampling_params",
    "vllm.sequence": f"{HERE}.outputs",
}


class NoOtherModules(MetaPathFinder):
    """Is asked for modules of vLLM that are not there yet, before a real vLLM could be found."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] == "vllm":
            raise ModuleNotFoundError(
                f"No module named {fullname!r}: this vllm is urial-engine, which has "
                + ", ".join(MODULES),
                name=fullname,
            )
        return None


def stand_in() -> None:
    """From now on `import vllm` finds this engine, in this process."""
    sys.modules.update({name: import_module(own) for name, own in MODULES.items()})
    sys.meta_path.insert(0, NoOtherModules())


def stand_in_for_children() -> None:
    """And so it does in the Python processes that this one starts, however it starts them: they
    look for modules along PYTHONPATH or, as multiprocessing has it, along this process's path.

    A `vllm` beside the script would come before that, and nobody would notice.
    """
    own = 0 if getattr(sys.flags, "safe_path", False) else 1  # else the script's folder comes first
    for folder in sys.path[:own]:
        if any(Path(folder, name).exists() for name in ("vllm/__init__.py", "vllm.py")):
            refuse(
                f"{folder or '.'} has a vllm of its own, which processes of the script would "
                "find; run a copy of the script elsewhere\n"
            )
    sys.path.insert(own, SHIM)
    every = os.environ
    every["PYTHONPATH"] = os.pathsep.join(filter(None, (SHIM, every.get("PYTHONPATH"))))


def run_script(script: str, arguments: Sequence[str]) -> None:
    """As `python SCRIPT ARGUMENTS` does."""
    path = Path.cwd() / script
    with io.open_code(str(path)) as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    main = ModuleType("__main__")
    main.__dict__.update(
        __file__=str(path), __cached__=None, __annotations__={}, __builtins__=builtins
    )
    sys.argv = [script, *arguments]
    sys.modules["__main__"] = main
    if not getattr(sys.flags, "safe_path", False):  # else python has put no folder there
        sys.path[0] = str(path.resolve().parent)
    stand_in_for_children()
    exec(code, main.__dict__)


def refuse(why: str) -> NoReturn:
    print(f"{why}{USAGE}", file=sys.stderr)
    sys.exit(2)


def main(arguments: Sequence[str]) -> None:
    """What stands behind `python -m urial_engine.compat.vllm`."""
    first, *rest = arguments or [""]
    if first in ("-h", "--help"):
        print(USAGE)
    elif first == "-m" and rest:
        stand_in()
        stand_in_for_children()
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif Path(first).is_file():
        stand_in()
        run_script(first, rest)
    else:
        refuse(f"there is no file {first}\n" if first else "")


if __name__ == "__main__":
    main(sys.argv[1:])
