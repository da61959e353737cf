"""The problems that are run on a GPU, and their programs: compiled ahead, side by side, because that takes most of the time."""

import functools
import os
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fastscan
from fastscan.profiling.models import random_params


class Problem(NamedTuple):
    """One piece of work. B is 0 for emissions without a batch axis."""

    function: str
    D: int
    m: int
    T: int
    B: int = 0
    dtype: str = "float32"

    def __str__(self) -> str:
        batch = f" B={self.B:,}" if self.B else ""
        return f"{self.function} D={self.D} m={self.m} T={self.T:,}{batch} {self.dtype}"

    def data(self, gaps: bool = False) -> tuple[Any, np.ndarray, np.ndarray]:
        """A stable model, emissions ((B,) T, m) of its scale, a key; with ``gaps`` steps, entries and a stretch are NaN."""
        r = np.random.default_rng(0)
        y = 2 * r.standard_normal((max(self.B, 1), self.T, self.m), "float32").astype(self.dtype)
        if gaps:
            y[r.random(y.shape[:2]) < 0.1] = np.nan
            y[r.random(y.shape) < 0.05] = np.nan
            y[:, self.T // 3 : self.T // 3 + min(50, self.T // 4)] = np.nan
        params = jax.tree.map(lambda x: np.asarray(x, self.dtype), random_params(self.D, self.m))
        return params, y if self.B else y[0], np.array([0, 1], np.uint32)


class Program(NamedTuple):
    """A compiled function of a problem's data, and what it took. ``beside``: others that were compiled at the same time."""

    call: Callable[..., Any]
    lower_seconds: float
    compile_seconds: float
    beside: int
    bytes: int | None
    temporary_bytes: int | None


class Programs:
    """Compiles in the background, each program once. A number of ``workers`` of 0 compiles only what is waited for."""

    def __init__(self, workers: int | None = None) -> None:
        workers = min(12, max(1, (os.cpu_count() or 1) - 2)) if workers is None else workers
        self.background = workers > 0
        self._pool = ThreadPoolExecutor(max(workers, 1))
        self._futures: dict[tuple, Future] = {}
        self.compiling = 0

    def ahead(self, problem: Problem, implementation: str | None) -> None:
        """Compiles soon, if there is a background."""
        if self.background:
            self._submit(problem, implementation)

    def get(self, problem: Problem, implementation: str | None, timeout: float | None = None) -> Program:
        """The program, once it is compiled; errors are the compiler's.

        Raises:
            TimeoutError: it was not compiled within ``timeout`` seconds, or not begun when the programs had to settle.
        """
        try:
            return self._submit(problem, implementation).result(timeout)
        except (TimeoutError, CancelledError) as error:
            raise TimeoutError("not compiled in time") from error

    def ready(self, problem: Problem, implementation: str | None) -> bool:
        """Whether `get` need not wait for what happens in the background."""
        return not self.background or self._submit(problem, implementation).done()

    def settle(self, timeout: float) -> None:
        """Waits for all that is to be compiled, then gives up what was not begun, so that little disturbs a measurement."""
        wait(list(self._futures.values()), max(timeout, 0))
        for future in self._futures.values():
            future.cancel()

    def _submit(self, problem: Problem, implementation: str | None) -> Future:
        key = problem, implementation
        if key not in self._futures:
            self._futures[key] = self._pool.submit(self._compile, problem, implementation)
        return self._futures[key]

    def _compile(self, problem: Problem, implementation: str | None) -> Program:
        beside, self.compiling = self.compiling, self.compiling + 1
        try:
            return compiled(problem, implementation)._replace(beside=max(beside, self.compiling - 1))
        finally:
            self.compiling -= 1


def compiled(problem: Problem, implementation: str | None) -> Program:
    """Compiles a program for JAX's default device."""
    with jax.enable_x64(problem.dtype == "float64"):
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), problem._replace(T=1, B=0).data())
        batch = (problem.B,) if problem.B else ()
        emissions = jax.ShapeDtypeStruct((*batch, problem.T, problem.m), problem.dtype)
        start = time.perf_counter()
        lowered = jax.jit(_function(problem, implementation)).lower(shapes[0], emissions, shapes[2])
        middle = time.perf_counter()
        call = lowered.compile()
        end = time.perf_counter()
    usage = call.memory_analysis()
    needed = None if usage is None else usage.argument_size_in_bytes + usage.output_size_in_bytes
    temporary = None if usage is None else usage.temp_size_in_bytes
    return Program(call, middle - start, end - middle, 0, needed, temporary)


def reference(problem: Problem, gaps: bool) -> tuple[Any, str]:
    """The same data's moments in float64 on the CPU, as NumPy arrays, and in words how they were computed."""
    name = "sequential" if problem.T <= 100_000 else "chunked"
    params, y, key = problem.data(gaps)
    double = problem._replace(dtype="float64")
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        params, y = jax.tree.map(lambda x: x.astype("float64"), (params, y))
        result = compiled(double, name).call(*jax.device_put((params, y, key)))
        return jax.tree.map(np.asarray, result), f"{name} float64 cpu"


def _function(problem: Problem, implementation: str | None) -> Callable:
    """A function of params, emissions and a key.

    Args:
        problem: whose ``function`` is "smoother", "filter", "loglik" or "posterior sample".
        implementation: one of ours, or "dynamax sequential" or "dynamax parallel".
    """
    if implementation is None or not implementation.startswith("dynamax"):
        ours = {
            "smoother": fastscan.lgssm_smoother,
            "filter": fastscan.lgssm_filter,
            "loglik": fastscan.lgssm_marginal_loglik,
            "posterior sample": fastscan.lgssm_posterior_sample,
        }[problem.function]
        return _with_key(problem, functools.partial(ours, implementation=implementation))
    import dynamax.linear_gaussian_ssm as dynamax

    name = {"smoother": "smoother", "filter": "filter", "loglik": "filter", "posterior sample": "posterior_sample"}
    theirs = getattr(dynamax, ("parallel_" if "parallel" in implementation else "") + "lgssm_" + name[problem.function])
    run = _with_key(problem, theirs)
    if problem.function == "loglik":
        run = functools.partial(_loglik, run)
    return jax.vmap(run, (None, 0, None)) if problem.B else run


def _with_key(problem: Problem, function: Callable) -> Callable:
    if problem.function == "posterior sample":
        return lambda params, y, key: function(key, params, y)
    return lambda params, y, key: function(params, y)  # noqa: ARG005


def _loglik(run: Callable, params: Any, y: jax.Array, key: jax.Array) -> jax.Array:
    return jnp.asarray(run(params, y, key).marginal_loglik)
