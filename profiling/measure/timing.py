"""Clocks. A timing means something only beside another from the same process, taken in turns."""

import subprocess
import sys
import time
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import numpy as np

WARM_SECONDS = 0.01
"""Before each sample a function runs for so long, not counted: with memory and caches as it leaves them itself."""

SAMPLE_SECONDS, IN_FLIGHT_SECONDS = 0.002, 0.02
"""A sample of calls that are waited for lasts at least so long; one of calls in flight."""

MOST_SECONDS = 4.0
"""The most seconds of all samples of one function, unless three take longer."""


class Clock(NamedTuple):
    """Seconds of a call: ``waited`` for each, or ``in_flight`` with others, one number a sample."""

    waited: list[float]
    in_flight: list[float]


def clock(
    calls: dict[Hashable, Callable[[], Any]],
    *,
    repeats: int = 15,
    in_flight: bool = False,
    seconds_left: Callable[[], float] = lambda: 1e9,
) -> dict[Hashable, Clock]:
    """Times functions that have run before, in turns, so that all see the same machine.

    Args:
        calls: the functions.
        repeats: samples of each; fewer of slow ones, but at least 3.
        in_flight: take samples of calls that are waited for together, too.
        seconds_left: when this is negative, no further turn begins.
    """
    seconds = {name: min(_sample(call, 1, wait=True) for _ in range(2)) for name, call in calls.items()}
    found = {name: Clock([], []) for name in calls}
    for turn in range(repeats):
        for name, call in calls.items():
            one = seconds[name]
            if turn >= max(3, MOST_SECONDS / (one + min(one, WARM_SECONDS))) or (turn and seconds_left() < 0):
                continue
            if one < 10 * WARM_SECONDS:
                _sample(call, _count(WARM_SECONDS, one), wait=True)
            found[name].waited.append(_sample(call, _count(SAMPLE_SECONDS, one), wait=True))
            if in_flight:
                found[name].in_flight.append(_sample(call, _count(IN_FLIGHT_SECONDS, one), wait=False))
    return found


def _count(seconds: float, one: float) -> int:
    return int(np.clip(seconds / one, 1, 512))


def _sample(call: Callable[[], Any], n: int, *, wait: bool) -> float:
    start = time.perf_counter()
    for _ in range(n):
        out = call()
        if wait:
            jax.block_until_ready(out)
    jax.block_until_ready(out)
    return (time.perf_counter() - start) / n


def median_seconds(function: Callable, *args: Any) -> float:
    """Measures the median seconds of a call, after one that is not counted, each waited for."""

    def call() -> Any:
        return function(*args)

    jax.block_until_ready(call())
    return float(np.median(clock({0: call}, repeats=9)[0].waited))


def first_and_warm(call: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Measures the seconds of a first call, nothing being compiled before, and the median of those after it."""
    jax.clear_caches()
    seconds = [_sample(call, 1, wait=True) for _ in range(1 + repeats)]
    return seconds[0], float(np.median(seconds[1:]))


def last_line(code: str, timeout: float) -> str | None:
    """Runs a Python program, and returns the last line that it prints; None if it takes longer than ``timeout`` seconds.

    Raises:
        RuntimeError: the program failed; its own message is in it.
    """
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        raise RuntimeError(f"A subprocess failed: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout.strip().splitlines()[-1]


def in_subprocess(code: str, timeout: float) -> list[float] | None:
    """Runs a Python program, and returns the numbers in its last line; None and errors are those of `last_line`."""
    line = last_line(code, timeout)
    return None if line is None else [float(x) for x in line.split()]
