"""A trial of `compare`: pairs of runs of one commit, and pairs with a slowdown planted in one implementation of the second."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from fastscan.profiling.measure import programs
from fastscan.profiling.measure.cases import Case
from fastscan.profiling.measure.operations import SEQUENTIAL
from fastscan.profiling.measure.rows import Row, read
from fastscan.profiling.measure.run import measure
from fastscan.profiling.verdicts.compare import Finding, compare, regressed

SLOWDOWN = 0.15
PLANTED_IN = "chunked:128"
CASES = [Case("hmm_smoother", K, 0, T) for K in (2, 3, 5) for T in (10_000, 15_000, 20_000, 30_000)]
"""Cases of a millisecond or more: what a thread takes to wake up differs between processes, and is most of a shorter call."""


def run_trial(tries: int) -> bool:
    """Runs so many pairs of both kinds, every run in a process of its own, and says of each what was found.

    Returns:
        Whether every planted slowdown was found, where it was and nowhere else, and nothing else ever was.
    """
    right = 0
    with tempfile.TemporaryDirectory() as folder:
        _run(Path(folder), -1, slowed=False)  # which compiles, as the others need not
        before = _run(Path(folder), 0, slowed=False)
        for number in range(1, tries + 1):
            same, slowed = (_run(Path(folder), number, slowed=slowed) for slowed in (False, True))
            alike, planted = compare(before, same), compare(same, slowed)
            found = {(f.implementation, f.metric) for f in planted if f.verdict == "REGRESSION"}
            right += not regressed(alike) and found == {(PLANTED_IN.split(":")[0], "time")}
            print(f"try {number}: same commit: {_text(alike)}; {SLOWDOWN:.0%} planted: {_text(planted)}", flush=True)
            before = same
    print(f"right in {right} of {tries}")
    return right == tries


def run_once(folder: str, name: str, slowed: bool) -> None:
    """Runs once, into a record; what it compiles is kept for the next ones."""
    jax.config.update("jax_compilation_cache_dir", str(Path(folder) / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if slowed:
        compiled = programs.compiled

        def slower(case: Case, implementation: str) -> programs.CompiledCall:
            program = compiled(case, implementation)
            return program._replace(call=_slow(program.call)) if implementation == PLANTED_IN else program

        programs.compiled = slower
    problems = measure(CASES, Path(folder) / name, names=["sequential", PLANTED_IN, SEQUENTIAL])
    if problems:
        raise RuntimeError("; ".join(problems))


def _run(folder: Path, number: int, *, slowed: bool) -> list[Row]:
    name = f"measured-{number}-{slowed}.csv"
    code = f"from fastscan.profiling.verdicts.trial import run_once; run_once({str(folder)!r}, {name!r}, {slowed})"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return read(folder / name)


def _slow(call: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a call that waits for a share of the time that it took."""

    def run(*args: Any) -> Any:
        start = time.perf_counter()
        out = jax.block_until_ready(call(*args))
        end = time.perf_counter()
        while time.perf_counter() < end + SLOWDOWN * (end - start):
            pass
        return out

    return run


def _text(findings: list[Finding]) -> str:
    found = [f"{f.operation} {f.implementation} {f.metric} {f.ratio:.2f}" for f in findings if f.verdict == "REGRESSION"]
    return ", ".join(found) or "no regression"
