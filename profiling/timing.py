"""Clocks. A timing is a median of warm calls, and means something only beside another from the same process."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

WARM_SECONDS = 0.03


def median_seconds(function: Callable, *args: Any, repeats: int = 9) -> float:
    """Median seconds of a call, after one that is not counted, each waited for."""
    return medians([function], *args, repeats=repeats)[0]


def medians(functions: Sequence[Callable], *args: Any, repeats: int = 9) -> list[float]:
    """Median seconds of several functions of the same arguments, in turns so that all see the same machine.

    Before each call that is timed come others that are not, for `WARM_SECONDS`: a function runs warm, not with memory and
    caches as another one has left them.
    """
    jax.block_until_ready([function(*args) for function in functions])
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, clock in zip(functions, seconds, strict=True):
            started = time.perf_counter()
            while time.perf_counter() < started + WARM_SECONDS:
                jax.block_until_ready(function(*args))
            start = time.perf_counter()
            jax.block_until_ready(function(*args))
            clock.append(time.perf_counter() - start)
    return [float(np.median(clock)) for clock in seconds]


def first_call_seconds(function: Callable, *args: Any) -> float:
    """Seconds of the first call of a jitted function: trace, compile and run."""
    jax.clear_caches()
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    return time.perf_counter() - start


def in_subprocess(code: str, timeout: float) -> list[float] | None:
    """The numbers in the last line that a Python program prints; None if it takes longer than ``timeout`` seconds.

    Raises:
        RuntimeError: the program failed; its own message is in it.
    """
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        raise RuntimeError(f"A subprocess failed: {done.stderr.strip().splitlines()[-1:]}")
    return [float(x) for x in done.stdout.strip().splitlines()[-1].split()]


_DYNAMAX_PARALLEL = """
import jax, jax.numpy as jnp
from dynamax.linear_gaussian_ssm import parallel_lgssm_smoother
from fastscan.profiling.models import tracking_params, simulate
from fastscan.profiling.timing import median_seconds
from fastscan import make_lgssm_params
p = tracking_params()
p = make_lgssm_params(p.initial.mean, p.initial.cov, p.dynamics.weights, p.dynamics.cov, p.emissions.weights, p.emissions.cov)
y = simulate(p, {T}, 0)
f = jax.jit(parallel_lgssm_smoother)
print(median_seconds(f, p, y))
"""


def dynamax_parallel_seconds(T: int, timeout: float) -> float | None:
    """Seconds of dynamax's parallel smoother on the tracking model, jitted and warm.

    In a process of its own with a time limit: on a CPU it now and then hangs for good.

    Args:
        T: time steps.
        timeout: seconds.

    Returns:
        Seconds; None if it did not end in time.

    Raises:
        RuntimeError: it failed, for one because dynamax is not installed.
    """
    seconds = in_subprocess(_DYNAMAX_PARALLEL.format(T=T), timeout)
    return None if seconds is None else seconds[0]
