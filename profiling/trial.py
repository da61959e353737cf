"""A trial of `compare`: pairs of runs of one commit, and pairs with a slowdown planted in one implementation of the second."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from fastscan.profiling import programs
from fastscan.profiling.cases import Case
from fastscan.profiling.compare import Finding, compare, regressed
from fastscan.profiling.measure import measure
from fastscan.profiling.operations import SEQUENTIAL
from fastscan.profiling.records import Row, read

SLOWDOWN = 0.15
PLANTED_IN = "chunked:16"
CASES = [Case("hmm_smoother", K, 0, T) for K in (2, 3, 5) for T in (1_000, 1_500, 2_000, 3_000)]
"""Short ones, which compile in a second."""


def run_trial(tries: int) -> bool:
    """Runs so many pairs of both kinds, and says of each what was found.

    Returns:
        Whether every planted slowdown was found, where it was and nowhere else, and nothing else ever was.
    """
    right = 0
    before = _run()
    for number in range(tries):
        same = _run()
        with _slowed(PLANTED_IN):
            slowed = _run()
        alike, planted = compare(before, same), compare(same, slowed)
        found = [f for f in planted if f.verdict == "REGRESSION"]
        at = {(f.implementation, f.metric) for f in found}
        right += not regressed(alike) and at == {(PLANTED_IN.split(":")[0], "time")}
        print(f"try {number + 1}: same commit: {_text(alike)}; {SLOWDOWN:.0%} planted: {_text(planted)}", flush=True)
        before = same
    print(f"right in {right} of {tries}")
    return right == tries


def _run() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measured.csv"
        problems = measure(CASES, path, names=["sequential", PLANTED_IN, SEQUENTIAL])
        if problems:
            raise RuntimeError("; ".join(problems))
        return read(path)


@contextmanager
def _slowed(implementation: str) -> Iterator[None]:
    """Makes every program of an implementation wait after a call, for a share of the time that the call took."""
    compiled = programs.compiled

    def slower(case: Case, name: str) -> programs.Program:
        program = compiled(case, name)
        return program._replace(call=_slow(program.call)) if name == implementation else program

    programs.compiled = slower
    try:
        yield
    finally:
        programs.compiled = compiled


def _slow(call: Callable[..., Any]) -> Callable[..., Any]:
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
