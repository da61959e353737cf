"""The machine, versions and commit that a figure was measured on."""

import datetime
import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

import fastscan
from fastscan.dispatch.choice import device_kind

PACKAGES = ("jax", "jaxlib", "triton", "dynamax")


def stamp(commit: str | None = None) -> dict[str, Any]:
    """Tells device, machine, driver, versions, commit and date: the last columns of `fastscan.profiling.measure.rows.Row`.

    Args:
        commit: what is measured, for a copy of the code whose git says something else, or nothing.
    """
    commit, dirty = (commit, False) if commit else _commit()
    return {
        "device": device_kind(),
        "machine": _processor(),
        "cores": os.cpu_count() or 1,
        "driver": _driver(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "commit": commit,
        "dirty": dirty,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def describe(command: str) -> dict[str, Any]:
    """Describes these in a few words, for a record whose rows do not hold them.

    Args:
        command: what was run, as one would type it.
    """
    on = stamp()
    return {
        "machine": f"{on['machine']}, {on['cores']} cores, device {on['device']}",
        "versions": {name: on[name] for name in ("python", "jax", "jaxlib")} | {"numpy": version("numpy")},
        "commit": on["commit"] + ("+" if on["dirty"] else ""),
        "date": on["date"],
        "command": command,
    }


def version(package: str) -> str:
    """Returns the version of an installed package; "" if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def nvidia_smi(fields: str) -> str:
    """Asks NVIDIA's tool about the first GPU; "" without one."""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.SubprocessError, IndexError):
        return ""


@functools.cache
def _driver() -> str:
    return nvidia_smi("driver_version") if jax.default_backend() != "cpu" else ""


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def checkout() -> Path | None:
    """Finds the checkout that this code runs from; None where it is installed."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").exists() else None


def _commit() -> tuple[str, bool]:
    """Returns the checkout's commit, and whether files of the code that git tracks differ from it; the version of what is
    installed.
    """
    root = checkout()
    if root is None:
        return f"v{fastscan.__version__}", False

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "*.py", "*.json", "*.toml")
        return git("rev-parse", "--short=12", "HEAD"), bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return "unknown", False
