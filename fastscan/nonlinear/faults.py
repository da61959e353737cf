"""The cause of results that are NaN, looked for where values can be seen."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastscan.given import seen
from fastscan.kernels.functions import Function
from fastscan.nonlinear.check import Checked


def check_found(name: str, given: Checked, loglik: jax.Array, means: jax.Array | None) -> None:
    """Refuses results that are NaN, with the cause where it is a model's function.

    Args:
        name: of the function that was called.
        given: what it was given.
        loglik: a number that is NaN where results are.
        means: of the states, (T, D) or (B, T, D), NaN from where on they are; None if these are not known.

    Raises:
        ValueError: a function is NaN, or its Jacobian, at a state that is not.
    """
    if not seen(loglik) or not np.isnan(np.asarray(loglik)).any():
        return
    Q = given.model.Q if given.model.Q.ndim == 2 else given.model.Q[1:]
    named = {"initial_mean": given.model.mean, "initial_covariance": given.model.cov, "dynamics_covariance": Q}
    if given.functions.R is None:
        named["emission_covariance"] = given.model.R
    for part, x in named.items():
        if seen(x) and np.isnan(np.asarray(x)).any():
            raise ValueError(f"{part}: NaN entries given, and so all results of {name} are NaN.")
    states = [] if means is None or not seen(means) else np.asarray(means).reshape(-1, given.T, given.D)
    for sequence, path in enumerate(states):
        bad = np.isnan(path).any(1)
        if bad.any():
            inputs = given.data.u if given.data.u is None or not given.batched[1] else given.data.u[sequence]
            path = _led_to(given, inputs) if bad.all() else path
            _look_at(name, given, inputs, int(np.isnan(path).any(1).argmax()), path)
    raise ValueError(
        f"{name}: results are NaN. The model's functions are not, where they were seen; so a covariance has become indefinite, "
        "or the data are impossible. Sigma points with a large alpha or negative weights may do that, and float32."
    )


def _led_to(given: Checked, inputs: Any) -> np.ndarray:
    """Returns where the dynamics lead from the first mean (T, D), without any noise."""
    f, constants, first = given.functions.f, given.model.f, given.model.mean

    def step(z: jax.Array, u: Any) -> tuple[jax.Array, jax.Array]:
        after = f(constants, z, *u).reshape(-1).astype(z.dtype)
        return after, after

    _, after = jax.lax.scan(step, first, () if inputs is None else (inputs[1:],), given.T - 1)
    return np.concatenate([np.asarray(first)[None], np.asarray(after)])


def _look_at(name: str, given: Checked, u: Any, t: int, path: np.ndarray) -> None:
    """Refuses functions that are NaN at the state before step t, or at what the dynamics make of it."""
    inputs = () if u is None else (u[t],)
    state = jnp.asarray(np.asarray(given.model.mean) if t == 0 else path[t - 1])
    if t > 0:
        _check(name, "dynamics_function", given.functions.f, given.model.f, state, inputs, t)
        state = given.functions.f(given.model.f, state, *inputs).reshape(-1).astype(state.dtype)
    _check(name, "emission_function", given.functions.h, given.model.h, state, inputs, t)


def _check(name: str, part: str, function: Function, constants: Any, state: jax.Array, inputs: tuple, t: int) -> None:
    value = function(constants, state, *inputs)
    for what, x in (("it", value), ("its Jacobian", jax.jacfwd(lambda z: function(constants, z, *inputs))(state))):
        if not np.isfinite(np.asarray(x)).all():
            raise ValueError(
                f"{name}: {part}: {what} is {'NaN' if np.isnan(np.asarray(x)).any() else 'infinite'} at the state "
                f"{np.array2string(np.asarray(state), precision=4)}, where step {t} is linearised. Wanted a function with "
                "finite derivatives there: jnp.where with a safe argument, or another start."
            )
