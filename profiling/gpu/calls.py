"""Public calls for profilers to look at, in a process of its own: run once each, or traced by JAX's profiler."""

import json
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from fastscan.profiling.measure import operations
from fastscan.profiling.measure.cases import Case

CALLS = {
    "lgssm_smoother": Case("lgssm_smoother", 4, 2, 100_000),
    "lgssm_smoother of a million": Case("lgssm_smoother", 4, 2, 1_000_000),
    "lgssm_smoother of a batch": Case("lgssm_smoother", 4, 2, 1_000, 1_024),
    "hmm_smoother": Case("hmm_smoother", 5, 0, 1_000_000),
    "hmm_posterior_sample": Case("hmm_posterior_sample", 5, 0, 1_000_000),
    "rw_metropolis": Case("metropolis_moments", 1, 0, 10_000, 1_000),
}
TOY_CALLS = {
    "lgssm_smoother": Case("lgssm_smoother", 1, 1, 17),
    "hmm_smoother": Case("hmm_smoother", 2, 0, 17),
    "rw_metropolis": Case("metropolis_moments", 1, 0, 100, 64),
}
TRACED = 3
"""Calls in a trace, after one that compiled."""

ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "JAX_COMPILATION_CACHE_DIR": str(Path(tempfile.gettempdir()) / "fastscan-compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}
"""The environment of the process: another profiler's need not compile what one had compiled."""

CODE = "from fastscan.profiling.gpu.calls import main; main()"


def main() -> None:
    """Runs calls as the command line says, in JSON: at toy sizes or not, and into which folder traces go, if any."""
    told = json.loads(sys.argv[1])
    calls = {name: _call(case, toy=told["toy"]) for name, case in (TOY_CALLS if told["toy"] else CALLS).items()}
    with ThreadPoolExecutor(len(calls)) as pool:  # most of the time is a compiler's
        for name, done in [(name, pool.submit(call)) for name, call in calls.items()]:
            print(f"{name}: {done.exception() or 'ok'}", flush=True)
            if done.exception():
                calls.pop(name)
    if told["traces"]:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # Python's own calls would be most of a trace
        for name, call in calls.items():
            with jax.profiler.trace(str(Path(told["traces"]) / name), profiler_options=options):
                for _ in range(TRACED):
                    with jax.profiler.TraceAnnotation(name):
                        call()


def _call(case: Case, *, toy: bool) -> Callable[[], Any]:
    run = operations.OPERATIONS[case.operation].ours(case, "pallas_interpret" if toy else "pallas")
    data = jax.device_put(operations.data(case))
    return lambda: jax.block_until_ready(run(*data))
