"""Counts the code against its budgets and fails where one is exceeded: `make size`.

A code line is a line that holds code: blank lines, comments and docstrings are free, so that nobody
saves a line by explaining less. A function's length counts the same way, decorators and nested
functions included; a file's limit counts every line, whatever it holds.
Raising a number on this page is a decision, with its reason in the commit.
"""

from __future__ import annotations

import ast
import io
import re
import statistics
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# core: 3,000 was the aim before it was written. Llama's and Mistral's legacy tokenizer rules, the
# gates of config.json and the checks of damaged files came to 500 more than was thought.
# Another 50 bought a start in a third of a second and half the memory while loading (slices of the
# weights read and packed by all threads), and prompts that do not tokenise their prefix again.
# And 50 the contract that lets hidden states stay on a device, and errors that carry what is done.
# And 60 more prefixes than one, pinned and let go while others run, and steps that a caller makes.
# native: 4,000 was the aim. The sampler on the device, which it did not have, came to 170 lines,
# the bindings of the CUDA kernels to 130.
# gpu: the backend beside the CPU's, and Triton's kernels. It can be deleted with the core as it is.
# That steps, choices and scores are recorded as graphs is 250 lines of it.
# shift: two models' measures of every token, which `core` held while one context was all there was:
# columns, vocabularies that differ, samples, the published conventions. report: what is made of the
# measures (runs that are kept, files, statistics, plots, the page) and where queries come from. It
# can be deleted with the measures as they are.
# compat: other engines' Python APIs over ours. evaluation: benchmarks' files, and a judge. The two
# commands of the latter are 330 lines of thin. server: the forms of three APIs over HTTP.
BUDGETS = {
    "core": 3660, "shift": 800, "report": 2650, "gpu": 1650, "oracle": 600, "thin": 2300,
    "compat": 1150, "evaluation": 650, "server": 2250, "native": 4150,
}  # code lines  # fmt: skip
GPU = ("urial_engine/backends/cuda", "kernels/attention/plan", "kernels/attention/tiles")
# What judges the engine and is not needed to run it: the references, and single operations.
ORACLE = ("kernels", "urial_engine/backends/reference.py")
# Layers over the public calls that can be deleted without touching the core.
THIN = ("cli", "gguf_import", "jsonl")
PARTS = ("run", "kept", "files", "answers", "table", "models", "report", "published")
REPORT = ("report", "sources", "prompt_examples", *(f"token_shift_{part}" for part in PARTS))
SHIFT = ("token_shift", "shift_data")
STAGES = {"thin": THIN, "report": REPORT, "shift": SHIFT}
STAGES |= {name: (name,) for name in ("compat", "evaluation", "server")}
FOLDERS = ("urial_engine", "kernels", "csrc", "tests", "benchmarks", "tools")
FILE_LINES = 300  # of a Python file
FUNCTION_LINES = 60
MEDIAN_FUNCTION_LINES = 12  # over urial_engine/ and kernels/

SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
SILENT |= {tokenize.ENCODING, tokenize.ENDMARKER}
NATIVE_TOKEN = re.compile(
    r""""(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])'|//[^\n]*|/\*.*?\*/""", re.DOTALL
)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def python_code_lines(text: str) -> set[int]:
    """The numbers, from 1, of the lines that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in SILENT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node):
            docstring = node.body[0]
            lines.difference_update(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    return lines


def functions(text: str) -> Iterator[tuple[str, int]]:
    """Each function's name and length in code lines."""
    code = python_code_lines(text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Function):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            yield node.name, len(code & set(range(first, (node.end_lineno or 0) + 1)))


def native_code_lines(text: str) -> int:
    """Lines of C++ left when comments are gone and strings are kept."""

    def keep(match: re.Match[str]) -> str:
        found = match.group()
        return found if found[0] in "\"'" else "\n" * found.count("\n")

    return sum(bool(line.strip()) for line in NATIVE_TOKEN.sub(keep, text).splitlines())


def sources(folder: str) -> list[Path]:
    found = (p for p in (ROOT / folder).rglob("*") if p.suffix in {".py", ".cpp", ".h", ".cu"})
    return sorted(p for p in found if "__pycache__" not in p.parts)


def count(path: Path) -> int:
    text = path.read_text(encoding="utf-8")
    return len(python_code_lines(text)) if path.suffix == ".py" else native_code_lines(text)


def budget_of(path: Path) -> str | None:
    """Which budget a file counts against; None for what only serves the others."""
    top, *rest = path.relative_to(ROOT).parts
    name = path.relative_to(ROOT).as_posix()
    if name.startswith(GPU) or path.stem == "triton_kernel":
        return "gpu"
    if name.startswith(ORACLE):
        return "oracle"
    if top == "urial_engine":
        stem = Path(rest[0]).stem
        of = (b for b, names in STAGES.items() for n in names if f"{stem}_".startswith(f"{n}_"))
        return next(of, "core")
    return {"csrc": "native"}.get(top)


def row(name: str, files: int, code: int, lines: int, budget: str) -> str:
    return f"{name:<26}{files:>6}{code:>8}{lines:>8}{budget:>9}"


def table() -> tuple[list[str], dict[str, int]]:
    """The printed table, and the code lines spent of each budget."""
    groups: dict[tuple[str, str], list[Path]] = {}
    for path in (p for folder in FOLDERS for p in sources(folder)):
        parent = path.relative_to(ROOT).parent
        groups.setdefault((budget_of(path) or "-", "/".join(parent.parts[:2])), []).append(path)
    spent = dict.fromkeys(BUDGETS, 0)
    shown = [f"{'folder':<26}{'files':>6}{'code':>8}{'lines':>8}{'budget':>9}"]
    for (budget, folder), paths in groups.items():
        code = sum(map(count, paths))
        spent[budget] = spent.get(budget, 0) + code
        lines = sum(len(p.read_text(encoding="utf-8").splitlines()) for p in paths)
        shown.append(row(folder, len(paths), code, lines, budget))
    shown += [f"{name}: {spent[name]} of {limit}" for name, limit in BUDGETS.items()]
    return shown, spent


def violations(spent: dict[str, int]) -> Iterator[str]:
    """Everything that is over its limit, a sentence each."""
    for name, limit in BUDGETS.items():
        if spent[name] > limit:
            yield f"the {name} budget is exceeded: {spent[name]} code lines, {limit} allowed"
    for path in (p for folder in FOLDERS for p in sources(folder) if p.suffix == ".py"):
        text = path.read_text(encoding="utf-8")
        lines = len(text.splitlines())
        if lines > FILE_LINES:
            yield f"{path.relative_to(ROOT)}: {lines} lines, {FILE_LINES} allowed"
        for name, length in functions(text):
            if length > FUNCTION_LINES:
                yield f"{path.relative_to(ROOT)}: {name}() has {length}, {FUNCTION_LINES} allowed"
    median = median_function()
    if median > MEDIAN_FUNCTION_LINES:
        yield f"the median function has {median:g} code lines, {MEDIAN_FUNCTION_LINES} allowed"


def median_function() -> float:
    texts = (p.read_text(encoding="utf-8") for f in ("urial_engine", "kernels") for p in sources(f))
    return statistics.median([length for text in texts for _, length in functions(text)] or [0])


def main() -> int:
    shown, spent = table()
    print("\n".join(shown))
    print(f"median function: {median_function():g} of {MEDIAN_FUNCTION_LINES} code lines")
    problems = list(violations(spent))
    print("\n".join(problems) if problems else "every budget holds", flush=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
