"""The command line as the tests call it, in this process or in one of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from urial_engine.cli.app import app

PREFIX = "# Query:\n```\nhi\n```\n\n# Answer:\n```\nHello!\n```\n"  # fits in a tiny context


def cli(*arguments: object, code: int = 0, stdin: str | None = None) -> Result:
    """Runs a command; the exit code must be `code`."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)
    assert result.exit_code == code, result.output
    return result


def start(*arguments: object, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    code = "import sys; from urial_engine.cli import main; sys.argv[0] = 'urial-engine'; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True)


def write_prefix(folder: Path) -> Path:
    path = folder / "prefix.txt"
    path.write_text(PREFIX)
    return path


def write_rows(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path: Path) -> dict[object, dict[str, Any]]:
    """By id, each once."""
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}
