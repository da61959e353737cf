"""Scans of any recurrence beside what JAX users have, affine ones and nonlinear ones; and packed panels beside padded ones."""

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from rich.console import Console
from rich.table import Table

from fastscan import (
    affine_scan,
    hmm_marginal_loglik,
    hmm_posterior_mode,
    hmm_smoother,
    lgssm_filter,
    lgssm_marginal_loglik,
    lgssm_posterior_sample,
    lgssm_smoother,
    newton_scan,
    pack_sequences,
    pad_sequences,
)
from fastscan.profiling.measure.machine import describe
from fastscan.profiling.measure.models import random_params
from fastscan.profiling.measure.rows import write_record
from fastscan.profiling.measure.timing import first_and_warm

REPEATS = 7
AFFINE = (("dense", 1_000_000, 4), ("dense", 100_000, 4), ("diagonal", 100_000, 64), ("dense", 10_000, 32))
SEQUENCES, LONGEST = 2_000, 400
"""A panel's sequences, and the steps of the longest; their lengths are uniform from 1 on."""
PIECES, PIECE_STEPS = 100, 1_000_000
NETWORK, NETWORK_STEPS = 8, 4_096
"""The units of a gated network, and its steps."""


class Timed(NamedTuple):
    """Seconds of a call of float32 arrays: the first one, which compiles, and the median of others; and how many iterations it
    took, 0 where there are none.
    """

    work: str
    who: str
    first: float
    seconds: float
    iterations: int


def by_associative_scan(A: jax.Array, b: jax.Array) -> jax.Array:
    """Solves an affine recurrence from zeros as JAX users do on a GPU, of dense matrices or diagonals."""
    if A.ndim == b.ndim:
        return lax.associative_scan(lambda x, y: (y[0] * x[0], y[0] * x[1] + y[1]), (A, b))[1]
    return lax.associative_scan(lambda x, y: (y[0] @ x[0], jnp.einsum("tij,tj->ti", y[0], x[1]) + y[1]), (A, b))[1]


def by_scan(A: jax.Array, b: jax.Array) -> jax.Array:
    """Solves it row by row."""

    def step(x: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        A, b = row
        x = (A * x if A.ndim == 1 else A @ x) + b
        return x, x

    return lax.scan(step, jnp.zeros(b.shape[-1], b.dtype), (A, b))[1]


WHO: dict[str, Callable] = {"fastscan": affine_scan, "lax.associative_scan": by_associative_scan, "lax.scan": by_scan}


def calls() -> Iterator[tuple[str, str, Callable[[], Callable[[], Any]]]]:
    """Lists work, who does it, and what makes the call."""
    for structure, T, D in AFFINE:
        for who, function in WHO.items():
            run = functools.partial(function, structure=structure) if who == "fastscan" else function
            for what, timed in (("value", run), ("value and gradient", _with_gradient(run))):
                work = f"affine, {structure}, D={D}, T={T:,}, {what}"
                yield work, who, functools.partial(_affine, timed, structure, T, D)
    for name in PANELS:
        work = f"{name} of a panel, {SEQUENCES:,} sequences of 1 to {LONGEST} steps"
        for who in ("packed", "padded"):
            yield work, who, functools.partial(_panel, name, who)
    for who in (1, PIECES):
        yield f"lgssm_filter, D=4, m=2, T={PIECE_STEPS:,}, row by row", f"{who} pieces", functools.partial(_pieces, who)
    for who in ("fastscan", "lax.scan"):
        yield f"gated network, D={NETWORK}, T={NETWORK_STEPS:,}", who, functools.partial(_network, who)


def run_scans(folder: Path, only: str = "") -> list[Timed]:
    """Times the calls whose work holds ``only``, prints them, and writes a record to a folder."""
    found = []
    for work, who, make in calls():
        if only in work:
            call = make()
            first, seconds = first_and_warm(call, REPEATS)
            found.append(Timed(work, who, first, seconds, int(getattr(call(), "iterations", 0))))
    path = folder / time.strftime("%Y-%m-%d-%H%M-scans.csv")
    write_record(path, describe("python -m fastscan.profiling scans") | {"repeats": REPEATS}, Timed._fields, found)
    table = Table("work", "who", "first, s", "ms", "iterations", title="Scans")
    for x in found:
        table.add_row(x.work, x.who, f"{x.first:.3g}", f"{1e3 * x.seconds:.3g}", str(x.iterations or ""))
    Console(width=150).print(table)
    print(f"record: {path}")
    return found


PANELS: dict[str, Callable] = {
    "lgssm_marginal_loglik": lgssm_marginal_loglik,
    "lgssm_filter": lgssm_filter,
    "lgssm_smoother": lgssm_smoother,
    "lgssm_posterior_sample": functools.partial(lgssm_posterior_sample, jax.random.key(0)),
    "hmm_marginal_loglik": hmm_marginal_loglik,
    "hmm_smoother": functools.partial(hmm_smoother, compute_trans_probs=False),
    "hmm_posterior_mode": hmm_posterior_mode,
}
"""Functions of a panel, of a linear-Gaussian model with D=4 and m=2, or of a hidden Markov model with K=5."""


def _panel(name: str, who: str) -> Callable[[], Any]:
    """Makes a call of a panel on one time axis, or filled up with missing steps, each known not to be missing or to be so."""
    r = np.random.default_rng(0)
    hmm = name.startswith("hmm")
    sequences = [r.normal(size=(n, 5 if hmm else 2)).astype("float32") for n in r.integers(1, LONGEST + 1, SEQUENCES)]
    model = (np.full(5, 0.2, "float32"), r.dirichlet(np.ones(5), 5).astype("float32")) if hmm else (random_params(4, 2),)
    known: dict[str, Any] = {} if hmm else {"missing": who == "padded"}
    packed, starts = pack_sequences(sequences)
    given = packed if who == "packed" else pad_sequences(sequences)[0]
    marks = {"starts": starts} if who == "packed" else {}
    compiled = jax.jit(lambda given, **marks: PANELS[name](*model, given, **known, **marks))
    return lambda: compiled(given, **marks)


def _pieces(count: int) -> Callable[[], Any]:
    """Makes a call of the filter for every piece of a series, each from the state after the one before."""
    params = random_params(4, 2)
    pieces = jnp.split(jax.random.normal(jax.random.key(0), (PIECE_STEPS, 2)), count)

    def run() -> Any:
        state, found = None, []
        for piece in pieces:
            out = lgssm_filter(params, piece, initial_state=state, missing=False, implementation="sequential")
            state = out.final_state
            found.append(out)
        return found

    return run


def _with_gradient(function: Callable) -> Callable:
    return jax.value_and_grad(lambda A, b: (function(A, b) ** 2).sum(), (0, 1))


def _affine(function: Callable, structure: str, T: int, D: int) -> Callable[[], Any]:
    """Makes a call of a compiled function, of matrices that forget."""
    keys = jax.random.split(jax.random.key(0))
    shape = (T, D) if structure == "diagonal" else (T, D, D)
    A, b = (
        jax.random.uniform(keys[0], shape, minval=-1.0) / shape[-1] ** (0.5 * (len(shape) - 2)),
        jax.random.normal(keys[1], (T, D)),
    )
    compiled = jax.jit(function)
    return lambda: compiled(A, b)


def _network(who: str) -> Callable[[], Any]:
    """Makes a call of a gated recurrent unit, with every step's inputs multiplied by weights beforehand."""
    keys = jax.random.split(jax.random.key(1))
    U = jax.random.normal(keys[0], (3, NETWORK, NETWORK)) / NETWORK**0.5
    inputs = jax.random.normal(keys[1], (NETWORK_STEPS, 3, NETWORK))

    def f(x: jax.Array, u: jax.Array) -> jax.Array:
        reset, update = (jax.nn.sigmoid(u[k] + U[k] @ x) for k in (0, 1))
        return (1 - update) * x + update * jnp.tanh(u[2] + U[2] @ (reset * x))

    def by_steps(x0: jax.Array, inputs: jax.Array) -> jax.Array:
        return lax.scan(lambda x, u: (f(x, u), f(x, u)), x0, inputs)[1]

    compiled = jax.jit(functools.partial(newton_scan, f) if who == "fastscan" else by_steps)
    return lambda: compiled(jnp.zeros(NETWORK), inputs)
