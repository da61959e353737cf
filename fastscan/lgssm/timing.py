"""Parameters as arrays: of functions of time, and of models whose entry t belongs to another transition."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from fastscan.arrays import tabulated
from fastscan.functions import evaluated
from fastscan.given import ShapeError, array, plain, promoted
from fastscan.kernels.arrays import matmul
from fastscan.kernels.tables import is_computed
from fastscan.regimes import as_series, as_table, check_index, check_numbers, products, regimes_of_arrays
from fastscan.types import ParamsLGSSM, ParamsLGSSMDynamics, ParamsLGSSMEmissions, ParamsLGSSMInitial, Regimes

TIMINGS = ("arrival", "departure")
"""Whether entry t is of the transition into t, as dynamax has it since 1.0.3, or of that out of t, as it had it before."""

_MATRICES = {"initial": (), "dynamics": ("weights", "cov"), "emissions": ("weights",)}
"""The fields of a model's parts that are computed row by row; functions in others are tabulated."""


def plain_params(params: Any, T: int, inputs: Any = None, timing: str = "arrival") -> ParamsLGSSM:
    """Returns parameters as arrays, of functions of time at 0 to T - 1, or `Computed`; from any object with the fields of a
    `ParamsLGSSM`.

    Args:
        params: the model.
        T: time steps.
        inputs: which "departure" makes part of the dynamics' bias.
        timing: the convention of time-varying dynamics, one of `TIMINGS`; what is returned follows "arrival".

    Raises:
        TypeError: a field that is missing, or is no array.
        ValueError: a timing that there is none of.
    """
    if timing == "arrival" and isinstance(params, ParamsLGSSM) and _all_plain(params):
        return params
    check_timing(timing)
    arriving_T = T if timing == "arrival" else max(T - 1, 1)

    def field(part: str, name: str) -> Any:
        try:
            x = getattr(getattr(params, part), name)
        except AttributeError:
            raise TypeError(
                f"params: {type(params).__name__} without a field {part}.{name} given; wanted fastscan.ParamsLGSSM, or an "
                f"object with its fields, such as dynamax's.{_exchanged(params)}"
            ) from None
        if x is None or is_computed(x):
            return x
        if isinstance(x, Regimes):
            if part == "initial":
                raise TypeError(
                    f"initial.{name}: fastscan.Regimes given, wanted an array. The first state has one distribution."
                )
            return regimes_of_arrays(f"{part}.{name}", x, shared=(part, name) == ("emissions", "cov"))
        if callable(x):
            steps, remedy = (arriving_T, _REMEDY) if part == "dynamics" else (T, "Wanted values at all of these.")
            return (evaluated if name in _MATRICES[part] else tabulated)(f"{part}.{name}", x, steps, remedy)
        return array(f"{part}.{name}", x)

    parts = {"initial": ParamsLGSSMInitial, "dynamics": ParamsLGSSMDynamics, "emissions": ParamsLGSSMEmissions}
    arrays = ParamsLGSSM(*(kind(*(field(part, name) for name in kind._fields)) for part, kind in parts.items()))
    arrays = _with_shared_index(params, arrays)
    if timing == "departure":
        arrays = arrays._replace(dynamics=_arriving(arrays.dynamics, inputs, T))
    for part, unread in (("dynamics", 1), ("emissions", 0)):
        for name, x in getattr(arrays, part)._asdict().items():
            check_numbers(f"{part}.{name}", x, unread)
    return arrays


_REMEDY = (
    "Entry t belongs to the transition from t - 1 to t, since dynamax 1.0.3. Of a model with entry t from t to t + 1, "
    'take timing="departure".'
)


def _with_shared_index(given: Any, params: ParamsLGSSM) -> ParamsLGSSM:
    """Leaves the index of the emissions' noise away where it is that of their weights, which `jax.jit` would make two of.

    Args:
        given: what was given.
        params: of arrays.

    Raises:
        TypeError: noise without an index.
    """
    weights, cov = (getattr(given.emissions, name) for name in ("weights", "cov"))
    if isinstance(cov, Regimes) and cov.index is None and not isinstance(weights, Regimes):
        raise TypeError("emissions.cov.index: None given, wanted the number of every step's regime.")
    if not (isinstance(weights, Regimes) and isinstance(cov, Regimes)) or cov.index is not weights.index:
        return params
    if jnp.shape(params.emissions.weights.values)[:1] != jnp.shape(params.emissions.cov.values)[:1]:
        return params
    return params._replace(emissions=params.emissions._replace(cov=params.emissions.cov._replace(index=None)))


def _all_plain(params: ParamsLGSSM) -> bool:
    for part in params:
        for x in part:
            if x is not None and not plain(type(x)):
                return False
    return True


def _exchanged(params: Any) -> str:
    """Guesses whether arguments were exchanged, for an object that has no parameters."""
    return " Are arguments exchanged?" if hasattr(params, "shape") or hasattr(params, "dynamics") else ""


def _arriving(dynamics: ParamsLGSSMDynamics, inputs: Any, T: int) -> ParamsLGSSMDynamics:
    """Moves dynamics whose entry t belongs to the transition out of t, so that entry t belongs to the transition into t."""
    bias, weights = dynamics.bias, dynamics.input_weights
    if weights is not None and inputs is not None and _values(weights).shape[-1:] != (0,):
        weights, bias = (x if x is None else arriving(x, n, T) for x, n in ((weights, 2), (bias, 1)))
        return ParamsLGSSMDynamics(
            arriving(dynamics.weights, 2, T), known_drift(bias, weights, inputs, T), None, arriving(dynamics.cov, 2, T)
        )
    return ParamsLGSSMDynamics(*(x if x is None else arriving(x, n, T) for x, n in zip(dynamics, (2, 1, 2, 2), strict=True)))


def check_timing(timing: str) -> None:
    """Refuses what names no convention."""
    if timing not in TIMINGS:
        raise ValueError(
            f"timing: {timing!r} given, wanted 'arrival' (entry t is of the transition from t - 1 to t, as in dynamax 1.0.3) "
            "or 'departure' (from t to t + 1, as before)."
        )


def arriving(x: Any, ndim: int, T: int) -> Any:
    """Moves a parameter's entries from transitions out of t to transitions into t: time-varying ones (..., T or T - 1, ...)
    move by one, (..., T, ...).

    Args:
        x: an array; static if it has ``ndim`` axes.
        ndim: of one step's parameter.
        T: time steps.
    """
    if isinstance(x, Regimes):
        return x._replace(index=arriving(x.index, 0, T))
    if is_computed(x):
        return x.replaced(index=arriving(x.index, 2, T))
    if x.ndim <= ndim:
        return x
    axis = x.ndim - ndim - 1
    length = x.shape[axis]
    if length not in (T, T - 1):
        return x  # one for all steps of a sequence, or an error that the checks of shapes make
    xp = np if isinstance(x, np.ndarray) else jnp
    first, others = xp.split(x, [1], axis) if T == 1 else (xp.split(x, [1], axis)[0], xp.split(x, [T - 1], axis)[0])
    if T == 1:
        return first if length else xp.zeros((*x.shape[:axis], 1, *x.shape[axis + 1 :]), x.dtype)
    return xp.concatenate([first, others], axis)


def known_drift(bias: Any, weights: Any, inputs: Any, T: int) -> Any:
    """Biases and inputs of the transitions into t (..., T, D), where inputs act on the transition out of their step."""
    inputs, shape = jnp.asarray(inputs), _values(weights).shape
    if inputs.ndim not in (2, 3) or inputs.shape[-2] != T or len(shape) < 2 or shape[-1] != inputs.shape[-1]:
        raise ShapeError(
            f"inputs: shape {inputs.shape} given, wanted {(T, shape[-1])} or a batch of such: dynamics.input_weights "
            f"have {shape[-1]} columns."
        )
    before = jnp.concatenate([inputs[..., :1, :], inputs[..., :-1, :]], -2)[..., None]
    if isinstance(weights, Regimes):
        drift = products(_table("input_weights", weights, 2, T), before.reshape(-1, T, shape[-1], 1))
        drift = drift[0] if inputs.ndim == 2 and weights.index.ndim == 1 else drift
    else:
        drift = matmul(weights, before)
    if isinstance(bias, Regimes):
        series = as_series(_table("bias", bias, 1, T))[..., 0]
        bias = series[0] if bias.index.ndim == 1 else series
    return drift[..., 0] if bias is None else drift[..., 0] + bias


def _values(x: Any) -> Any:
    return x.values if isinstance(x, Regimes) else x


def _table(name: str, x: Regimes, ndim: int, T: int) -> Any:
    """Returns regimes of the dynamics as a table, of floats."""
    check_index(f"dynamics.{name}", x, T, len(x.index) if x.index.ndim == 2 else None)
    x = x._replace(values=jnp.asarray(x.values).astype(promoted([x.values.dtype])))
    return as_table(x, x.values.shape[-ndim:])
