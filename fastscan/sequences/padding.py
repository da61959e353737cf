"""Sequences of different lengths as one batch, filled up with missing steps."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fastscan.given import ShapeError, check_dtypes, count, emissions_array, promoted, seen


def pad_sequences(sequences: Sequence[jax.typing.ArrayLike], length: int | None = None) -> tuple[jax.Array, jax.Array]:
    """Puts sequences of different lengths into one batch, filled up with missing steps.

    Everything the smoother says of the steps before a sequence's own end is what it says of the sequence alone; what it
    says after the end is a forecast.

    Args:
        sequences: arrays (T_i, m); masked entries become NaN, and dtypes are promoted as JAX promotes them.
        length: T; default the longest sequence's.

    Returns:
        Emissions (B, T, m), and the lengths (B,).

    Raises:
        TypeError: what is no array of floats or integers.
        ValueError: no sequences, shapes that do not go together, a length below a sequence's.
    """
    sequences = [emissions_array(s) for s in sequences]
    shapes = [s.shape for s in sequences]
    if not sequences or any(len(s) != 2 or s[1] != shapes[0][1] for s in shapes):
        raise ShapeError(f"sequences: shapes {shapes} given, wanted at least one, all (T_i, m) with one m.")
    for s in sequences:
        check_dtypes({"sequences": s.dtype})
    dtype = promoted(jax.dtypes.canonicalize_dtype(s.dtype) for s in sequences)
    longest = max(s[0] for s in shapes)
    T = longest if length is None else count("length", length)
    if longest > T:
        raise ValueError(f"length: {T} given, wanted at least the longest sequence's, {longest}.")
    lengths = jax.device_put(np.array([s[0] for s in shapes]))
    if all(map(seen, sequences)):  # by NumPy, as `jax.debug_nans` takes what JAX computes to be NaN for an error
        padded = np.full((len(shapes), T, shapes[0][1]), np.nan, dtype)
        for row, s in zip(padded, sequences, strict=True):
            row[: len(s)] = s
        return jax.device_put(padded), lengths
    padded = [jnp.pad(s.astype(dtype), ((0, T - len(s)), (0, 0)), constant_values=jnp.nan) for s in sequences]
    return jnp.stack(padded), lengths
