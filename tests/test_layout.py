"""The rules of the layout that no other tool holds: who may import whom, what stays out of what.

Each rule collects every place that breaks it, so that one run names them all.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import pytest

import urial_engine

ROOT = Path(__file__).resolve().parents[1]
# The flow. A module imports only what stands before it; `tokenizer_words` would be a part of
# `tokenizer`, and parts may import each other.
FLOW = (
    *("errors", "json_values", "jsonl", "sources", "config", "checkpoint", "weights", "tokenizer"),
    *("prompt", "sampling", "stop", "outputs", "kv_cache", "kernels", "backends", "head"),
    *("prefix_store", "scheduler", "engine", "shift_data", "report", "token_shift", "gguf_import"),
    *("evaluation", "compat", "server", "cli"),
)
# Modules before the command line that read environment variables, and which: each is documented.
ENVIRONMENT: dict[str, set[str]] = {"compat.vllm.__main__": {"PYTHONPATH"}}
# Only tests and benchmarks may import these: the oracles, and what a light install leaves out.
ORACLES = {"torch", "transformers", "triton", "accelerate", "pytest"}
# And what runs on a GPU, which nothing imports that does not.
GPU = {"torch", "triton"}

MODULES = sorted((ROOT / "urial_engine").rglob("*.py"))
KERNELS = sorted((ROOT / "kernels").rglob("*.py"))
NATIVE = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".cpp", ".h", ".cu"})


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def dotted(path: Path) -> list[str]:
    """The module's name as installed, in parts: kernels/rank/ -> urial_engine, kernels, rank."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    parts = parts if parts[0] == "urial_engine" else ["urial_engine", *parts]
    return parts[:-1] if parts[-1] == "__init__" else parts


KNOWN = {".".join(dotted(path)) for path in MODULES + KERNELS} | {"urial_engine._native"}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at any depth, by its full name."""
    package = dotted(path) if path.name == "__init__.py" else dotted(path)[:-1]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            target = [*base, *(node.module.split(".") if node.module else [])]
            names = [".".join([*target, alias.name]) for alias in node.names]
            yield from (name if name in KNOWN else ".".join(target) for name in names)


def place(module: str) -> int:
    """Where in the flow a module of the package stands."""
    name = module.split(".")[1]
    found = [stage for stage in FLOW if name == stage or name.startswith(f"{stage}_")]
    assert found, f"{module} stands nowhere in the flow: give it a place in FLOW"
    return FLOW.index(max(found, key=len))


def test_a_module_imports_only_what_stands_before_it() -> None:
    broken = []
    for path in (p for p in MODULES if dotted(p) != ["urial_engine"]):
        own = ".".join(dotted(path))
        here = place(own)
        for name in imports(path):
            if name == "urial_engine":  # the public face, which stands after everything
                wrong = True
            elif name.startswith("urial_engine._native"):
                wrong = not own.startswith("urial_engine.backends")
            else:
                wrong = name.startswith("urial_engine.") and place(name) > here
            broken += [f"{own} imports {name}"] if wrong else []
    assert not broken


def test_parts_of_one_stage_do_not_import_each_other_in_a_circle() -> None:
    waiting = {".".join(dotted(p)): set(imports(p)) for p in MODULES}
    del waiting["urial_engine"]
    while ready := {name for name, needs in waiting.items() if not needs & waiting.keys()}:
        waiting = {name: needs for name, needs in waiting.items() if name not in ready}
    assert not waiting


def is_for_gpu(path: Path) -> bool:
    name = relative(path)
    return path.stem == "triton_kernel" or name.startswith("urial_engine/backends/cuda")


def test_kernels_are_leaves() -> None:
    allowed = sys.stdlib_module_names | {"numpy"}
    broken = [
        f"{relative(path)} imports {name}"
        for path in KERNELS
        for name in imports(path)
        if name.split(".")[0] not in (allowed | GPU if is_for_gpu(path) else allowed)
        and not f"{name}.".startswith(".".join(dotted(path)[:3]) + ".")
        and not (path.stem == "native" and name == "urial_engine._native")
    ]
    assert not broken


def test_no_module_imports_an_oracle() -> None:
    broken = [
        f"{relative(path)} imports {name}"
        for path in MODULES + KERNELS
        for name in imports(path)
        if name.split(".")[0] in (ORACLES - GPU if is_for_gpu(path) else ORACLES)
    ]
    assert not broken


def test_every_module_says_what_it_is() -> None:
    assert not [relative(p) for p in MODULES + KERNELS if not ast.get_docstring(parse(p))]


MUTABLE = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
MAKERS = {"list", "dict", "set", "bytearray", "defaultdict", "Counter", "deque", "OrderedDict"}


def is_mutable(value: ast.expr | None) -> bool:
    if isinstance(value, ast.Call):
        return ast.unparse(value.func).split(".")[-1] in MAKERS
    return isinstance(value, MUTABLE)


def state(path: Path) -> Iterator[str]:
    """Names of a module that look as if they could change while the program runs."""
    tree = parse(path)
    yield from (name for n in ast.walk(tree) if isinstance(n, ast.Global) for name in n.names)
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and is_mutable(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [ast.unparse(target) for target in targets]
            yield from (n for n in names if not n.isupper() and n != "__all__")


def test_state_is_passed_never_ambient() -> None:
    assert not [f"{relative(p)}: {name}" for p in MODULES + KERNELS for name in state(p)]


def test_the_environment_is_read_at_the_command_line_only() -> None:
    broken = []
    for path in (p for p in MODULES + KERNELS if dotted(p)[1:2] != ["cli"]):
        text = path.read_text(encoding="utf-8")
        reads = len(re.findall(r"\b(?:environb?|getenvb?|expandvars)\b", text))
        allowed = ENVIRONMENT.get(".".join(dotted(path)[1:]), set())
        if reads > len(allowed) or not all(name in text for name in allowed):
            broken.append(relative(path))
    assert not broken


def test_nothing_reaches_out_of_the_project() -> None:
    outside = re.compile(r"\.\./shared|\bshared/(?:data|models|peers)|/tmp/")
    files = MODULES + KERNELS + NATIVE
    assert not [relative(p) for p in files if outside.search(p.read_text(encoding="utf-8"))]


def test_native_code_returns_its_errors() -> None:
    """It never ends the process, never prints, and meets Python in its bindings."""
    ends = re.compile(r"\b(?:_?exit|abort|terminate|v?f?printf|puts)\s*\(|\bcerr\b|\bcout\b")
    broken = []
    for path in NATIVE:
        code = re.sub(r"//[^\n]*", "", path.read_text(encoding="utf-8"))
        knows_python = re.search(r"\bpy::|pybind11|Python\.h", code) is not None
        if ends.search(code) or knows_python != path.name.startswith("bindings"):
            broken.append(relative(path))
    assert not broken


def test_every_native_source_is_built() -> None:
    listed = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    for path in (p for p in NATIVE if p.suffix in {".cpp", ".cu"}):
        rung = path.stem.removeprefix("rung_")
        assert relative(path) in listed or f"add_rung({rung} " in listed, relative(path)


def run_python(code: str, *options: str, cwd: Path = ROOT) -> None:
    subprocess.run([sys.executable, *options, "-c", code], check=True, cwd=cwd)


def test_importing_is_light() -> None:
    """The package alone loads none of its modules; all its public names load no oracle."""
    run_python(f"""
import sys, urial_engine
assert not [m for m in sys.modules if m.startswith("urial_engine.")], sys.modules
for name in urial_engine.__all__:
    getattr(urial_engine, name)
assert not {ORACLES!r} & sys.modules.keys()
""")


def test_token_shift_is_the_function_even_when_its_module_was_imported_first() -> None:
    run_python("""
import urial_engine.token_shift
from urial_engine import token_shift
assert token_shift.__name__ == "token_shift"
""")


def test_public_names() -> None:
    assert set(urial_engine.__all__) <= set(dir(urial_engine))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        urial_engine.nothing  # noqa: B018


def test_every_dependency_is_pinned() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = {key(name) for name in re.findall(r"^([\w.-]+)==", pins, re.MULTILINE)}
    needed = {key(re.split(r"[^\w.-]", line)[0]) for line in requires("urial-engine") or []}
    assert "numpy" in needed
    assert needed - {"urial-engine"} <= pinned


def key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_a_wheel_holds_everything(tmp_path: Path) -> None:
    """`pip install .` installs what the editable install shows: kernels, data, native module."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"]
    subprocess.run([*pip, "--wheel-dir", str(tmp_path), "."], check=True, cwd=ROOT)
    (wheel,) = tmp_path.glob("urial_engine-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    kinds = {".txt", ".typed", ".json", ".html", ".css", ".js"}
    data = [p for p in (ROOT / "urial_engine").rglob("*") if p.suffix in kinds]
    wanted = {relative(p) for p in MODULES + data}
    wanted |= {f"urial_engine/{relative(p)}" for p in KERNELS}
    assert "urial_engine/py.typed" in wanted
    assert not wanted - held
    assert {name.split("/")[0] for name in held if ".dist-info" not in name} == {"urial_engine"}
    # -S leaves out the hook of the editable install, and with it the source tree.
    paths = [str(tmp_path / "installed"), sysconfig.get_path("platlib")]
    code = f"""
import sys; sys.path += {paths!r}
import urial_engine._native, urial_engine.kernels.rank as rank
assert rank.__file__.startswith({paths[0]!r}), rank.__file__
"""
    run_python(code, "-I", "-S", cwd=tmp_path)
