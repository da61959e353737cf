"""What a figure was measured on."""

import datetime
import os
import platform
import subprocess
from pathlib import Path

import jax
import jaxlib
import numpy as np

from fastscan.dispatch import device_kind


def describe(command: str) -> dict:
    """Machine, versions, commit and date, as every record carries them.

    Args:
        command: what was run, as one would type it.
    """
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores, device {device_kind()}",
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "numpy": np.__version__,
        },
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str:
    """The checkout's commit, with "+" if files that git tracks differ from it."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
