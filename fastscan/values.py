"""Values of what users give, looked at where they can be seen: outside of `jax.jit`, in small arrays on CPUs.

What is found is a function of the bytes that it is about, and is remembered by these, as most calls have a model that was
looked at before.
"""

import functools
from typing import Any

import numpy as np

MOST_BYTES = 2048
"""The bytes, at most, of a matrix that is judged: 16 rows of float64."""
MOST_LOOKED_AT = 65536
"""Bytes of variances or weights, at most; larger ones, which vary in time, are not looked at."""


def smallest(x: np.ndarray) -> float:
    """Returns the smallest entry, NaN if there is one; 0 for arrays that are too large to be looked at."""
    if x.nbytes <= MOST_BYTES:
        return _smallest_of_bytes(x.tobytes(), x.dtype)
    return float(x.min()) if x.nbytes <= MOST_LOOKED_AT and x.dtype.kind in "fiub" else 0.0


@functools.lru_cache(maxsize=512)
def _smallest_of_bytes(data: bytes, dtype: Any) -> float:
    x = np.frombuffer(data, dtype)
    return float(x.min()) if x.size and dtype.kind in "fiub" else 0.0
