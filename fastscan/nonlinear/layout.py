"""From a checked nonlinear model to the arrays that inference takes, all with a batch axis.

Models that turn out linear, of which the Jacobians of functions do not read the state, are run as what they are.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fastscan.dispatch.choice import How, Problem
from fastscan.kernels.algebra import Staged
from fastscan.kernels.arrays import as_lanes, as_rows
from fastscan.kernels.functions import Function, is_small
from fastscan.kernels.lgssm.definiteness import indefinite, magnitudes
from fastscan.nonlinear.check import Checked, Data, Functions, Model, reads_input, reads_state
from fastscan.types import ParamsLGSSM, make_lgssm_params


class Given(NamedTuple):
    """A model and its emissions, as arrays (B or 1, T or 1, rows, columns), but for constants, (B or 1, ...).

    Attributes:
        mean, cov: of the first state.
        f, h: constants of these functions.
        Q: the transitions' covariances. Entry 0 is not read.
        R: the emissions', or None where they are a function's.
        noise: constants of that function.
        of_log_prob: constants of the log density.
        y: emissions (B, T, m, 1), zero where missing.
        weight: (B, T, m, 1), 1 where observed and 0 where missing; (1, 1, m, 1) where nothing is missing.
        u: inputs (B or 1, T, U, 1), or None.
    """

    mean: jax.Array
    cov: jax.Array
    f: tuple[jax.Array, ...]
    h: tuple[jax.Array, ...]
    Q: jax.Array
    R: Any
    noise: tuple[jax.Array, ...]
    of_log_prob: tuple[jax.Array, ...]
    y: jax.Array
    weight: jax.Array
    u: Any


def arrange(functions: Functions, model: Model, data: Data, missing: bool | None) -> Given:
    """Returns the arrays of a model and its data."""
    m = data.y.shape[-1]
    y = data.y.reshape(-1, *data.y.shape[-2:], 1)
    weight = jnp.ones((1, 1, m, 1), y.dtype)
    if missing is not False:
        observed = ~jnp.isnan(y)
        y, weight = jnp.where(observed, y, 0), observed.astype(y.dtype)
    u = data.u
    if u is not None:
        dims = len(functions.f.arguments[1][1].shape)
        lead = u.shape[: u.ndim - dims]
        u = u.reshape(*(1,) * (2 - len(lead)), *lead, -1, 1)
    Q, cov = model.Q.reshape(1, -1, *model.Q.shape[-2:]), model.cov[None, None]
    verdicts = _indefinite(jnp.concatenate([cov, Q], 1))
    R, noise = (model.R.reshape(1, -1, m, m), ()) if functions.R is None else (None, _lead(model.R))
    return Given(
        model.mean[None, None, :, None],
        cov + verdicts[:, :1],
        _lead(model.f),
        _lead(model.h),
        Q + verdicts[:, 1:],
        R,
        noise,
        _lead(model.log_prob),
        y,
        weight,
        u,
    )


def how_to_run(functions: Functions, given: Given, implementation: str | None) -> How:
    """Chooses how recurrences run."""
    B, T, m, _ = given.y.shape
    D = given.cov.shape[-1]
    small = all(g is None or is_small(g) for g in functions[:3])
    problem = Problem(implementation, T, D, m, str(given.y.dtype), "lgssm_varying", unmarked=not small)
    return How(problem.plan(B), problem)


def is_linear(functions: Functions) -> bool:
    """Tells whether a model is linear and Gaussian."""
    return functions.R is None and not reads_state(functions.f) and not reads_state(functions.h)


def linear_params(given: Checked) -> ParamsLGSSM:
    """Returns a linear model's parameters. Matrices and biases are static where no input changes them."""
    (F, b), (H, d) = _affine(given.functions, given.model, given.data.u, given.batched[1])
    mean, cov, _, _, Q, R, _ = given.model
    return make_lgssm_params(mean, cov, F, Q, H, R, b, None, d, None)


def _indefinite(cov: jax.Array) -> jax.Array:
    """Returns NaN for every covariance that is none, so that no result can look right, and 0 for others (1, T, 1, 1)."""
    matrix = Staged(as_lanes(lax.stop_gradient(cov)))
    return as_rows(indefinite(matrix, magnitudes(matrix)).array)


def _lead(constants: Any) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(x)[None] for x in constants)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _affine(functions: Functions, model: Model, u: Any, batched: bool) -> tuple[tuple[jax.Array, jax.Array], ...]:
    """Returns matrix and bias of both functions, of every step, and sequence, where inputs change them."""

    def of(function: Function, constants: Any) -> tuple[jax.Array, jax.Array]:
        zero = jnp.zeros_like(model.mean)

        def at(*u: Any) -> tuple[jax.Array, jax.Array]:
            value, push = jax.linearize(lambda z: function(constants, z, *u).reshape(-1).astype(zero.dtype), zero)
            return jax.vmap(push, out_axes=1)(jnp.eye(len(zero), dtype=zero.dtype)), value

        if u is None:
            return at()
        of_steps = jax.vmap(jax.vmap(at)) if batched else jax.vmap(at)
        A, b = of_steps(u)
        return (A if reads_input(function) else A[(0,) * (1 + batched)]), b

    return of(functions.f, model.f), of(functions.h, model.h)
