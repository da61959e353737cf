"""The two things that happen to a Gaussian in a linear state-space model: it is pushed on, and it is conditioned.

Conditioning takes one scalar observation after another (univariate treatment: Anderson & Moore 1979; Durbin & Koopman
2012, section 6.4). No matrix is inverted, a missing observation is one of weight zero, and an exact one needs no care.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from fastscan.kernels.algebra import (
    downdate,
    eliminate,
    eye,
    mirrored,
    multiply_add,
    select,
    solve,
    stage,
    symmetric,
    zeros,
)
from fastscan.kernels.algebra.stages import hadamard, matmul, matmul_add, symmetrized
from fastscan.kernels.algebra.systems import blocked
from fastscan.kernels.lgssm import at_once
from fastscan.kernels.lgssm.joseph import repaired


class Gaussian(NamedTuple):
    """N(mean, cov), with mean (D, 1) and cov (D, D)."""

    mean: Any
    cov: Any


class Transition(NamedTuple):
    """z' = F z + c + w, w ~ N(0, Q): F (D, D), c (D, 1), Q (D, D)."""

    F: Any
    c: Any
    Q: Any


class Decorrelated(NamedTuple):
    """A linear observation ``y = H z + v`` in coordinates whose noise is independent: multiplied by ``change`` (n, n).

    H (n, D) is the multiplied one, noise (n, 1) its variances.
    """

    H: Any
    noise: Any
    change: Any


class Innovations(NamedTuple):
    """Innovations that conditioning met, a row per scalar observation: all before its own update.

    Attributes:
        rows: ``h M`` of every mean matrix M.
        values: the weighted innovation of every mean matrix.
        variance: s, of the observation times its weight's root.
        inverse: 1 / s, or 0 for an observation that was passed over.
        gains: what a mean moves by per innovation, as rows.
    """

    rows: tuple
    values: tuple
    variance: Any
    inverse: Any
    gains: Any


def push(transition: Transition, means: tuple, cov) -> tuple[tuple, Any]:
    """Moves moments by one transition. Only the last of ``means`` is moved by c; the others are coefficients.

    Returns:
        The means and the covariance ``F P F' + Q``.
    """
    F, c, Q = transition
    *coefficients, mean = means
    on = tuple(matmul(F, M) for M in coefficients)
    return (*on, matmul_add(F, mean, c)), moved(matmul(F, mirrored(cov)), F, Q)


def moved(FP, F, Q):
    """Computes F P F' + Q."""
    if blocked(FP, F, Q):  # a library's product, of which each entry is computed once
        return _moved_at_once(FP, F, Q)
    return symmetrized(matmul_add(FP, F.T, Q))


def condition(
    cov,
    means: tuple,
    values: tuple,
    H,
    weight,
    noise,
    *,
    exact: bool = True,
    rolled: bool = False,
    learning: bool = True,
    by_rows: bool = False,
) -> tuple[Any, tuple, Innovations]:
    """Conditions a Gaussian on scalar observations, one row of H at a time.

    Row k says ``weight_k values_k = weight_k h_k z + v``, v ~ N(0, weight_k noise_k): ``weight`` is 1 for an
    observation, 0 for a missing one, and with ``noise`` 1 it is a precision. For weights other than 0 and 1, ``values``
    holds the product already.

    The covariance gets the Joseph form's accuracy from a second update (see `joseph`). That needs the first one to be symmetric
    to the last bit, as the product of a column with itself is.

    An observation without noise of what is known already, up to rounding, says nothing: it is passed over.

    Args:
        cov: P (D, D).
        means: matrices with D rows; a state's mean, or that and the coefficients of what it depends on.
        values: for each of ``means``, what is observed of it, (n, columns); None for zeros.
        H: (n, D).
        weight: (n, 1).
        noise: (n, 1), non-negative.
        exact: whether a noise may be zero.
        rolled: see `Stacked.over_rows`; for many rows.
        learning: whether `Innovations.rows` are wanted, or left out.
        by_rows: whether to take one after another also what could be taken at once.

    Returns:
        The covariance, the means, and the `Innovations`.
    """
    given = cov, means, values, H, weight, noise
    in_order = functools.partial(_condition_by_rows, *given, exact=exact, rolled=rolled, learning=learning)
    if by_rows or learning or not exact or not at_once.conditions(cov, H, weight, noise):
        return in_order()

    def otherwise() -> tuple[Any, tuple, tuple]:
        cov, means, (_, *seen) = in_order()
        return cov, means, tuple(seen)

    innovations = [_innovation(y, H, M, weight) for y, M in zip(values, means, strict=True)]
    cov, means, seen = at_once.condition(cov, means, innovations, H, weight, noise, otherwise=otherwise)
    return cov, means, Innovations((), *seen)


def _condition_by_rows(
    cov, means: tuple, values: tuple, H, weight, noise, *, exact: bool, rolled: bool, learning: bool
) -> tuple[Any, tuple, Innovations]:
    """Does as `condition`, one observation after another; those whose variance is at most a floor are passed over."""
    floor = _rounding(H, cov.diagonal(), noise) if exact else zeros(H, H.shape[0], 1)

    def observe(carry, row):
        cov, means = carry
        values, h, weight, noise, floor = row
        a = _project(cov, h)
        variance, inverse = _variance_and_inverse(h, a, weight, noise, floor)
        k = hadamard(a, inverse)
        rows = tuple(matmul(h, M) for M in means) if learning else ()
        if learning:
            innovations = tuple(_innovation_of_row(y, r, weight) for y, r in zip(values, rows, strict=True))
        else:
            innovations = tuple(_innovation(y, h, M, weight) for y, M in zip(values, means, strict=True))
        means = tuple(matmul_add(k, u, M) for M, u in zip(means, innovations, strict=True))
        cov = _downdate(cov, a, weight, inverse)
        cov = repaired(cov, h, k, noise, weight)
        return (cov, means), Innovations(rows, innovations, variance, inverse, k.T)

    rows = (values, H, weight, noise, floor)
    (cov, means), innovations = type(H).over_rows(observe, (mirrored(cov), means), rows, rolled=rolled)
    return cov, means, innovations


def inform(cov, means: tuple, eta, J) -> tuple[Any, tuple, Innovations, Any]:
    """Conditions a Gaussian on what is known of it in information form, ``exp(eta' z - z' J z / 2)``.

    J = L diag(d) L' are D scalar observations of precision d; their innovation variances are at least 1.

    Args:
        cov: P (D, D).
        means: matrices with D rows. The last is the mean of z; the others are coefficients.
        eta: (D, 1).
        J: (D, D), positive semi-definite.

    Returns:
        As `condition`, and the observations' weights d (D, 1).
    """
    L, d, z = eliminate(J, eta)
    values = (*(None for _ in means[1:]), z)
    return *condition(cov, means, values, L.T, d, d.constant(np.ones(d.shape)), exact=False, rolled=True), d


def decorrelate(H, noise_cov) -> Decorrelated:
    """Multiplies ``y = H z + v``, v ~ N(0, noise_cov), by the inverse of L in noise_cov = L D L'.

    The multiplication is by a unit triangular matrix, so densities stay as they are; noise_cov may be singular.
    One that is indefinite makes NaN noise.
    """
    _, noise, change = eliminate(noise_cov, eye(noise_cov, noise_cov.shape[0]), checked=True)
    return Decorrelated(change @ H, noise, change)


def smoothing_gain(filtered_cov, F, Q) -> tuple[Any, Any]:
    """Computes G and L of ``z_t | z_{t+1}, past ~ N(m + G (z_{t+1} - F m - c), L)``, with m the filtered mean.

    The predicted covariance S is factorised, not Q: how well that goes does not depend on the units of the states, and hardly
    on their order. A direction of z_{t+1} that the others' predictions leave nothing of, up to rounding, is passed over.

    Args:
        filtered_cov: P at t, (D, D).
        F: the transition to t+1, (D, D).
        Q: the covariance of its noise, (D, D).
    """
    given = filtered_cov, F, Q
    if blocked(*given):
        return at_once.smoothing_gain(*given, otherwise=functools.partial(_gain_by_rows, *given, pivoted=True))
    return _gain_by_rows(*given)


def _gain_by_rows(cov, F, Q, *, pivoted: bool = False) -> tuple[Any, Any]:
    FP = matmul(F, mirrored(cov))
    whitened, inverses, gain = solve(moved(FP, F, Q), FP, pivoted=pivoted)
    return gain.T, symmetrized(_less_squares(mirrored(cov), whitened, inverses))


def log_density(innovations: Innovations, weight, size):
    """Computes the log density of what was observed, from the last mean's innovations: (1, 1).

    An observation that was passed over adds nothing if it is what is known already, up to half of the digits of its ``size``
    (n, 1), which the squares of all that its innovation is a sum of add up to; else the data are impossible: -inf.
    """
    return _log_density(innovations.values[-1], innovations.variance, innovations.inverse, weight, size)


def square_root(cov):
    """Computes a lower triangular S with S S' = cov; cov may be singular."""
    if blocked(cov):
        return at_once.square_root(cov, otherwise=functools.partial(_root_by_rows, cov))
    return _root_by_rows(cov)


def _root_by_rows(cov):
    L, d, _ = eliminate(cov, zeros(cov, cov.shape[0], 1))
    return L * type(d).elementwise(lambda x: select(x > 0, x * lax.rsqrt(select(x > 0, x, 1)), 0), d).T


@stage
def _project(cov, h):
    return cov @ h.T


@stage
def _variance_and_inverse(h, a, weight, noise, floor):
    s = _variance(h, a, weight, noise)
    return s, type(s).elementwise(lambda s, f: select(s <= f, 0, 1 / select(s <= f, 1, s)), s, floor)


def _variance(h, a, weight, noise):
    """Adds the variance of what is known of an observation, which rounding alone makes negative, and that of its noise."""
    return type(a).elementwise(lambda v: jnp.maximum(v, jnp.zeros_like(v)), (h * weight) @ a) + noise


@stage
def _rounding(H, variances, noise):
    """Returns innovation variances that may be nothing but rounding: those of observations without noise; 0 for others."""
    eps = 4 * H.shape[1] * float(np.finfo(noise.dtype).eps)
    return type(noise).elementwise(lambda v, r: select(r > 0, 0, v * eps), (H * H) @ variances, noise)


@stage
def _innovation(y, h, mean, weight):
    return _less(y, h @ mean, weight)


@stage
def _innovation_of_row(y, row, weight):
    return _less(y, row, weight)


def _less(y, row, weight):
    return y - row * weight if y is not None else row * (weight * -1.0)


@stage
def _moved_at_once(FP, F, Q):
    return symmetric(multiply_add(FP, F.T, Q))


@stage
def _downdate(cov, a, weight, inverse):
    return downdate(cov, a, weight * inverse)


@stage
def _less_squares(cov, rows, weights):
    """Computes ``cov - rows' diag(weights) rows``."""
    return multiply_add(rows.T, rows * (weights * -1.0), cov)


@stage
def _log_density(values, variance, inverse, weight, size):
    eps, impossible = float(np.finfo(values.dtype).eps), np.asarray(-np.inf, values.dtype)

    def constant(e, s, inverse, w, size):
        known = select(e * e > eps * size, impossible, 0)
        return select(w > 0, select(inverse == 0, known, -0.5 * jnp.log(2 * np.pi * select(inverse == 0, 1, s))), 0)

    constants = type(variance).elementwise(constant, values, variance, inverse, weight, size)
    return weight.T @ constants - values.T @ (values * inverse) * 0.5
