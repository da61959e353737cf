"""From what a user passes to a checked model: shapes, dtypes, and every parameter as one array.

After the checks every parameter is an array ``(B or 1, T or 1, rows, columns)``: what does not vary has length 1 there.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp

from fastscan.given import ShapeError, check_dtypes, promoted
from fastscan.kernels.tables import is_computed, is_table
from fastscan.lgssm.timing import plain_params
from fastscan.regimes import as_series, as_table, check_index
from fastscan.types import Regimes


class Sizes(NamedTuple):
    """B is None for emissions without a batch axis."""

    B: int | None
    T: int
    D: int
    m: int


class Model(NamedTuple):
    """Checked parameters, each (B or 1, T or 1, rows, columns). ``R`` is a column where the noise is independent.

    F, Q, H, R and input weights B and D may be a `Table` of two steps or more; that of R has no index where it is that of H.
    F, Q and H may also be `Computed`.
    """

    initial_mean: jax.Array
    initial_cov: jax.Array
    F: Any
    b: jax.Array | None
    B: Any
    Q: Any
    H: Any
    d: jax.Array | None
    D: Any
    R: Any
    u: jax.Array | None


def check_emissions(emissions: Any) -> jax.Array:
    """Checks emissions, and returns them as an array of numbers, (T, m) or (B, T, m) with T >= 1."""
    emissions = jnp.asarray(emissions)
    check_dtypes({"emissions": emissions.dtype})
    if emissions.ndim not in (2, 3) or 0 in emissions.shape:
        raise ShapeError(
            f"emissions: shape {emissions.shape} given, wanted (T, m) or (B, T, m) with T, m and B at least 1. "
            "A scalar series of length T is emissions[:, None]."
        )
    return emissions


def check_model(params: Any, T: int, batch: int | None, dtype: Any, inputs: Any = None) -> tuple[Model, Sizes]:
    """Checks parameters, and returns them in one layout and one dtype, and the model's sizes.

    Args:
        params: a `ParamsLGSSM` or an object with its fields.
        T: time steps.
        batch: B of the emissions, or None.
        dtype: of the emissions. All are promoted to one dtype as JAX promotes, float32 or float64; biases and input weights,
            which dynamax fills with zeros of JAX's default dtype, are converted to it.
        inputs: (T, U), (B, T, U) or None.

    Raises:
        TypeError: fields that are missing, dtypes that are neither floats as above nor integers.
        ValueError: shapes.
    """
    params = plain_params(params, T)
    fields: dict[str, Any] = {
        f"{part}.{name}": x for part in params._fields for name, x in getattr(params, part)._asdict().items()
    }
    for name, x in fields.items():
        if x is None and name not in _OPTIONAL:
            raise TypeError(f"{name}: None given, wanted an array. Only biases and input weights may be None.")
    regimes = {name: x for name, x in fields.items() if isinstance(x, Regimes)}
    for name, x in regimes.items():
        fields[name] = x.values
        if x.index is not None:
            check_index(name, x, T, batch)
    inputs = None if inputs is None or jnp.shape(inputs)[-1:] == (0,) else jnp.asarray(inputs)
    dtypes = {name: x.dtype for name, x in fields.items() if x is not None and 0 not in x.shape}
    dtypes |= {"emissions": dtype} | ({} if inputs is None else {"inputs": inputs.dtype})
    check_dtypes(dtypes)
    dtype = promoted(d for name, d in dtypes.items() if name not in _OPTIONAL)
    fields = {
        name: x if x is None else x.replaced(dtype=dtype) if is_computed(x) else x.astype(dtype) for name, x in fields.items()
    }
    F, H = fields["dynamics.weights"], fields["emissions.weights"]
    if len(F.shape) < 2 or len(H.shape) < 2:
        name, x, wanted = ("dynamics.weights", F, "(D, D)") if len(F.shape) < 2 else ("emissions.weights", H, "(N, D)")
        raise ShapeError(f"{name}: shape {x.shape} given, wanted {wanted}, with leading axes for what varies.")
    D, m = F.shape[-1], H.shape[-2]
    u, U = _check_inputs(inputs, fields, T, batch, dtype)

    def layout(name: str, *shape: int) -> Any:
        x = fields[name]
        if x is None or 0 in shape:  # inputs without columns are none
            return None
        if is_computed(x):
            written_out = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
            return x if written_out.shape == (T, *shape) else _refuse(name, written_out, _shapes(shape, T, batch))
        if name in regimes:
            return _layout_regimes(name, regimes[name]._replace(values=x), [shape], T)
        return _layout(name, x, shape, T, batch)

    noise = fields["emissions.cov"]
    if "emissions.cov" in regimes:
        noise = regimes["emissions.cov"]._replace(values=noise)
        noise = _layout_regime_noise(noise, regimes["emissions.weights"] if noise.index is None else noise, m, T)
    else:
        noise = _layout_noise(noise, m, T, batch)
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
        R=noise,
        u=u,
    )
    return model, Sizes(batch, T, D, m)


def check_emission_dim(emissions: jax.Array, m: int) -> None:
    """Refuses emissions whose last axis is not as long as the model's emissions are."""
    if emissions.shape[-1] != m:
        transposed = " Time is the last axis but one: take emissions.mT." if emissions.shape[-2] == m else ""
        raise ShapeError(
            f"emissions: shape {emissions.shape} given, wanted {(*emissions.shape[:-1], m)}: emissions.weights has {m} rows."
            + transposed
        )


_OPTIONAL = ("dynamics.bias", "dynamics.input_weights", "emissions.bias", "emissions.input_weights")


def _shapes(shape: Sequence[int], T: int, batch: int | None) -> list[tuple[int, ...]]:
    """Lists the shapes that a parameter may have: static, time-varying, and in a batch per sequence."""
    allowed = [tuple(shape), (T, *shape)]
    return allowed if batch is None else [*allowed, (batch, T, *shape), (batch, 1, *shape)]


def _refuse(name: str, x: jax.Array | jax.ShapeDtypeStruct, allowed: Sequence[tuple[int, ...]]) -> NoReturn:
    wanted = " or ".join(map(str, dict.fromkeys(allowed)))
    raise ShapeError(f"{name}: shape {x.shape} given, wanted {wanted}.{_may_be(name, x.shape, allowed)}")


def _may_be(name: str, shape: tuple[int, ...], allowed: Sequence[tuple[int, ...]]) -> str:
    """Guesses what was meant by a shape."""
    if name.startswith("initial") or name.endswith("values"):
        return ""
    alone, varying = allowed[:2]
    if len(shape) != len(varying) or shape[1:] != varying[1:]:
        return ""
    if name.startswith("dynamics") and shape[0] == varying[0] - 1:
        return (
            " Entry t belongs to the transition from t - 1 to t, and entry 0 is not read; of a model for dynamax before 1.0.3, "
            'whose entry t is of the transition from t to t + 1, take timing="departure".'
        )
    return (
        f" The first axis is time; dynamax reads the last of {shape[0]} entries for the steps after them. If each is a "
        f"recording's, give the one of this recording, {alone}, or take `jax.vmap` over both."
    )


def _layout(name: str, x: jax.Array, shape: tuple[int, ...], T: int, batch: int | None) -> jax.Array:
    allowed = _shapes(shape, T, batch)
    if x.shape not in allowed:
        _refuse(name, x, allowed)
    x = x.reshape((1,) * (len(shape) + 2 - x.ndim) + x.shape)
    return x if len(shape) == 2 else x[..., None]


def _layout_regimes(name: str, x: Regimes, shapes: Sequence[tuple[int, ...]], T: int) -> Any:
    """Returns regimes of one of these shapes as a table; those of vectors, or of one step, as an array."""
    allowed = [(len(x.values), *shape) for shape in shapes]
    if x.values.shape not in allowed:
        _refuse(f"{name}.values", x.values, allowed)
    table = as_table(x, x.values.shape[1:])
    return as_series(table) if T == 1 or x.values.ndim == 2 or x.values[0].size == 1 else table


def _layout_regime_noise(R: Regimes, numbered: Regimes, m: int, T: int) -> Any:
    """Lays the noise of regimes out, whose index is that of others."""
    if R.values.ndim == 3:
        R = R._replace(values=(R.values + R.values.mT) / 2)
    noise = _layout_regimes("emissions.cov", R._replace(index=numbered.index), [(m, m), (m,)], T)
    return noise._replace(index=None) if is_table(noise) and R.index is None else noise


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
                raise ShapeError(f"inputs: None given, wanted shape {(T, U)}: {name} has {U} columns.")
        return None, 0
    leading = [(T,)] if batch is None else [(T,), (batch, T)]
    if inputs.ndim < 2 or inputs.shape[:-1] not in leading:
        raise ShapeError(f"inputs: shape {inputs.shape} given, wanted {' or '.join(str((*s, 'U')) for s in leading)}.")
    U = inputs.shape[-1]
    for name, width in widths.items():
        if width != U:
            raise ShapeError(f"inputs: shape {inputs.shape} given, but {name} has {width} columns; the two must agree.")
    return inputs.astype(dtype).reshape(-1, T, U, 1), U
