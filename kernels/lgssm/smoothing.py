"""Backward passes over a filtered series, as recurrences whose time runs from the end to the beginning.

Row t holds the filtered state at t and the transition to t+1; its step takes what is known of z_{t+1} to z_t.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp

from fastscan.kernels.affine.maps import AffineMap
from fastscan.kernels.algebra import eye, mirrored, multiply_add, stage, zeros
from fastscan.kernels.algebra.stages import matmul, matmul_add
from fastscan.kernels.lgssm.gaussian import (
    Gaussian,
    Transition,
    moved,
    push,
    smoothing_gain,
    square_root,
)
from fastscan.kernels.lgssm.kalman import KALMAN_FILTER, FilterInputs, observe
from fastscan.kernels.scan.recurrence import Recurrence, Seam, merge
from fastscan.kernels.scan.seams import gaussians_apart


class SmootherInputs(NamedTuple):
    """One row of the backward pass: the filtered state, and the transition that leaves it (see `recurrence.merge`)."""

    filtered: Gaussian
    transition: Transition


class Smoothed(NamedTuple):
    """Moments of z_t given everything, and ``cross``, E[z_t z_{t+1}'] or the covariance of the two (D, D)."""

    mean: Any
    cov: Any
    cross: Any


class SmootherSums(NamedTuple):
    """Smoothed covariances (B or 1, D, D): of z_1; and added up over time, those of all states but the last, of all but the
    first, and of every state and the next.
    """

    first: Any
    before: Any
    after: Any
    cross: Any


def added_up(cov: Any, cross: Any, starts: Any = None) -> SmootherSums:
    """Adds up smoothed covariances (B or 1, T, D, D), and those with the next state (B or 1, T - 1, D, D): of all sequences
    that ``starts`` marks (B, T), or of one.
    """
    if starts is None:
        return SmootherSums(cov[:, 0], cov[:, :-1].sum(1), cov[:, 1:].sum(1), cross.sum(1))
    begins = starts[..., None, None]
    before, after, cross = (jnp.where(begins[:, 1:], 0, x).sum(1) for x in (cov[:, :-1], cov[:, 1:], cross))
    return SmootherSums(jnp.where(begins, cov, 0).sum(1), before, after, cross)


class BackwardKernel(NamedTuple):
    """z at the beginning of a stretch, given z at its end and the past: N(G z + g, L)."""

    G: Any
    g: Any
    L: Any


def _kernel_identity(state: Gaussian) -> BackwardKernel:
    D = state.cov.shape[0]
    return BackwardKernel(eye(state.cov, D), zeros(state.mean, D, 1), mirrored(zeros(state.cov, D, D)))


def _kernel_combine(left: BackwardKernel, right: BackwardKernel) -> BackwardKernel:
    (G, g), L = push(Transition(*right), (left.G, left.g), left.L)
    return BackwardKernel(G, g, L)


def _kernel_enter(state: Gaussian, summary: BackwardKernel) -> Gaussian:
    (mean,), cov = push(Transition(*summary), (state.mean,), state.cov)
    return Gaussian(mean, cov)


def _gain(params: Transition, x: SmootherInputs) -> tuple[Any, Any, Any]:
    """Computes G, L and the predicted mean."""
    F, c, Q = merge(params, x.transition)
    return *smoothing_gain(x.filtered.cov, F, Q), matmul_add(F, x.filtered.mean, c)


def _smoother_append(params: Transition, summary: BackwardKernel, x: SmootherInputs) -> BackwardKernel:
    G, L, predicted = _gain(params, x)
    origin = zeros(predicted, *predicted.shape)
    return _kernel_combine(summary, BackwardKernel(G, _correct(x.filtered.mean, G, origin, predicted), L))


def kernel(filtered: Gaussian, F: Any, c: Any, Q: Any) -> BackwardKernel:
    """Computes what the next state says of a filtered one, from the transition between them."""
    G, L = smoothing_gain(filtered.cov, F, Q)
    predicted = matmul_add(F, filtered.mean, c)
    return BackwardKernel(G, _correct(filtered.mean, G, zeros(predicted, *predicted.shape), predicted), L)


def covariance_back(G: Any, L: Any, cov: Any) -> tuple[Any, Any]:
    """Computes the covariance of z_t and z_{t+1}, and that of z_t, from that of z_{t+1}."""
    GP = matmul(G, mirrored(cov))
    return GP, moved(GP, G, L)


def _smoother_step(params: Transition, state: Gaussian, x: SmootherInputs, central: bool = False) -> tuple[Gaussian, Smoothed]:
    G, L, predicted = _gain(params, x)
    GP, cov = covariance_back(G, L, state.cov)
    mean = _correct(x.filtered.mean, G, state.mean, predicted)
    return Gaussian(mean, cov), Smoothed(mean, cov, GP if central else matmul_add(mean, state.mean.T, GP))


RTS_SMOOTHER = Recurrence(
    "rts_smoother",
    _kernel_identity,
    _smoother_append,
    _kernel_combine,
    _kernel_enter,
    _smoother_step,
    seam=Seam(gaussians_apart),
)
"""Rauch, Tung & Striebel's smoother: the conditional covariance L is kept apart, so covariances are sums of PSD terms."""

RTS_SMOOTHER_CENTRAL = RTS_SMOOTHER._replace(name="rts_smoother_central", step=functools.partial(_smoother_step, central=True))
"""The same, reporting cross-covariances in place of second moments."""


def _moments_step(_: tuple, state: Gaussian, x: BackwardKernel) -> tuple[Gaussian, Smoothed]:
    G, g, L = x
    mean = matmul_add(G, state.mean, g)
    GP, cov = covariance_back(G, L, state.cov)
    return Gaussian(mean, cov), Smoothed(mean, cov, matmul_add(mean, state.mean.T, GP))


BACKWARD_KERNELS = Recurrence(
    name="backward_kernels",
    identity=_kernel_identity,
    append=lambda _, summary, x: _kernel_combine(summary, x),
    combine=_kernel_combine,
    enter=_kernel_enter,
    step=_moments_step,
    seam=Seam(gaussians_apart),
)
"""Moments under kernels that are known, row by row."""


class SamplerInputs(NamedTuple):
    """One row of the filter, and what the sampler draws from it: standard normal ``noise`` (D, 1)."""

    filter: FilterInputs
    noise: Any


class SamplerParams(NamedTuple):
    """Parameters that are the same in every row of `FILTER_FOR_SAMPLING`; ``jitter`` (1, 1) is added to conditional
    variances.
    """

    filter: FilterInputs
    jitter: Any


class SamplerMap(NamedTuple):
    """How a sample's deviation from the filtered mean at t follows from that at t+1; and the filtered mean at t."""

    deviation: Any
    mean: Any


def _sampler_step(params: SamplerParams, state: Gaussian, x: SamplerInputs) -> tuple[Gaussian, SamplerMap]:
    row = merge(params.filter, x.filter)
    (mean,), cov = push(Transition(row.F, row.c, row.Q), (state.mean,), state.cov)
    after, _ = observe(Gaussian(mean, cov), row)
    G, L = smoothing_gain(state.cov, row.F, row.Q)
    root = square_root(L + eye(L, L.shape[0]) * params.jitter)
    shift = _correct(matmul(root, x.noise), G, after.mean, mean)
    return after, SamplerMap(AffineMap(G, shift), state.mean)


FILTER_FOR_SAMPLING = KALMAN_FILTER._replace(
    name="filter_for_sampling",
    append=lambda params, summary, x: KALMAN_FILTER.append(params.filter, summary, x.filter),
    step=_sampler_step,
)
"""The Kalman filter, reporting for every row what takes a sample at t+1 to one at t.

Samples are followed as deviations from the filtered means, which are smaller than states and so rounded less.
"""


@stage
def _correct(mean, gain, value, expected):
    return multiply_add(gain, value - expected, mean)
