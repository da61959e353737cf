"""A nonlinear model for tests: a damped rotation with a bend, seen through a sine and a square, and its NumPy twin."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fastscan.nonlinear import ParamsNLGSSM
from oracles import nonlinear as oracle

D = m = 2
U = 1
_ROTATION = 0.95 * np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])


def f(z, u=None):
    return jnp.asarray(_ROTATION, z.dtype) @ z + 0.1 * jnp.sin(z[::-1]) + (0 if u is None else 0.2 * u[0].astype(z.dtype))


def h(z, u=None):
    return jnp.stack([jnp.sin(z[0]) + 0.1 * z[1] ** 2, z[1] + (0 if u is None else u[0].astype(z.dtype) * z[0])])


def numpy_twin(function):
    compiled = jax.jit(function)
    return lambda z, u: np.asarray(compiled(jnp.asarray(z)) if u is None else compiled(jnp.asarray(z), jnp.asarray(u)))


TWINS = {name: numpy_twin(g) for name, g in {"f": f, "F": jax.jacfwd(f), "h": h, "H": jax.jacfwd(h)}.items()}


def covariances(rng, n, *lead):
    root = rng.normal(size=(*lead, n, n))
    return 0.1 * (root @ np.swapaxes(root, -1, -2) + np.eye(n))


@functools.cache
def problem(T, *, varying=False, inputs=False, gaps=True, seed=0):
    """The model, the emissions, the inputs, and the model as the oracle has it."""
    rng = np.random.default_rng(seed)
    lead = (T,) if varying else ()
    Q, R = covariances(rng, D, *lead), covariances(rng, m, *lead)
    if varying:
        Q[0] = np.nan  # which is not read
    params = ParamsNLGSSM(rng.normal(size=D), covariances(rng, D), f, Q, h, R)
    us = rng.normal(size=(T, U)) if inputs else None
    ys = rng.normal(size=(T, m))
    if gaps and T > 5:
        ys[3], ys[5, 0] = np.nan, np.nan
    twin = oracle.Model(
        params.initial_mean,
        params.initial_covariance,
        Q=np.broadcast_to(Q, (T, D, D)),
        R=np.broadcast_to(R, (T, m, m)),
        **TWINS,
    )
    return params, ys, us, twin


def close(given, wanted, tol=1e-10):
    given, wanted = np.asarray(given, np.float64), np.asarray(wanted, np.float64)
    assert given.shape == wanted.shape
    assert np.abs(given - wanted).max(initial=0) <= tol * max(1, np.abs(wanted).max(initial=0))
