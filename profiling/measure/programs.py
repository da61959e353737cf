"""The cases' programs, compiled, and their references: one by one, or ahead and side by side where that takes most time."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax
import numpy as np

from fastscan.profiling.measure import operations
from fastscan.profiling.measure.cases import Case

NOT_COMPILED = "not compiled in time"
"""The note of a row that another run may have the time for."""

_REFERENCE = "reference"


class CompiledCall(NamedTuple):
    """A compiled function of a case's data, the seconds that took, and what it moves and allocates."""

    call: Callable[..., Any]
    compile_seconds: float
    bytes: int | None
    temporary_bytes: int | None


class Programs:
    """Compiles every program once: in the background with so many ``workers``, or, with 0, as it is asked for."""

    def __init__(self, workers: int = 0) -> None:
        self.background = workers > 0
        self._pool = ThreadPoolExecutor(max(workers, 1))
        self._futures: dict[tuple[Case, str], Future] = {}

    def ahead(self, case: Case, implementation: str) -> None:
        """Compiles soon, if there is a background."""
        if self.background and (case, implementation) not in self._futures:
            self._futures[case, implementation] = self._pool.submit(compiled, case, implementation)

    def reference_ahead(self, case: Case, dynamax: bool) -> None:
        """Computes what the case's results are held against soon, if there is a background."""
        if self.background:
            self._futures[case, _REFERENCE] = self._pool.submit(operations.reference, case, dynamax)

    def reference(self, case: Case, dynamax: bool) -> tuple[list[np.ndarray], str]:
        """Returns the results that the case's are held against, and in words how they were computed; they are kept no
        longer.
        """
        ahead = self._futures.pop((case, _REFERENCE), None)
        return operations.reference(case, dynamax) if ahead is None else ahead.result()

    def get(self, case: Case, implementation: str, timeout: float | None = None) -> CompiledCall:
        """Returns the program, once it is compiled; errors are the compiler's.

        Raises:
            TimeoutError: it was not compiled within ``timeout`` seconds.
        """
        if not self.background:
            jax.clear_caches()
            return compiled(case, implementation)
        self.ahead(case, implementation)
        try:
            return self._futures[case, implementation].result(timeout)
        except TimeoutError as error:
            raise TimeoutError(NOT_COMPILED) from error

    def ready(self, case: Case, implementation: str) -> bool:
        """Tells whether the program is compiled, or failed to."""
        return self._futures[case, implementation].done()

    def wait(self, case: Case, implementations: Iterable[str], timeout: float) -> None:
        """Waits for a case's programs."""
        wait([self._futures[case, name] for name in implementations], max(timeout, 0))


def compiled(case: Case, implementation: str) -> CompiledCall:
    """Compiles a program for JAX's default device."""
    run = operations.function(case, implementation)
    assert run is not None  # what dynamax does not have is not asked for
    with jax.enable_x64(case.dtype == "float64"):
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), operations.data(case))
        start = time.perf_counter()
        call = jax.jit(run).lower(*shapes).compile()
        seconds = time.perf_counter() - start
    usage = call.memory_analysis()
    if usage is None:
        return CompiledCall(call, seconds, None, None)
    return CompiledCall(call, seconds, usage.argument_size_in_bytes + usage.output_size_in_bytes, usage.temp_size_in_bytes)
