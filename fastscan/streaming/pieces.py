"""One block of a stream: filtered from the state before it, smoothed from the state after it, and differentiated."""

import functools
from typing import Any

import jax

from fastscan.kernels.arrays import as_lanes
from fastscan.kernels.lgssm import passes
from fastscan.kernels.lgssm.gaussian import Gaussian
from fastscan.lgssm import inference as lgssm_inference
from fastscan.lgssm import lgssm_filter
from fastscan.lgssm.problem import Given, prepare
from fastscan.types import GaussianState


@functools.partial(jax.jit, static_argnames=("missing", "implementation"))
def smooth_piece(
    params: Any,
    y: jax.Array,
    u: Any,
    state: GaussianState | None,
    after: GaussianState | None,
    missing: Any,
    implementation: Any,
) -> tuple[GaussianState, GaussianState | None]:
    """Computes smoothed moments of a block.

    Args:
        params: the model, which does not vary.
        y: (n, m).
        u: (n, U) or None.
        state: the filtered one before the block, or None for the first block.
        after: the smoothed one of the block's last step; None for the last block, whose is the filtered one.
        missing: whether entries are.
        implementation: as `fastscan.lgssm` has it.

    Returns:
        Moments (n, D) and (n, D, D), and those of the step before the block, None of the first.
    """
    model, emissions, sizes, how = prepare(Given(params, None, state), y, u, missing, implementation)
    _, moments = lgssm_inference.filter_states(model, emissions, how, False)
    filtered = Gaussian(moments.mean, moments.cov)
    kernels = lgssm_inference.kernels_of(how.plan, model, filtered)
    end = jax.tree.map(lambda x: x[:, -1:], filtered)
    if after is not None:
        end = Gaussian(after.mean[None, None, :, None], after.cov[None, None])
    if not kernels.g.shape[1]:
        return GaussianState(end.mean[0, ..., 0], end.cov[0]), None
    smoothed = passes.smooth_from(how.plan, kernels, as_lanes(end))
    mean, cov = (jax.numpy.concatenate([x[0], e[0]]) for x, e in zip(smoothed[:2], end, strict=True))
    before = None if state is None else GaussianState(mean[0, :, 0], cov[0])
    return GaussianState(mean[-sizes.T :, :, 0], cov[-sizes.T :]), before


@functools.partial(jax.jit, static_argnames=("missing", "implementation"))
def pull_piece(
    params: Any, y: jax.Array, u: Any, state: GaussianState | None, change: GaussianState, missing: Any, implementation: Any
) -> tuple[Any, GaussianState | None]:
    """Computes derivatives of all log-likelihoods from a block on, with respect to the parameters in the block, and to the
    state before it; from those with respect to its last state.
    """

    def piece(params: Any, state: GaussianState | None) -> tuple[jax.Array, GaussianState]:
        out = lgssm_filter(params, y, u, initial_state=state, missing=missing, implementation=implementation)
        return out.marginal_loglik, out.final_state

    value, pull = jax.vjp(piece, params, state)
    return pull((jax.numpy.ones_like(value[0]), change))
