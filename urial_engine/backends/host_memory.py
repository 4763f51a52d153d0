"""What the system says of its memory; nothing goes in, a number of bytes comes out."""

from __future__ import annotations

import os
from pathlib import Path


def available_memory() -> int:
    """Bytes that could be allocated now, as far as the system says: machine and container."""
    machine = _meminfo_available() or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    limit, used = (_number(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if used is not None:
        used -= _file_pages()  # they give way: the weights that were just read are among them
    return machine if limit is None or used is None else max(min(machine, limit - used), 0)


def _meminfo_available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    values = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return values[0] if values else None


def _file_pages() -> int:
    """Bytes of the container's use that are copies of files."""
    try:
        lines = Path("/sys/fs/cgroup/memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(x.split()[1]) for x in lines if x.startswith(("active_file ", "inactive_file ")))


def _number(path: str) -> int | None:
    """A file that holds one number; None where there is none, or it says "max"."""
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None
