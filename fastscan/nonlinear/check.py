"""From what a user passes to a checked nonlinear model: functions as equations, and arrays of one dtype."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastscan.given import ShapeError, array, check_dtypes, check_missing, emissions_array, missing_entries, promoted, seen
from fastscan.kernels.functions import Function, read_by_jacobian, traced
from fastscan.lgssm.covariances import check_covariance


class Functions(NamedTuple):
    """A model's functions, as equations, which take their constants and then (z, u), or z where there are no inputs.

    Attributes:
        f: dynamics, (D,).
        h: emissions' means, (m,).
        R: emissions' covariances (m, m) or variances (m,); None where they are an array.
        log_prob: emissions' log densities, from (y, mean, covariance); None of a Gaussian model.
    """

    f: Function
    h: Function
    R: Function | None
    log_prob: Function | None


def reads_state(function: Function) -> bool:
    """Tells whether a function's Jacobian reads the state; if not, it is affine."""
    return read_by_jacobian(function)[0]


def reads_input(function: Function) -> bool:
    """Tells whether a function's Jacobian reads an input."""
    return any(read_by_jacobian(function)[1:])


class Model(NamedTuple):
    """A model's arrays, of one dtype.

    Attributes:
        mean, cov: of the first state, (D,) and (D, D).
        f, h: constants of these functions.
        Q: (D, D) or (T, D, D).
        R: (m, m) or (T, m, m), or the constants of the function.
        log_prob: constants of that function.
    """

    mean: jax.Array
    cov: jax.Array
    f: tuple[jax.Array, ...]
    h: tuple[jax.Array, ...]
    Q: jax.Array
    R: Any
    log_prob: tuple[jax.Array, ...]


class Data(NamedTuple):
    """Emissions (T, m) or (B, T, m), NaN where missing, and inputs (T, ...) or (B, T, ...), or None."""

    y: jax.Array
    u: jax.Array | None


class Checked(NamedTuple):
    """A checked problem of inference.

    Attributes:
        functions, model, data: these.
        missing: whether entries are missing, or None if nobody knows.
        batched: whether the emissions, and whether the inputs have a leading batch axis.
    """

    functions: Functions
    model: Model
    data: Data
    missing: bool | None
    batched: tuple[bool, bool]

    @property
    def T(self) -> int:
        """The number of time steps."""
        return self.data.y.shape[-2]

    @property
    def D(self) -> int:
        """The number of a state's dimensions."""
        return len(self.model.mean)

    @property
    def B(self) -> int | None:
        """The number of sequences, None of one without a batch axis."""
        return len(self.data.y) if self.batched[0] else None


_GAUSSIAN = ("dynamics_function", "dynamics_covariance", "emission_function", "emission_covariance")
_GENERAL = ("dynamics_function", "dynamics_covariance", "emission_mean_function", "emission_cov_function", "emission_dist")


def checked(params: Any, emissions: Any, inputs: Any, missing: bool | None = None) -> Checked:
    """Checks what a function of the API is given.

    Raises:
        TypeError: parameters without a model's fields, functions that are none, arrays of anything but numbers.
        ValueError: shapes that do not fit together, those of functions among them.
    """
    general = hasattr(params, "emission_mean_function")
    named = {
        name: _field(params, name) for name in ("initial_mean", "initial_covariance", *(_GENERAL if general else _GAUSSIAN))
    }
    for name, x in named.items():
        if name.endswith(("function", "dist")):
            if not callable(x):
                raise TypeError(f"{name}: {type(x).__name__} given, wanted a function.")
        else:
            named[name] = array(name, x)
    y = emissions_array(emissions)
    y = jnp.asarray(y)[:, None] if y.ndim == 1 else jnp.asarray(y)
    if y.ndim not in (2, 3) or 0 in y.shape:
        raise ShapeError(f"emissions: shape {y.shape} given, wanted (T, m) or (B, T, m) with T, m and B at least 1.")
    T, m = y.shape[-2:]
    u, of_sequence = _inputs(inputs, y)
    arrays = {name: jnp.asarray(x) for name, x in named.items() if not callable(x)}
    dtypes = {name: x.dtype for name, x in arrays.items()} | {"emissions": y.dtype}
    check_dtypes(dtypes | ({} if u is None else {"inputs": u.dtype}))
    D = _check_arrays(arrays, T, m)
    if seen(y):
        for name in arrays.keys() - {"initial_mean"}:
            check_covariance(name, named[name])
    dtype = promoted(dtypes.values())
    one = None if u is None else jax.ShapeDtypeStruct(u.shape[1 + of_sequence :], u.dtype)
    names = [name for name in named if name.endswith("function")]
    wanted = ((D,), (m,), (m, m))
    for _ in range(2):  # once more where a function's own dtype is what all are promoted to
        z = jax.ShapeDtypeStruct((D,), dtype)
        given = (z,) if one is None else (z, one)
        of_functions = [_traced(name, named[name], given, shape) for name, shape in zip(names, wanted, strict=False)]
        dtypes |= {name: function.dtype for name, (function, _) in zip(names, of_functions, strict=True)}
        check_dtypes(dtypes)
        if (dtype := promoted(dtypes.values())) == z.dtype:
            break
    (f, of_f), (h, of_h), *more = of_functions
    if general:
        ((R, of_R),) = more
        shapes = (jax.ShapeDtypeStruct(s, dtype) for s in ((m,), (m,), R.shape))
        log_prob, of_log_prob = _log_prob(named["emission_dist"], *shapes)
        _check_rows(log_prob, y)
        functions, noise = Functions(f, h, R, log_prob), of_R
    else:
        functions, noise, of_log_prob = Functions(f, h, None, None), arrays["emission_covariance"].astype(dtype), ()
    mean, cov, Q = (arrays[name].astype(dtype) for name in ("initial_mean", "initial_covariance", "dynamics_covariance"))
    missing = check_missing(missing)
    missing = missing_entries(np.asarray(y), missing) if seen(y) else missing
    return Checked(
        functions,
        Model(mean, cov, of_f, of_h, Q, noise, of_log_prob),
        Data(y.astype(dtype), u),
        missing,
        (y.ndim == 3, of_sequence),
    )


def _field(params: Any, name: str) -> Any:
    try:
        return getattr(params, name)
    except AttributeError:
        told = " A linear model, fastscan.ParamsLGSSM, goes to lgssm_smoother." if hasattr(params, "dynamics") else ""
        raise TypeError(
            f"params: {type(params).__name__} without a field {name} given; wanted fastscan.nonlinear.ParamsNLGSSM, or an "
            f"object with its fields, such as dynamax's.{told}"
        ) from None


def _inputs(inputs: Any, y: jax.Array) -> tuple[jax.Array | None, bool]:
    """Returns inputs as an array, and whether every sequence has its own."""
    if inputs is None:
        return None, False
    u, (T, *_) = jnp.asarray(array("inputs", inputs)), y.shape[-2:]
    if y.ndim == 3 and u.ndim >= 3 and u.shape[:2] == (len(y), T):
        return u, True
    if u.ndim == 0 or len(u) != T:
        wanted = f"({T}, ...), a row for every step" + ("" if y.ndim == 2 else f", or ({len(y)}, {T}, ...)")
        raise ShapeError(f"inputs: shape {u.shape} given, wanted {wanted}.")
    return u, False


def _check_arrays(arrays: dict[str, jax.Array], T: int, m: int) -> int:
    """Refuses shapes that do not fit together, and returns D."""
    mean = arrays["initial_mean"]
    if mean.ndim != 1 or len(mean) == 0:
        raise ShapeError(f"initial_mean: shape {mean.shape} given, wanted (D,).")
    D = len(mean)
    wanted = {
        "initial_covariance": ((D, D),),
        "dynamics_covariance": ((D, D), (T, D, D)),
        "emission_covariance": ((m, m), (T, m, m)),
    }
    for name, shapes in wanted.items():
        if name in arrays and arrays[name].shape not in shapes:
            told = " or ".join(map(str, shapes))
            raise ShapeError(f"{name}: shape {arrays[name].shape} given, wanted {told}, as D = {D}, m = {m} and T = {T}.")
    return D


def _traced(name: str, function: Any, given: tuple, shape: tuple[int, ...]) -> tuple[Function, tuple[jax.Array, ...]]:
    """Returns a function as equations, whose value has a shape, or the diagonal's of it; a scalar stands for one entry."""
    told = "the state" if len(given) == 1 else "the state and the input"

    def of_shape(*given: Any) -> Any:
        value = function(*given)
        if isinstance(value, tuple | list | dict):
            return value
        return jnp.reshape(value, shape) if math.prod(shape) == 1 and jnp.size(value) == 1 else value

    try:
        found = traced(of_shape, *given)
    except TypeError as error:
        if "positional argument" in str(error) or "arguments" in str(error):
            raise TypeError(f"{name}: {error}. Wanted a function of {told}, as inputs are {_given(given)}.") from error
        raise
    if found is None:
        raise TypeError(f"{name}: a function with effects, or of more than one array, given; wanted one array {shape}.")
    if found[0].shape not in (shape, shape[:1]):
        raise ShapeError(f"{name}: a function of {told} to shape {found[0].shape} given, wanted {shape}.")
    return found


def _given(given: tuple) -> str:
    return "None" if len(given) == 1 else "given"


def _log_prob(dist: Callable, y: Any, mean: Any, cov: Any) -> tuple[Function, tuple[jax.Array, ...]]:
    """Returns a distribution's log density as equations: of all entries, or of each."""
    found = traced(lambda y, mean, cov: dist(mean, cov).log_prob(y), y, mean, cov)
    if found is None or found[0].shape not in ((), y.shape):
        given = "no array" if found is None else f"shape {found[0].shape}"
        raise ShapeError(f"emission_dist: log_prob with {given} given, wanted () or {y.shape}.")
    return found


def _check_rows(log_prob: Function, y: jax.Array) -> None:
    """Refuses emissions of which some entries are missing, where these have one log density together."""
    if log_prob.shape == () and seen(y):
        gaps = np.isnan(np.asarray(y, float))
        if (gaps.any(-1) != gaps.all(-1)).any():
            raise ValueError(
                "emission_dist: one log density for all entries of an emission given, wanted one for each, as some entries are "
                "missing; or miss whole rows."
            )
