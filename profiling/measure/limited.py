"""Other processes, which end in time or are ended: a compiler can't be interrupted, nor can a kernel that hangs."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

_children: set[subprocess.Popen] = set()


def start(command: Sequence[str], *, stdout: IO | int, stderr: IO | int, environment: Mapping[str, str]) -> subprocess.Popen:
    """Starts a process in a group of its own, which `end_all` finds until `end` has seen it."""
    here: dict[str, Any] = {"env": os.environ | environment, "process_group": 0}
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, **here)
    _children.add(child)
    return child


def end(child: subprocess.Popen) -> int:
    """Kills a process with all of its own, if it has not ended, and returns its status."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
    _children.discard(child)
    return child.wait()


def end_all() -> None:
    """Kills what was started and has not ended."""
    for child in list(_children):
        end(child)


def run_limited(command: Sequence[str], output: Path, seconds: float, **environment: str) -> int | None:
    """Runs a command, both of its outputs into one file; returns its status, None if it did not end in so many seconds."""
    with output.open("w") as file:
        child = start(command, stdout=file, stderr=subprocess.STDOUT, environment=environment)
        try:
            return child.wait(max(seconds, 0))
        except subprocess.TimeoutExpired:
            return None
        finally:
            end(child)
