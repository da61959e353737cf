"""Extended, unscented and iterated smoothers beside dynamax's, and by each implementation: first calls and warm ones."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from fastscan import lgssm_joint_sample, lgssm_smoother
from fastscan.nonlinear import (
    ParamsNLGSSM,
    extended_kalman_smoother,
    iterated_extended_kalman_smoother,
    unscented_kalman_smoother,
)
from fastscan.profiling.measure.machine import describe, version
from fastscan.profiling.measure.models import random_params, simulate_targets, turning_params
from fastscan.profiling.measure.rows import write_record
from fastscan.profiling.measure.timing import first_and_warm

REPEATS = 15
STEPS, ITERATIONS = 4_096, 10
NETWORKS = (4, 8, 16)
"""The states of models whose functions are networks of one hidden layer, observed by three emissions."""


class Timed(NamedTuple):
    """Seconds of a call of float32 arrays: the first one, which compiles, and the median of others."""

    work: str
    who: str
    first: float
    seconds: float


def calls() -> Iterator[tuple[str, str, Callable[[], Callable[[], Any]]]]:
    """Lists work, who does it, and what makes the call."""
    from dynamax.nonlinear_gaussian_ssm import UKFHyperParams
    from dynamax.nonlinear_gaussian_ssm import extended_kalman_smoother as their_extended
    from dynamax.nonlinear_gaussian_ssm import unscented_kalman_smoother as their_unscented

    def filters(what: str, model: Callable[[], tuple]) -> Iterator[tuple[str, str, Callable[[], Callable[[], Any]]]]:
        for name, ours, theirs, more in (
            ("extended", extended_kalman_smoother, their_extended, {}),
            ("unscented", unscented_kalman_smoother, their_unscented, {"hyperparams": UKFHyperParams()}),
        ):
            for who, function, given in (("fastscan", ours, {}), ("dynamax", theirs, more)):
                yield f"{name} smoother, {what}", who, lambda f=function, g=given: _jitted(f, *model(), **g)

    yield from filters(f"turning target, D=5, m=2, T={STEPS:,}", _target)
    for D in NETWORKS:
        yield from filters(f"networks, D={D}, m=3, T=1,000", lambda D=D: _network(D))
    for who in (None, "sequential", "chunked:16"):
        options = {"num_iter": ITERATIONS, "tol": 0.0, "implementation": who}
        work = f"iterated extended smoother, turning target, D=5, m=2, T={STEPS:,}, {ITERATIONS} iterations"
        yield (
            work,
            f"fastscan, implementation={who}",
            lambda o=options: _jitted(iterated_extended_kalman_smoother, *_target(), **o),
        )
    for function in (extended_kalman_smoother, lgssm_smoother):
        for jitted in (True, False):
            work = f"linear model, D=4, m=2, T=10,000, {'within' if jitted else 'outside of'} jax.jit"
            yield work, function.__name__, lambda f=function, j=jitted: _linear(f, j)


def run_nonlinear_peers(folder: Path, only: str = "") -> list[Timed]:
    """Times the calls whose work holds ``only``, prints them, and writes a record to a folder."""
    found = []
    for work, who, make in calls():
        if only in work:
            found.append(Timed(work, who, *first_and_warm(make(), REPEATS)))
    path = folder / time.strftime("%Y-%m-%d-%H%M-nonlinear.csv")
    about = describe("python -m fastscan.profiling nonlinear-peers") | {"dynamax": version("dynamax"), "repeats": REPEATS}
    write_record(path, about, Timed._fields, found)
    table = Table("work", "who", "first, s", "ms", title="Nonlinear models")
    for x in found:
        table.add_row(x.work, x.who, f"{x.first:.3g}", f"{1e3 * x.seconds:.3g}")
    Console(width=150).print(table)
    print(f"record: {path}")
    return found


def _target() -> tuple[ParamsNLGSSM, jax.Array, Any]:
    """Returns the model of a turning target, emissions (T, m), and inputs."""
    params = _single(turning_params())
    _, emissions = simulate_targets(params, STEPS, 1, jax.random.key(2))
    return params, emissions[0], emissions[0]


def _network(D: int) -> tuple[ParamsNLGSSM, jax.Array, None]:
    """Returns a model whose functions are networks with 2 D hidden units, and emissions."""
    r = np.random.default_rng(D)
    inner, outer, seen = (jnp.asarray(r.normal(size=s) / np.sqrt(D), jnp.float32) for s in ((2 * D, D), (D, 2 * D), (3, D)))

    def f(z: jax.Array) -> jax.Array:
        return 0.5 * outer @ jnp.tanh(inner @ z)

    def h(z: jax.Array) -> jax.Array:
        return seen @ jnp.tanh(z)

    params = ParamsNLGSSM(np.zeros(D), np.eye(D), f, 0.1 * np.eye(D), h, np.eye(3))
    return _single(params), jnp.asarray(r.normal(size=(1_000, 3)), jnp.float32), None


def _single(params: ParamsNLGSSM) -> ParamsNLGSSM:
    return params._replace(**{k: jnp.asarray(x, jnp.float32) for k, x in params._asdict().items() if not callable(x)})


def _jitted(function: Callable, params: ParamsNLGSSM, y: jax.Array, inputs: Any, **options: Any) -> Callable[[], Any]:
    """Makes a call of a compiled function of the emissions, in which nothing is missing."""
    known = {"missing": False} if function.__module__.startswith("fastscan") else {}
    compiled = jax.jit(lambda y, inputs: function(params, y, inputs=inputs, **options, **known))
    return lambda: compiled(y, inputs)


def _linear(function: Callable, jitted: bool) -> Callable[[], Any]:
    """Makes a call of a linear model's smoother, of either kind."""
    (mean, cov), (F, b, _, Q), (H, d, _, R) = params = random_params(4, 2)
    _, y = lgssm_joint_sample(params, jax.random.key(0), 10_000)
    model = ParamsNLGSSM(mean, cov, lambda z: F @ z + b, Q, lambda z: H @ z + d, R)
    given = params if function is lgssm_smoother else model

    def smooth(y: jax.Array) -> Any:
        return function(given, y, missing=False)

    smooth = jax.jit(smooth) if jitted else smooth
    return lambda: smooth(y)
