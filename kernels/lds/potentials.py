"""Chains of Gaussian potentials in natural parameters: linear dynamical systems whose pairs need be no conditional densities.

The pair potential of x_t = x and x_{t+1} = y is ``exp(-h1'x - x'J11 x / 2 + x'J12 y - y'J22 y / 2 + h2'y)``. Row t of a
recurrence holds it, and the node potential ``exp(r'y - y'R y / 2)`` of x_{t+1}; the recurrence's state is what all before says
of x_t. To eliminate a state is to invert the precision P of it given its neighbours, which the joint density's being one
makes positive definite; where it is indefinite, everything is NaN. A stretch of time is summarised by the pair potential
between its two ends. No such potential leaves others as they are, so that a summary says whether it is empty.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from fastscan.kernels.affine.maps import AffineMap
from fastscan.kernels.algebra import eliminate, eye, mirrored, stage, symmetric, zeros
from fastscan.kernels.algebra.stages import add, matmul, matmul_add, maximum, minimum, subtract, symmetrized, where
from fastscan.kernels.lgssm.gaussian import Gaussian
from fastscan.kernels.lgssm.smoothing import BackwardKernel
from fastscan.kernels.scan.recurrence import Hindsight, Recurrence, Seam, merge
from fastscan.kernels.scan.seams import gaussians_apart


class Potential(NamedTuple):
    """``exp(h'x - x'J x / 2)``: h (D, 1), J (D, D)."""

    h: Any
    J: Any


class PairInputs(NamedTuple):
    """A pair potential, and the node potential of its right-hand state.

    A field is None in the one of params and row that does not hold it (see `recurrence.merge`).
    """

    h1: Any = None
    J11: Any = None
    J12: Any = None
    J22: Any = None
    h2: Any = None
    r: Any = None
    R: Any = None


class PairSummary(NamedTuple):
    """The potential between the ends of a stretch; ``empty`` (1, 1) is 1 if there is no stretch, and else 0."""

    h1: Any
    J11: Any
    J12: Any
    J22: Any
    h2: Any
    empty: Any


class Eliminated(NamedTuple):
    """How x_t follows from x_{t+1} and what all before says, and what the density is multiplied by as x_t is integrated out."""

    kernel: BackwardKernel
    log_density: Any


class NormalRow(NamedTuple):
    """A row, and the standard normal ``noise`` (D, 1) that x_t is drawn by."""

    pair: PairInputs
    noise: Any


class Inverse(NamedTuple):
    """The inverse of a precision P = L diag(d) L': ``cov`` itself; ``root`` S, S S' = cov; ``log_det`` of P, (1, 1)."""

    cov: Any
    root: Any
    log_det: Any


def _identity(state: Potential) -> PairSummary:
    D = state.J.shape[0]
    none, nothing = zeros(state.h, D, 1), mirrored(zeros(state.J, D, D))
    return PairSummary(none, nothing, zeros(state.J, D, D), nothing, none, state.h.constant(np.ones((1, 1))))


def _append(params: PairInputs, summary: PairSummary, x: PairInputs) -> PairSummary:
    return _combine(summary, _summary(merge(params, x)))


def _summary(x: PairInputs) -> PairSummary:
    return PairSummary(x.h1, mirrored(x.J11), x.J12, mirrored(add(x.J22, x.R)), add(x.h2, x.r), x.h1.constant(np.zeros((1, 1))))


def _combine(left: PairSummary, right: PairSummary) -> PairSummary:
    """Integrates out the state in the middle."""
    one_is_empty = maximum(left.empty, right.empty)
    cov = invert(_regular(add(left.J22, right.J11), one_is_empty)).cov
    d = subtract(left.h2, right.h1)
    to_left, to_right = matmul(cov, left.J12.T), matmul(cov, right.J12)
    both = PairSummary(
        subtract(left.h1, matmul(to_left.T, d)),
        _subtract_symmetric(left.J11, matmul(left.J12, to_left)),
        matmul(left.J12, to_right),
        _subtract_symmetric(right.J22, matmul(right.J12.T, to_right)),
        matmul_add(to_right.T, d, right.h2),
        minimum(left.empty, right.empty),
    )
    found = PairSummary(*(where(left.empty, y, where(right.empty, x, z)) for x, y, z in zip(left, right, both, strict=True)))
    return found._replace(J11=mirrored(found.J11), J22=mirrored(found.J22))


def _enter(state: Potential, summary: PairSummary) -> Potential:
    cov = invert(_regular(add(state.J, summary.J11), summary.empty)).cov
    d, gain = subtract(state.h, summary.h1), matmul(cov, summary.J12)
    after = Potential(matmul_add(gain.T, d, summary.h2), _subtract_symmetric(summary.J22, matmul(summary.J12.T, gain)))
    return _unless_empty(summary, state, after)


def _eliminate(params: PairInputs, state: Potential, x: PairInputs) -> tuple[Potential, Eliminated, Any]:
    """Eliminates a state: returns the state after a row, what is reported, and the root of x_t's conditional covariance."""
    pair = merge(params, x)
    cov, root, log_det = invert(add(state.J, pair.J11))
    d, gain = subtract(state.h, pair.h1), matmul(cov, pair.J12)
    mean = matmul(cov, d)
    h, J = matmul_add(gain.T, d, add(pair.h2, pair.r)), _subtract_symmetric(add(pair.J22, pair.R), matmul(pair.J12.T, gain))
    return Potential(h, J), Eliminated(BackwardKernel(gain, mean, cov), _log_normalizer(d, mean, log_det)), root


def _step(params: PairInputs, state: Potential, x: PairInputs) -> tuple[Potential, Eliminated]:
    return _eliminate(params, state, x)[:2]


def _likelihood_step(params: PairInputs, state: Potential, x: PairInputs) -> tuple[Potential, Any]:
    after, out, _ = _eliminate(params, state, x)
    return after, out.log_density


def _sampler_step(params: PairInputs, state: Potential, x: NormalRow) -> tuple[Potential, AffineMap]:
    after, (kernel, _), root = _eliminate(params, state, x.pair)
    return after, AffineMap(kernel.G, matmul_add(root, x.noise, kernel.g))


def _read(summary: PairSummary) -> Potential:
    cov = invert(_regular(summary.J22, summary.empty)).cov
    gain = matmul(cov, summary.J12.T)
    return Potential(
        subtract(matmul(gain.T, summary.h2), summary.h1), _subtract_symmetric(summary.J11, matmul(summary.J12, gain))
    )


def _retreat(future: Potential, summary: PairSummary) -> Potential:
    known = _read(summary._replace(J22=add(summary.J22, future.J), h2=add(summary.h2, future.h)))
    return _unless_empty(summary, future, known)


def _unless_empty(summary: PairSummary, same: Potential, other: Potential) -> Potential:
    return Potential(where(summary.empty, same.h, other.h), mirrored(where(summary.empty, same.J, other.J)))


PAIR_FILTER = Recurrence("pair_filter", _identity, _append, _combine, _enter, _step, seam=Seam(gaussians_apart))
PAIR_HINDSIGHT = Hindsight(_read, _retreat)
PAIR_LIKELIHOOD = PAIR_FILTER._replace(name="pair_likelihood", step=_likelihood_step)
PAIR_SAMPLER = PAIR_FILTER._replace(
    name="pair_sampler", append=lambda params, summary, x: _append(params, summary, x.pair), step=_sampler_step
)


def moments(state: Potential, future: Potential | None = None) -> Gaussian:
    """Computes the state's distribution, given also what the ``future`` says of it."""
    h, J = state if future is None else (add(state.h, future.h), add(state.J, future.J))
    cov = invert(J).cov
    return Gaussian(matmul(cov, h), cov)


def integral(state: Potential) -> Any:
    """Computes the logarithm of the potential's integral, less D/2 log 2 pi, (1, 1)."""
    cov, _, log_det = invert(state.J)
    return _log_normalizer(state.h, matmul(cov, state.h), log_det)


def draw(state: Potential, noise: Any) -> Any:
    """Draws a state from standard normal ``noise`` (D, 1)."""
    cov, root, _ = invert(state.J)
    return matmul_add(root, noise, matmul(cov, state.h))


def invert(P: Any) -> Inverse:
    """Inverts a positive definite matrix; NaN if it is indefinite."""
    _, d, whitened = eliminate(mirrored(P), eye(P, P.shape[0]), checked=True)
    root = _root(whitened, d)
    return Inverse(_squared(root), root, _sum_of_logs(d))


@stage
def _root(whitened, d):
    return (whitened * type(d).elementwise(lax.rsqrt, d)).T


@stage
def _squared(root):
    return symmetric(root @ root.T)


@stage
def _sum_of_logs(d):
    return type(d).elementwise(jnp.log, d).T.reduce(jnp.add)


@stage
def _log_normalizer(d, mean, log_det):
    return (d.T @ mean - log_det) * 0.5


def _subtract_symmetric(a, b):
    """Subtracts symmetric matrices."""
    return mirrored(symmetrized(subtract(a, b)))


def _regular(P, empty):
    """Returns the identity where there is nothing to invert: what is not taken must have a derivative, too."""
    return mirrored(where(empty, mirrored(eye(P, P.shape[0])), P))
