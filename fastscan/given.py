"""Checks of what users give, made on every call: kinds of arrays, masks, keys, counts. Shapes and dtypes are checked when
compiling.

Nothing here is compiled, and nothing is remembered but of types, so that a call's outcome does not depend on those before it.
"""

import functools
import operator
from collections.abc import Iterable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fastscan.draws import Drawn

FLOATS = (jnp.dtype("float32"), jnp.dtype("float64"))


class ShapeError(ValueError, AssertionError):
    """A shape that is not as wanted. It is both errors, as dynamax asserts shapes."""


@functools.cache
def plain(kind: type) -> bool:
    """Tells whether all objects of a type are arrays without a mask, and no keys; asking each object would take longer."""
    return issubclass(kind, (jax.Array, np.ndarray)) and not issubclass(kind, np.ma.MaskedArray) and "Key" not in kind.__name__


@functools.cache
def known(kind: type) -> bool:
    """Tells whether all objects of a type are arrays with values, and not the placeholders of a JAX trace."""
    return plain(kind) and not issubclass(kind, jax.core.Tracer)


@functools.cache
def _on_cpus(sharding: Any) -> bool:
    return all(device.platform == "cpu" for device in sharding.device_set)


def seen(x: Any) -> bool:
    """Tells whether reading an array's entries costs little: its values are known, and lie in the memory of this process."""
    return known(type(x)) and (isinstance(x, np.ndarray) or _on_cpus(x.sharding))


def array(name: str, x: Any) -> Any:
    """Returns an array of JAX or NumPy as it is, and what is like one as NumPy takes it.

    Raises:
        TypeError: None, functions, text, objects; masked entries.
        ValueError: nested lists of different lengths.
    """
    if plain(type(x)):
        return x
    if isinstance(x, np.ma.MaskedArray):
        if np.ma.getmaskarray(x).any():
            raise TypeError(
                f"{name}: masked entries given, wanted all. Only emissions and log-likelihoods may have missing ones."
            )
        return np.asarray(x.data)
    check_dtypes({name: x.dtype} if isinstance(x, jax.Array) else {})
    if x is None or callable(x):
        given = "None" if x is None else "a function"
        raise TypeError(f"{name}: {given} given, wanted an array.")
    try:
        out = np.asarray(x)
    except jax.errors.TracerArrayConversionError:
        return jnp.asarray(x)
    except ValueError:
        raise ShapeError(f"{name}: a {type(x).__name__} of parts with different shapes given, wanted one array.") from None
    if out.dtype.kind in "OUSMm":
        raise TypeError(f"{name}: {type(x).__name__} given, wanted an array of numbers.")
    return out


def check_kind(name: str, x: Any) -> None:
    """Refuses NumPy arrays of anything but numbers, which `jax.jit` has no good word for."""
    if x.dtype.kind in "OUSMm":
        raise TypeError(
            f"{name}: an array of {x.dtype} given, wanted numbers. Convert it, e.g. {name}.astype('float32'), with NaN for "
            "what is missing."
        )


def emissions_array(x: Any) -> Any:
    """Returns emissions as an array, with NaN for masked entries.

    Raises:
        TypeError: None, parameters, keys, text, objects.
        ValueError: a list of sequences of different lengths.
    """
    if plain(type(x)):
        return x
    if isinstance(x, np.ma.MaskedArray):
        return _filled(x)
    if hasattr(x, "dynamics") or hasattr(x, "initial"):
        raise TypeError(f"emissions: {type(x).__name__} given, wanted (T, m) or (B, T, m). Are params and emissions exchanged?")
    if isinstance(x, list | tuple) and len({np.shape(s) for s in x}) > 1:
        raise ShapeError(
            f"emissions: {len(x)} sequences of shapes {_some([np.shape(s) for s in x])} given, wanted one array (T, m) or "
            "(B, T, m). `fastscan.pad_sequences` makes one of them."
        )
    return array("emissions", x)


def log_likelihoods_array(x: Any) -> Any:
    """Returns log-likelihoods as an array, with NaN for masked rows.

    Raises:
        TypeError: None, keys, text, objects.
        ValueError: rows of which only some entries are masked; a list of sequences of different lengths.
    """
    if plain(type(x)):
        return x
    if isinstance(x, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(x)
        if mask.ndim and (mask.any(-1) != mask.all(-1)).any():
            raise ValueError(
                "log_likelihoods: rows with some entries masked given, wanted whole rows. A missing observation says nothing "
                "of any state; -inf stands for an impossible state."
            )
        return _filled(x)
    return array("log_likelihoods", x)


def _filled(x: np.ma.MaskedArray) -> np.ndarray:
    """Converts to floats, with NaN for what is masked."""
    return np.ma.filled(x if x.dtype.kind in "fc" else x.astype(np.float64), np.nan)


def check_key(x: Any, order: str = "") -> None:
    """Refuses what is no single random key of JAX's, typed or of uint32; ``order`` says how arguments are given."""
    if isinstance(x, Drawn):
        return
    kind = _kind_of_key(dtype) if (dtype := getattr(x, "dtype", None)) is not None else None
    if kind is None:
        given = f"{x!r}" if isinstance(x, int | float | str | None) else _described(x)
        raise TypeError(f"key: {given} given, wanted a random key, e.g. jax.random.key(0).{order}")
    if x.ndim != kind:
        raise ShapeError(
            f"key: an array of shape {x.shape} given, wanted one key, e.g. jax.random.key(0). Take `jax.vmap` for several."
            f"{order}"
        )


@functools.cache
def _kind_of_key(dtype: Any) -> int | None:
    """Returns the dimensions of a key of this dtype, or None if keys have another one."""
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):  # pyright: ignore[reportPrivateImportUsage]
        return 0
    return 1 if dtype == np.uint32 else None


def count(name: str, x: Any, least: int = 1) -> int:
    """Returns a whole number of at least ``least``.

    Raises:
        TypeError: what is none, or is known only when it runs.
        ValueError: a smaller one.
    """
    if type(x) is not int:
        try:
            x = operator.index(x)
        except TypeError:
            given = "a number that jax.jit traces" if isinstance(x, jax.core.Tracer) else f"{x!r}"
            raise TypeError(f"{name}: {given} given, wanted a whole number, an int; shapes depend on it.") from None
    if x < least:
        raise ValueError(f"{name}: {x} given, wanted at least {least}.")
    return x


def check_missing(said: Any) -> bool | None:
    """Returns whether entries are missing as it was said, or None."""
    if said is None or said is True or said is False:
        return said
    if isinstance(said, np.bool_):
        return bool(said)
    raise TypeError(
        f"missing: {_described(said)} given, wanted None, True or False. Mark missing entries with NaN in the emissions."
    )


def missing_entries(emissions: np.ndarray, said: bool | None) -> bool:
    """Tells whether entries are missing; refuses the word that none are, if some are."""
    found = False
    if emissions.dtype.kind == "f":
        squares = np.vdot(emissions, emissions)
        found = bool(squares != squares)  # NaN if there is one
    else:
        check_kind("emissions", emissions)
    if found and said is False:
        raise ValueError("missing: False given, but emissions have NaN entries. Take None, or True.")
    return found if said is None else said


def check_dtypes(named: dict[str, Any]) -> None:
    """Refuses dtypes other than float32, float64, and those of integers.

    Raises:
        TypeError: whose dtype it is, and what was wanted.
    """
    for name, dtype in named.items():
        if dtype in FLOATS or dtype == jnp.bool_ or jnp.issubdtype(dtype, jnp.integer):
            continue
        if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):  # pyright: ignore[reportPrivateImportUsage]
            raise TypeError(f"{name}: a random key given, wanted numbers. Are arguments exchanged?")
        raise TypeError(
            f"{name}: {dtype} given, wanted float32 or float64; integers are converted. Convert it, e.g. "
            f"{name}.astype('float32')."
        )


def promoted(dtypes: Iterable[Any]) -> Any:
    """Returns the dtype that JAX promotes checked dtypes to, float32 or float64; for integers alone JAX's default one."""
    different = set(dtypes)
    (dtype,) = different if len(different) == 1 else (jnp.result_type(*different),)
    return dtype if dtype in FLOATS else jnp.dtype(jnp.result_type(float))


def _described(x: Any) -> str:
    shape = getattr(x, "shape", None)
    return type(x).__name__ if shape is None else f"an array of {x.dtype}, shape {tuple(shape)},"


def _some(shapes: list) -> str:
    return ", ".join(map(str, shapes[:3])) + (", ..." if len(shapes) > 3 else "")
