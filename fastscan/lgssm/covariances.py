"""Values that make all results NaN, found where they can be seen: outside of `jax.jit`, in small arrays on CPUs.

A verdict is a function of the bytes that it is about, and is remembered by these, as most calls have a model that was judged
before: to look eigenvalues up takes less than inference on ten steps, to find them more.
"""

import functools
import math
import warnings
from typing import Any, NamedTuple

import jax
import numpy as np

from fastscan.given import known
from fastscan.kernels.lgssm.definiteness import ROUNDINGS
from fastscan.values import MOST_BYTES, smallest

ASYMMETRY = 1e-3
"""The asymmetry, relative to its largest entry, from which a matrix can't have been meant as a covariance."""


class Objection(NamedTuple):
    """A fault of a covariance, "" if it has none, and whether that fault is no more than an eigenvalue below zero."""

    wrong: str = ""
    negative: bool = False


NO_OBJECTION = Objection()


def check_covariances(params: Any, T: int) -> None:
    """Refuses static covariances that are none, as far as their values are known.

    Eigenvalues that rounding may have made negative pass: those of Q are compared with F P F' + Q, from whose like Q may have
    been subtracted.

    Args:
        params: a `ParamsLGSSM` of arrays.
        T: time steps.

    Raises:
        ValueError: negative variances, asymmetric or indefinite matrices, NaN entries.
    """
    initial, dynamics, R = params.initial, params.dynamics, params.emissions.cov
    P, Q = initial.cov, dynamics.cov
    check_covariance("initial.cov", P)
    if known(type(Q)):
        verdict = _of_matrix(np.asarray(Q))
        if verdict.wrong and not (verdict.negative and _within_rounding(Q, dynamics.weights, P)):
            _refuse("dynamics.cov", verdict.wrong)
    if known(type(R)):
        _check_noise(np.asarray(R), T)


def check_covariance(name: str, x: Any) -> None:
    """Refuses a static matrix that is no covariance beside its own variances, as far as its values are known."""
    if known(type(x)) and (verdict := _of_matrix(np.asarray(x))).wrong:
        _refuse(name, verdict.wrong)


def _check_noise(R: np.ndarray, T: int) -> None:
    if R.ndim == 2 and R.shape[0] == R.shape[1]:
        m = len(R)
        if wrong := _of_matrix(R).wrong:
            told = f" {(m, m)} is one covariance also where T = m; give variances of every step as (T, m, m)."
            _refuse("emissions.cov", wrong, told if m == T > 1 else "")
        if m == T > 1 and _all_equal(R):
            warnings.warn(
                f"emissions.cov: shape {R.shape} with equal entries given, where T = m = {T}. It is read as one covariance, of "
                "noise that is the same in all coordinates. Give variances of every step as diagonals of (T, m, m).",
                stacklevel=2,
            )
    elif R.ndim in (1, 2) and not (least := smallest(R)) >= 0:
        given = "NaN" if math.isnan(least) else f"variance {least:.3g}"
        raise ValueError(f"emissions.cov: {given} given, wanted variances that are not negative, for results would be NaN.")


def _of_matrix(x: np.ndarray) -> Objection:
    """Judges a static matrix that is small; others count as fine."""
    return _of_bytes(x.tobytes(), x.shape, x.dtype) if x.ndim == 2 and x.nbytes <= MOST_BYTES else NO_OBJECTION


@functools.lru_cache(maxsize=512)
def _of_bytes(data: bytes, shape: tuple[int, ...], dtype: Any) -> Objection:
    if shape[0] != shape[1] or not data or dtype.kind not in "fiub":
        return NO_OBJECTION
    x = np.frombuffer(data, dtype).reshape(shape).astype(np.float64)
    if np.isnan(x).any():
        return Objection("NaN")
    if not np.isfinite(x).all():
        return NO_OBJECTION
    if np.abs(x - x.T).max() > ASYMMETRY * np.abs(x).max():
        return Objection("a matrix that is not symmetric")
    if _definite(x, np.abs(np.diagonal(x)), dtype):
        return NO_OBJECTION
    return Objection(f"a matrix with eigenvalue {np.linalg.eigvalsh((x + x.T) / 2)[0]:.3g}", negative=True)


def _definite(x: np.ndarray, scale: np.ndarray, dtype: Any) -> bool:
    """Tells whether a matrix is no further below zero than inference takes it, in a dtype (see
    `gaussian.indefinite`).
    """
    dtype = jax.dtypes.canonicalize_dtype(dtype if dtype.kind == "f" else float)  # integers become JAX's default floats
    n, eps = len(x), float(np.finfo(dtype).eps)
    left = (x + x.T) / 2 + np.diag(ROUNDINGS * n * eps * scale)
    diagonal = np.diagonal(left).copy()
    for k in range(n):
        pivot = left[k, k]
        if pivot < -math.sqrt(eps) * diagonal[k]:
            return False
        if pivot > n * eps * diagonal[k]:
            left = left - np.outer(left[:, k], left[k]) / pivot
    return True


def _within_rounding(Q: Any, F: Any, P: Any) -> bool:
    """Tells whether the part of Q below zero is rounding beside F P F' + Q; if F varies, or is not known, it may be."""
    if not (known(type(F)) and known(type(P)) and np.shape(F) == np.shape(P) == np.shape(Q)):
        return True
    dtype = np.asarray(Q).dtype
    Q, F, P = (np.asarray(x, np.float64) for x in (Q, F, P))
    return _definite(Q, np.abs(np.diagonal(F @ P @ F.T)) + np.abs(np.diagonal(Q)), dtype)


def _all_equal(x: np.ndarray) -> bool:
    return bool(x[0, 0] > 0 and (x == x[0, 0]).all())


def _refuse(name: str, wrong: str, told: str = "") -> None:
    raise ValueError(
        f"{name}: {wrong} given, wanted a covariance, symmetric and without negative eigenvalues; results would be NaN.{told}"
    )
