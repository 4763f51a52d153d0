"""What every test shares: the fixtures of tests/fixtures.py, and an account of what was skipped."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import pytest

pytest_plugins = ["tests.fixtures", "tests.serving"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--gpu",
        action="store_true",
        help="run Triton's kernels and the CUDA backend on this machine's GPU, not interpreted",
    )
    parser.addoption(
        "--soak",
        action="store_true",
        help="load and fuzz a server for minutes, and assert its throughput (`make soak`)",
    )
    parser.addoption(
        "--measured",
        type=Path,
        metavar="FILE",
        help="keep in a JSON file what passed, and the errors of Triton's kernels beside the bound",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Before anything imports triton, which looks at this once."""
    os.environ["TRITON_INTERPRET"] = "0" if config.getoption("--gpu") else "1"
    # A shell that starts the tests in the background has Ctrl-C ignored, which several are about.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if file := config.getoption("--measured"):
        from tests.kernels.measured import watch  # torch with it

        watch(config, file)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Published prompts and questions, which may lie beside the project and are no part of it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data, which does not lie beside the project here")
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line with the number of skips and each distinct reason: a skip is never silent."""
    reasons = Counter(_reason(report) for report in terminalreporter.stats.get("skipped", []))
    each = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    terminalreporter.write_line(f"skipped: {reasons.total()} ({each or 'nothing'})")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ")
