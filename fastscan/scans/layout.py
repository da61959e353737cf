"""From what is given to an affine scan to one layout: which structure its matrices have, and which axes are a batch's."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastscan.given import ShapeError, array, check_dtypes, check_kind
from fastscan.kernels.affine.structures import BLOCKS, DENSE, DIAGONAL, Structure

STRUCTURES = {"dense": DENSE, "diagonal": DIAGONAL, "blocks": BLOCKS}


class System(NamedTuple):
    """An affine recurrence.

    Attributes:
        name: of the structure, as users have it.
        structure: of its matrices.
        A: (B or 1, T or 1, rows, columns), as the structure has them.
        b: (B, T, n, p), as the structure has vectors.
        x0: (B or 1, 1, n, p).
        starts: bool (B or 1, T), or None. The first is where the scan begins anyway.
    """

    name: str
    structure: Structure
    A: jax.Array
    b: jax.Array
    x0: jax.Array
    starts: jax.Array | None


def number_array(name: str, x: Any) -> Any:
    """Returns an array, of complex numbers too, and what is like one as NumPy takes it; numbers stay as they are.

    Raises:
        TypeError: what is no array of numbers, or of float16 and the like.
        ValueError: nested lists of different lengths.
    """
    if isinstance(x, bool | int | float | complex) or _is_complex(x):
        return x
    x = array(name, x)
    check_kind(name, x)
    if not _is_complex(x):
        check_dtypes({name: x.dtype})
    return x


def _is_complex(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray) and jnp.issubdtype(x.dtype, jnp.complexfloating)


def read(A: Any, b: Any, x0: Any, starts: Any, structure: str | None, *, reverse: bool) -> System:
    """Finds the structure of matrices by their shape, and brings all arrays into one layout; arguments as
    `fastscan.affine_scan`.

    Raises:
        ValueError: shapes that do not fit, or that fit in two ways; no name of a structure.
    """
    A, b = jnp.asarray(A), jnp.asarray(b)
    dtype = jnp.result_type(A, b, *([] if x0 is None else [x0]))
    dtype = dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.result_type(float)
    if b.ndim < 2:
        raise ShapeError(f"b: shape {b.shape} given, wanted (..., T, D).")
    *batch, T, D = b.shape
    if not D or 0 in batch:
        raise ShapeError(f"b: shape {b.shape} given, wanted (..., T, D) with batch axes and D at least 1.")
    name, batched, varying = _reading(A.shape, tuple(batch), T, D, structure)
    B, own = math.prod(batch), STRUCTURES[name]
    vector = (2, D // 2) if name == "blocks" else (D, 1)
    matrix = {"dense": (D, D), "diagonal": (D, 1), "blocks": (4, D // 2)}[name]
    A = A.astype(dtype).reshape(B if batched else 1, T if varying else 1, *matrix)
    of_start = jnp.zeros((1, D), dtype) if x0 is None else _state(jnp.asarray(x0).astype(dtype), tuple(batch), D)
    return System(
        name,
        own,
        A,
        b.astype(dtype).reshape(B, T, *vector),
        of_start.reshape(-1, 1, *vector),
        None if starts is None else _begins(starts, T, reverse),
    )


def _reading(shape: tuple, batch: tuple, T: int, D: int, structure: str | None) -> tuple[str, bool, bool]:
    """Finds the structure, whether there is a batch axis, and whether matrices vary in time."""
    if structure is not None and structure not in STRUCTURES:
        raise ValueError(f"structure: {structure!r} given, wanted None or one of {', '.join(STRUCTURES)}.")
    ends = {"dense": (D, D), "diagonal": (D,), "blocks": (2, 2, D // 2)}
    if structure == "blocks" and D % 2:
        raise ShapeError(f"b: shape {(*batch, T, D)} given, wanted an even D for blocks.")
    if D % 2:
        del ends["blocks"]
    ways = {}
    for name, end in ends.items():
        for lead, time in ((batch, (T,)), ((), (T,)), ((), ()), (batch, (1,))):
            if structure in (None, name) and shape == (*lead, *time, *end):
                ways.setdefault((name, bool(lead), time == (T,)))
    different = {(D == 1 or name, batched, varying and T > 1) for name, batched, varying in ways}
    if len({name for name, *_ in ways}) > 1 and len(different) > 1:
        raise ShapeError(
            f"A: shape {shape} given for b {(*batch, T, D)}, which may be {' or '.join(sorted({n for n, *_ in ways}))} "
            "matrices. Say which: structure=..."
        )
    if not ways:
        wanted = [(*batch, T, *end) for name, end in ends.items() if structure in (None, name)]
        wanted += [end for name, end in ends.items() if structure in (None, name)]
        raise ShapeError(f"A: shape {shape} given for b {(*batch, T, D)}, wanted {' or '.join(map(str, wanted))}.")
    return next(iter(ways))  # of two, where T is 1: it does not matter which axis is which


def _state(x0: jax.Array, batch: tuple, D: int) -> jax.Array:
    if x0.shape not in ((D,), (*batch, D)):
        raise ShapeError(f"x0: shape {x0.shape} given, wanted {' or '.join(map(str, dict.fromkeys([(D,), (*batch, D)])))}.")
    return x0.reshape(-1, D)


def _begins(starts: jax.Array, T: int, reverse: bool) -> jax.Array:
    """Returns where a row begins a sequence in the direction of the scan: for one in reverse, at a sequence's last row."""
    starts = starts.reshape(-1, T)
    outside = jnp.zeros((len(starts), 1), bool)  # where the scan begins with x0 anyway
    return jnp.concatenate([starts[:, 1:], outside] if reverse else [outside, starts[:, 1:]], 1)
