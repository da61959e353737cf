"""jax-moseq's steps of Gibbs sampling as they are, by dynamax, and under `fastscan.adopt`: times and memory, in one process.

dynamax's parallel sampler is left out on a CPU, where it did not end in ten minutes. jax-moseq asks for dynamax before 1.0.3,
so it is not among what this project installs. Into a folder of its own:
``pip install --target DIR --no-deps jax-moseq "dynamax<1.0.3" optree tqdm numba llvmlite``, and ``PYTHONPATH=DIR``.
"""

import contextlib
import functools
import importlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from fastscan.profiling.measure.machine import describe, version
from fastscan.profiling.measure.rows import write_record
from fastscan.profiling.measure.timing import median_seconds
from fastscan.profiling.peers.adopted import all_ours

CONTINUOUS = ((12, 16, 25, 4, 5_000), (30, 16, 100, 2, 2_000))
"""D, m, K, recordings, T: a published analysis, and jax-moseq's default sizes."""

OURS, SERIAL, PARALLEL = "fastscan, adopted", "dynamax", "dynamax, parallel"


class Timed(NamedTuple):
    """Seconds of tracing and compiling, the median of warm calls, and bytes of temporary memory, of float32 arrays."""

    work: str
    who: str
    compiled: float
    seconds: float
    temporary: float


def recordings(D: int, m: int, K: int, B: int, T: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Makes what recordings (B, ...) have of their own, and what they share: dynamics that turn and fade, one set a state."""
    r = np.random.default_rng(0)
    stay = r.random((B, T - 1)) < 0.97
    states = r.integers(0, K, (B, T - 1))
    for t in range(1, T - 1):
        states[:, t] = np.where(stay[:, t], states[:, t - 1], states[:, t])
    own = {"ys": r.normal(size=(B, T, m)), "mask": np.ones((B, T)), "zs": states, "Rs": r.uniform(0.3, 0.5, (B, T, m))}
    shared = {
        "m0": np.zeros(D),
        "S0": np.eye(D),
        "A": 0.97 * np.linalg.qr(r.normal(size=(K, D, D)))[0],
        "B": 0.1 * r.normal(size=(K, D)),
        "Q": 0.05 * np.eye(D) * r.uniform(0.5, 1.5, (K, 1, 1)),
        "C": r.normal(size=(m, D)) / np.sqrt(D),
        "D": r.normal(size=m),
        "masked_dynamics_params": {"weights": np.eye(D), "bias": np.zeros(D), "cov": 0.1 * np.eye(D)},
        "masked_obs_noise": np.full(m, 10.0),
    }
    own["mask"] = own["mask"].astype(bool)
    return jax.tree.map(_single, own), jax.tree.map(_single, shared)


def states_of(K: int, B: int, T: int) -> tuple[Any, Any, Any]:
    """Makes a sticky transition matrix, log-likelihoods (B, T, K), and a mask of ones."""
    r = np.random.default_rng(0)
    A = 0.95 * np.eye(K) + 0.05 * r.dirichlet(np.ones(K), K)
    return _single(A), _single(2 * r.normal(size=(B, T, K))), _single(np.ones((B, T)))


def calls() -> Iterator[tuple[str, str, Callable[[], tuple[Callable, tuple]]]]:
    """Lists work, who does it, and what makes a function and its arguments."""
    for sizes in CONTINUOUS:
        D, m, K, B, T = sizes
        for who in (OURS, SERIAL) if jax.default_backend() == "cpu" else (OURS, SERIAL, PARALLEL):
            work = f"continuous states, D={D}, m={m}, K={K}, {B} x {T:,}"
            yield work, who, functools.partial(_continuous, sizes, parallel=who != SERIAL)
    for _, _, K, B, T in CONTINUOUS:
        for who in (OURS, SERIAL):
            yield f"discrete states, K={K}, {B} x {T:,}", who, functools.partial(_discrete, K, B, T)


def run_moseq(folder: Path, only: str = "") -> list[Timed]:
    """Times the calls whose work holds ``only``, prints them, and writes a record to a folder."""
    found = []
    for work, who, make in calls():
        if only in work:
            with all_ours("jax_moseq") if who == OURS else contextlib.nullcontext():
                found.append(Timed(work, who, *_timed(*make())))
    path = folder / time.strftime("%Y-%m-%d-%H%M-moseq.csv")
    about = describe("python -m fastscan.profiling moseq") | {name: version(name) for name in ("dynamax", "jax_moseq")}
    write_record(path, about, Timed._fields, found)
    table = Table("work", "who", "compiled, s", "ms", "temporary, MB", title="jax-moseq's steps")
    for x in found:
        table.add_row(x.work, x.who, f"{x.compiled:.3g}", f"{1e3 * x.seconds:.3g}", f"{1e-6 * x.temporary:.3g}")
    Console(width=130).print(table)
    print(f"record: {path}")
    return found


def _timed(function: Callable, arguments: tuple) -> tuple[float, float, float]:
    jax.clear_caches()
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    took, memory = time.perf_counter() - start, cast(Any, compiled.memory_analysis())
    if not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(compiled(*arguments))):
        print("results are not finite", flush=True)
    return took, median_seconds(compiled, *arguments), float(memory.temp_size_in_bytes)


def _continuous(sizes: tuple[int, ...], *, parallel: bool) -> tuple[Callable, tuple]:
    kalman_sample = importlib.import_module("jax_moseq.utils.kalman").kalman_sample
    own, shared = recordings(*sizes)

    def sample(key: jax.Array, own: dict[str, Any], shared: dict[str, Any]) -> jax.Array:
        keys = jax.random.split(key, sizes[3])
        return jax.vmap(lambda key, own: kalman_sample(key, **own, **shared, parallel=parallel))(keys, own)

    return sample, (jax.random.PRNGKey(0), own, shared)


def _discrete(K: int, B: int, T: int) -> tuple[Callable, tuple]:
    sample_hmm_stateseq = importlib.import_module("jax_moseq.utils.distributions").sample_hmm_stateseq

    def sample(key: jax.Array, A: jax.Array, log_likelihoods: jax.Array, mask: jax.Array) -> Any:
        return jax.vmap(sample_hmm_stateseq, (0, None, 0, 0))(jax.random.split(key, B), A, log_likelihoods, mask)

    return sample, (jax.random.PRNGKey(0), *states_of(K, B, T))


def _single(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x, None if x.dtype == bool else jnp.int32 if x.dtype.kind == "i" else jnp.float32)
