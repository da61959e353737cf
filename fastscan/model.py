"""From what a user passes to what the kernels take: checks first, then one layout, then independent noise.

After the checks every parameter is an array ``(B or 1, T or 1, rows, columns)``: what does not vary has length 1 there.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastscan.kernels import driver
from fastscan.kernels.axes import as_lanes
from fastscan.kernels.gaussian import Gaussian, decorrelate, indefinite
from fastscan.kernels.kalman import FilterInputs
from fastscan.kernels.passes import Series
from fastscan.kernels.plan import Plan
from fastscan.types import ParamsLGSSM, ParamsLGSSMDynamics, ParamsLGSSMEmissions, ParamsLGSSMInitial

product = functools.partial(jnp.matmul, precision="highest")
"""Of matrices, as precise as their dtype."""

FLOATS = (jnp.dtype("float32"), jnp.dtype("float64"))


class Sizes(NamedTuple):
    """B is None for emissions without a batch axis."""

    B: int | None
    T: int
    D: int
    m: int


class Model(NamedTuple):
    """Checked parameters, each (B or 1, T or 1, rows, columns). ``R`` is a column where the noise is independent."""

    initial_mean: jax.Array
    initial_cov: jax.Array
    F: jax.Array
    b: jax.Array | None
    B: jax.Array | None
    Q: jax.Array
    H: jax.Array
    d: jax.Array | None
    D: jax.Array | None
    R: jax.Array
    u: jax.Array | None


_ARRAYS = (jax.Array, np.ndarray)


def as_array(x: Any) -> Any:
    """An array of JAX or NumPy as it is, anything else as an array of JAX."""
    return x if isinstance(x, _ARRAYS) else jnp.asarray(x)


@functools.cache
def _of_arrays(kind: type) -> bool:
    """Whether all objects of a type are arrays: what takes longer to ask of each of a small model's."""
    return issubclass(kind, _ARRAYS)


def plain_params(params: Any, T: int) -> ParamsLGSSM:
    """Parameters as arrays, of functions of time at 0 to T - 1; from any object with the fields of a `ParamsLGSSM`.

    Raises:
        TypeError: a field that is missing.
    """
    if isinstance(params, ParamsLGSSM) and all(map(_of_arrays, map(type, jax.tree.leaves(params)))):
        return params

    def field(part: str, name: str) -> Any:
        try:
            x = getattr(getattr(params, part), name)
        except AttributeError:
            raise TypeError(
                f"params: {type(params).__name__} without a field {part}.{name} given; wanted fastscan.ParamsLGSSM, or an "
                "object with its fields, such as dynamax's."
            ) from None
        if x is None:
            return None
        return jax.vmap(x)(jnp.arange(T)) if callable(x) else as_array(x)

    parts = {"initial": ParamsLGSSMInitial, "dynamics": ParamsLGSSMDynamics, "emissions": ParamsLGSSMEmissions}
    return ParamsLGSSM(*(kind(*(field(part, name) for name in kind._fields)) for part, kind in parts.items()))


def check_emissions(emissions: Any) -> jax.Array:
    """The emissions as an array: floating, of shape (T, m) or (B, T, m), T >= 1."""
    emissions = jnp.asarray(emissions)
    if emissions.dtype not in FLOATS:
        raise TypeError(
            f"emissions: {emissions.dtype} given, wanted float32 or float64. Convert them, e.g. emissions.astype('float32'); "
            "mark missing entries with NaN."
        )
    if emissions.ndim not in (2, 3) or 0 in emissions.shape:
        raise ValueError(
            f"emissions: shape {emissions.shape} given, wanted (T, m) or (B, T, m) with T, m and B at least 1. "
            "A scalar series of length T is emissions[:, None]."
        )
    return emissions


def check_model(params: Any, T: int, batch: int | None, dtype: Any, inputs: Any = None) -> tuple[Model, Sizes]:
    """Parameters in one layout, and the model's sizes.

    Args:
        params: a `ParamsLGSSM` or an object with its fields.
        T: time steps.
        batch: B of the emissions, or None.
        dtype: of the emissions; every required parameter must have it. The optional ones, which dynamax fills with zeros
            of JAX's default dtype, are converted.
        inputs: (T, U), (B, T, U) or None.

    Raises:
        TypeError: fields that are missing, dtypes that differ or are not float32 or float64.
        ValueError: shapes.
    """
    params = plain_params(params, T)
    fields: dict[str, Any] = {
        f"{part}.{name}": x for part in params._fields for name, x in getattr(params, part)._asdict().items()
    }
    for name, x in fields.items():
        if x is not None and x.size and x.dtype not in FLOATS:
            raise TypeError(f"{name}: {x.dtype} given, wanted float32 or float64.")
    required = {n: x for n, x in fields.items() if n not in _OPTIONAL}
    for name, x in required.items():
        if x is None:
            raise TypeError(f"{name}: None given, wanted an array. Only biases and input weights may be None.")
        if x.dtype != dtype:
            raise TypeError(
                f"{name}: {x.dtype} given, wanted {dtype}, which the emissions have. Convert one of the two, e.g. "
                f"jax.tree.map(lambda x: x.astype('{dtype}'), params)."
            )
    optional = {n: None if x is None else x.astype(dtype) for n, x in fields.items() if n in _OPTIONAL}
    fields = required | optional
    F, H = fields["dynamics.weights"], fields["emissions.weights"]
    if F.ndim < 2 or H.ndim < 2:
        name, x, wanted = ("dynamics.weights", F, "(D, D)") if F.ndim < 2 else ("emissions.weights", H, "(N, D)")
        raise ValueError(f"{name}: shape {x.shape} given, wanted {wanted}, with leading axes for what varies.")
    D, m = F.shape[-1], H.shape[-2]
    u, U = _check_inputs(inputs, fields, T, batch, dtype)

    def layout(name: str, *shape: int) -> Any:
        x = fields[name]
        return None if x is None or 0 in shape else _layout(name, x, shape, T, batch)

    model = Model(
        initial_mean=_layout_initial("initial.mean", fields["initial.mean"], (D,), batch),
        initial_cov=_layout_initial("initial.cov", fields["initial.cov"], (D, D), batch),
        F=layout("dynamics.weights", D, D),
        b=layout("dynamics.bias", D),
        B=layout("dynamics.input_weights", D, U),
        Q=layout("dynamics.cov", D, D),
        H=layout("emissions.weights", m, D),
        d=layout("emissions.bias", m),
        D=layout("emissions.input_weights", m, U),
        R=_layout_noise(fields["emissions.cov"], m, T, batch),
        u=u,
    )
    return model, Sizes(batch, T, D, m)


def check_emission_dim(emissions: jax.Array, m: int) -> None:
    """Refuses emissions whose last axis is not as long as the model's emissions are."""
    if emissions.shape[-1] != m:
        raise ValueError(
            f"emissions: shape {emissions.shape} given, wanted {(*emissions.shape[:-1], m)}: emissions.weights has {m} rows."
        )


def series(plan: Plan, model: Model, emissions: jax.Array, missing: bool) -> Series:
    """What the passes take.

    Args:
        plan: which they will run.
        model: checked.
        emissions: (B, T, m).
        missing: whether NaN entries are to be looked for; without, emissions are taken as they are.
    """
    y = emissions[..., None]
    observed = ~jnp.isnan(y) if missing else None
    drift, offset = known_terms(model)
    y = y - offset
    if observed is not None:
        y = jnp.where(observed, y, 0)
    H, noise, y = _independent(plan, model.H, model.R, y, observed)
    weight = None if observed is None else observed.astype(y.dtype)
    inputs = FilterInputs(model.F, drift, model.Q + _indefinite(plan, *_with_scale(model)), H, noise, y, weight)
    params, rows = _divide(inputs)
    prior = Gaussian(
        model.initial_mean, model.initial_cov + _indefinite(plan, model.initial_cov, _variances(model.initial_cov))
    )
    first = FilterInputs(*(None if x is None else x[:, :1] for x in inputs))
    return Series(prior, first, params, rows)


def known_terms(model: Model) -> tuple[jax.Array, jax.Array]:
    """Biases and inputs: of the transitions (B or 1, T or 1, D, 1), of the emissions (B or 1, T or 1, m, 1)."""
    drift = _known(model.b, model.B, model.u, jnp.zeros_like(model.F[:1, :1, :, :1]))
    offset = _known(model.d, model.D, model.u, jnp.zeros_like(model.H[:1, :1, :, :1]))
    return drift, offset


_OPTIONAL = ("dynamics.bias", "dynamics.input_weights", "emissions.bias", "emissions.input_weights")


def _shapes(shape: Sequence[int], T: int, batch: int | None) -> list[tuple[int, ...]]:
    """The shapes that a parameter may have: static, time-varying, and in a batch per sequence."""
    allowed = [tuple(shape), (T, *shape)]
    return allowed if batch is None else [*allowed, (batch, T, *shape), (batch, 1, *shape)]


def _refuse(name: str, x: jax.Array, allowed: Sequence[tuple[int, ...]]) -> NoReturn:
    wanted = " or ".join(map(str, dict.fromkeys(allowed)))
    raise ValueError(f"{name}: shape {x.shape} given, wanted {wanted}.")


def _layout(name: str, x: jax.Array, shape: tuple[int, ...], T: int, batch: int | None) -> jax.Array:
    allowed = _shapes(shape, T, batch)
    if x.shape not in allowed:
        _refuse(name, x, allowed)
    x = x.reshape((1,) * (len(shape) + 2 - x.ndim) + x.shape)
    return x if len(shape) == 2 else x[..., None]


def _layout_initial(name: str, x: jax.Array, shape: tuple[int, ...], batch: int | None) -> jax.Array:
    allowed = [shape] if batch is None else [shape, (batch, *shape)]
    if x.shape not in allowed:
        _refuse(name, x, allowed)
    x = x.reshape(-1, 1, *shape)
    return x if len(shape) == 2 else x[..., None]


def _layout_noise(R: jax.Array, m: int, T: int, batch: int | None) -> jax.Array:
    full, diagonal = _shapes((m, m), T, batch), [(m,), (T, m)]
    if R.shape in full:
        return _layout("emissions.cov", (R + R.mT) / 2, (m, m), T, batch)  # so its derivative is symmetric, too
    if R.shape in diagonal:
        return _layout("emissions.cov", R, (m,), T, None)
    _refuse("emissions.cov", R, [*full, *diagonal])


def _check_inputs(inputs: Any, fields: dict, T: int, batch: int | None, dtype: Any) -> tuple[jax.Array | None, int]:
    widths = {n: fields[n].shape[-1] for n in ("dynamics.input_weights", "emissions.input_weights") if fields[n] is not None}
    if inputs is None:
        for name, U in widths.items():
            if U:
                raise ValueError(f"inputs: None given, wanted shape {(T, U)}: {name} has {U} columns.")
        return None, 0
    inputs = jnp.asarray(inputs)
    if inputs.dtype != dtype and inputs.size:
        raise TypeError(f"inputs: {inputs.dtype} given, wanted {dtype}, which the emissions have.")
    leading = [(T,)] if batch is None else [(T,), (batch, T)]
    if inputs.ndim < 2 or inputs.shape[:-1] not in leading:
        raise ValueError(f"inputs: shape {inputs.shape} given, wanted {' or '.join(str((*s, 'U')) for s in leading)}.")
    U = inputs.shape[-1]
    for name, width in widths.items():
        if width != U:
            raise ValueError(f"inputs: shape {inputs.shape} given, but {name} has {width} columns; the two must agree.")
    return inputs.reshape(-1, T, U, 1), U


def _known(bias: jax.Array | None, weights: jax.Array | None, inputs: jax.Array | None, zeros: jax.Array) -> jax.Array:
    """Bias + weights @ inputs."""
    known = zeros if bias is None else bias
    if weights is None or inputs is None:
        return known
    return known + product(weights, inputs)


def _independent(plan, H, R, y, observed) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The emissions in coordinates with independent noise; missing ones stay apart."""
    if (R.shape[-1] == 1 and H.shape[-2] > 1) or H.shape[-2] == 1:
        return H, jnp.where(R < 0, jnp.nan, R), y
    if observed is not None:
        R = jnp.where(observed & jnp.swapaxes(observed, -1, -2), R, 0)
    apart = driver.phases(plan).each_row(plan, "decorrelate", decorrelate, (H, R))
    return apart.H, apart.noise, product(apart.change, y)


def _indefinite(plan: Plan, cov: jax.Array, scale: jax.Array) -> jax.Array:
    """NaN, to be added where a covariance matrix is none, so that no result can look right; else 0."""
    return driver.phases(plan).each_row(plan, "indefinite", indefinite, lax.stop_gradient((cov, scale)))


def _with_scale(model: Model) -> tuple[jax.Array, jax.Array]:
    """Q, and the variances that it is judged beside: of itself at any time, and of an initial state moved on.

    Who computes Q by subtraction, as Gaussian processes have it, has it up to a rounding of these.
    """
    moved = (product(model.F, model.initial_cov) * model.F).sum(-1)[..., None]
    return model.Q, jnp.abs(moved) + _variances(model.Q).max(1, keepdims=True)


def _variances(cov: jax.Array) -> jax.Array:
    return jnp.abs(jnp.diagonal(cov, axis1=-2, axis2=-1))[..., None]


def _divide(container: Any) -> tuple[Any, Any]:
    """What is the same in every row, and what is not (entries 1 to T - 1): a field is None in one of the two."""
    kind = type(container)
    same = kind(*(as_lanes(x) if x is not None and x.shape[1] == 1 else None for x in container))
    varying = kind(*(None if x is None or x.shape[1] == 1 else x[:, 1:] for x in container))
    return same, varying
