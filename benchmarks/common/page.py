"""The head of a results page, and the two numbers that stand for a column."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path


def commit() -> str:
    """git's HEAD, marked when tracked files differ from it."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"], check=True, capture_output=True, text=True
    ).stdout
    return head + (" with changes" if changed else "")


def head(module: str, load_before: float) -> str:
    """Command, hardware, versions, commit, date and the load that other processes put on the machine before."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "megatron-core"))
    return f"""- command: `python -m {module} {shlex.join(sys.argv[1:])}`
- hardware: {os.cpu_count()} CPU cores ({_cpu_model()}), {_memory_gib():.0f} GiB, Linux {platform.release()}
- versions: Python {platform.python_version()}, {packages}
- commit: {commit()}
- date: {datetime.datetime.now(datetime.UTC).date().isoformat()}
- load average of the minute before: {load_before:.1f}"""


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def median_and_range(values: Sequence[float]) -> tuple[float, float, float]:
    """(median, smallest, largest)."""
    return statistics.median(values), min(values), max(values)


def seconds_cell(values: Sequence[float]) -> str:
    """Median with the range, for a table; empty when nothing was measured."""
    if not values:
        return ""
    middle, low, high = median_and_range(values)
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"
