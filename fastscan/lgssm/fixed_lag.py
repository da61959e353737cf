"""Fixed-lag smoothing of linear-Gaussian models: all windows at once, by kernels back over 1, 2, 4, ... steps."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from fastscan.given import ShapeError, count, emissions_array
from fastscan.kernels.arrays import matmul
from fastscan.kernels.lgssm.gaussian import Gaussian
from fastscan.kernels.lgssm.smoothing import BackwardKernel
from fastscan.kernels.ranges import ranged
from fastscan.lgssm import inference as lgssm_inference
from fastscan.lgssm.api import given_arrays
from fastscan.lgssm.problem import Given, prepare
from fastscan.types import GaussianState, ParamsLGSSM, PosteriorGSSMSmoothed


@ranged
def lgssm_fixed_lag_smoother(
    params: ParamsLGSSM,
    emissions: jax.typing.ArrayLike,
    lag: int,
    inputs: jax.typing.ArrayLike | None = None,
    *,
    implementation: str | None = None,
    missing: bool | None = None,
    initial_state: GaussianState | None = None,
) -> PosteriorGSSMSmoothed:
    """Computes means and covariances of every state z_t given y_1, ..., y_{t + lag}: what is known of it so many steps later.

    Args:
        params: the model; dynamax's own objects work too.
        emissions: (T, m); NaN entries are missing.
        lag: steps of the future that are seen, from 0, the filter, on. From T - 1 on it is the smoother.
        inputs: (T, U) or None.
        implementation: of the filter: None, or a name as in `fastscan.lgssm`.
        missing: as `lgssm_filter`.
        initial_state: as `lgssm_filter`.

    Returns:
        The log-likelihood, filtered moments, and the moments of z_t given y_1, ..., y_min(t + lag, T), as smoothed ones. The
        last ``lag`` of them have seen less; of a stream, the next piece tells more of them.

    Raises:
        TypeError: arrays of anything but numbers, parameters without a model's fields.
        ValueError: shapes that do not fit together, matrices that are not covariances, an unknown name of an option.
        RuntimeError: ``implementation="pallas"`` where kernels can't run.
    """
    lag = count("lag", lag, least=0)
    y: Any = emissions_array(emissions)
    if y.ndim == 3:
        raise ShapeError(f"emissions: shape {y.shape} given, wanted (T, m); take `jax.vmap` for a batch.")
    model, y, inputs, missing = given_arrays(params, y, inputs, missing, "arrival", None, initial_state)
    return _fixed_lag(model, y, inputs, lag, missing, implementation)


@functools.partial(jax.jit, static_argnames=("lag", "missing", "implementation"))
def _fixed_lag(given: Given, emissions: Any, inputs: Any, lag: int, missing: Any, implementation: Any) -> PosteriorGSSMSmoothed:
    model, emissions, sizes, how = prepare(given, emissions, inputs, missing, implementation)
    loglik, moments = lgssm_inference.filter_states(model, emissions, how, False)
    filtered = Gaussian(moments.mean, moments.cov)
    kernels = lgssm_inference.kernels_of(how.plan, model, filtered)
    kernels, filtered = jax.tree.map(lambda x: x[0], (kernels, filtered))
    smoothed = _after(min(lag, len(filtered.mean) - 1), kernels, filtered)
    means = [x[..., 0] for x in (filtered.mean, smoothed.mean)]
    rows = means[0], filtered.cov, means[1], smoothed.cov
    return PosteriorGSSMSmoothed(loglik[0], *(x[-sizes.T :] for x in rows))


def _after(lag: int, kernels: BackwardKernel, filtered: Gaussian) -> Gaussian:
    """Computes the moments of every state given what was seen so many steps later: (T, ...), from kernels (T - 1, ...) and
    filtered moments.

    Kernels over 2 n steps are those over n, twice; past the end, nothing more is seen.
    """
    T, D, _ = filtered.mean.shape
    one, nothing = jnp.eye(D, dtype=filtered.mean.dtype), jnp.zeros((D, 1), filtered.mean.dtype)
    stay = BackwardKernel(one, nothing, jnp.zeros_like(one))

    def later(tree: Any, steps: int, end: Any) -> Any:
        """Returns every row's that is so many steps later; past the last, the end's."""
        return jax.tree.map(lambda x, e: jnp.concatenate([x[steps:], jnp.broadcast_to(e, (T, *e.shape))])[:T], tree, end)

    def joined(near: BackwardKernel, steps: int, far: BackwardKernel) -> BackwardKernel:
        """Joins kernels over so many steps to those that follow them."""
        far = later(far, steps, stay)
        mean, cov = _moved(near, Gaussian(far.g, far.L))
        return BackwardKernel(matmul(near.G, far.G), mean, cov)

    span, steps = later(kernels, 0, stay), 1
    whole, reach = later(jax.tree.map(lambda x: x[:0], kernels), 0, stay), 0
    while reach < lag:
        if (lag - reach) & steps:
            whole, reach = joined(whole, reach, span), reach + steps
        span, steps = joined(span, steps, span), 2 * steps
    return _moved(whole, later(filtered, lag, jax.tree.map(lambda x: x[-1], filtered)))


def _moved(kernel: BackwardKernel, state: Gaussian) -> Gaussian:
    G, g, L = kernel
    cov = matmul(matmul(G, state.cov), G.mT) + L
    return Gaussian(matmul(G, state.mean) + g, (cov + cov.mT) / 2)
