"""The same work by other packages, each as its users call it; None where it is not installed or has no such function."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastscan.profiling.peers.loops import numba_smoother


def smoothers(params: Any, emissions: np.ndarray) -> dict[str, Callable[[], Any] | None]:
    """Makes calls that smooth one series: Numba's and dynamax's in the series' dtype, statsmodels' in float64.

    Args:
        params: a `ParamsLGSSM`, without biases and inputs; dynamics may vary in time.
        emissions: (T, m).
    """
    F, Q, H, R = (np.asarray(x) for x in (*params.dynamics[::3], *params.emissions[::3]))
    F, Q = (x[None] if x.ndim == 2 else x for x in (F, Q))
    loop = numba_smoother()
    given = F, Q, H, R, np.asarray(params.initial.mean), np.asarray(params.initial.cov), emissions
    return {
        "Numba": None if loop is None else lambda: loop(*given),
        "statsmodels": _statsmodels(*given),
        "dynamax": _dynamax(params, emissions),
    }


def _statsmodels(F, Q, H, R, mean, cov, y) -> Callable[[], Any] | None:
    try:
        from statsmodels.tsa.statespace.kalman_smoother import KalmanSmoother
    except ImportError:
        return None
    m, D = H.shape
    smoother = KalmanSmoother(k_endog=m, k_states=D, k_posdef=D)
    # its transition t leads to t + 1, ours to t
    F, Q = (np.asarray(np.concatenate([x[1:], x[:1]]) if len(x) > 1 else x, np.float64).transpose(1, 2, 0) for x in (F, Q))
    smoother.bind(np.asarray(y, np.float64))
    smoother["design"], smoother["obs_cov"] = np.asarray(H, np.float64), np.asarray(R, np.float64)
    smoother["transition"], smoother["state_cov"], smoother["selection"] = F, Q, np.eye(D)
    smoother.initialize_known(np.asarray(mean, np.float64), np.asarray(cov, np.float64))
    return smoother.smooth


def _dynamax(params: Any, emissions: np.ndarray) -> Callable[[], Any] | None:
    try:
        from dynamax.linear_gaussian_ssm import lgssm_smoother
    except ImportError:
        return None
    compiled = jax.jit(lgssm_smoother)
    return lambda: jax.block_until_ready(compiled(params, jnp.asarray(emissions)))


def log_likelihood_gradient(params: Any, emissions: np.ndarray) -> Callable[[], Any] | None:
    """Makes a call of dynamax's log-likelihood and its gradient."""
    try:
        from dynamax.linear_gaussian_ssm import lgssm_filter
    except ImportError:
        return None
    compiled = jax.jit(jax.value_and_grad(lambda params: lgssm_filter(params, jnp.asarray(emissions)).marginal_loglik))
    return lambda: jax.block_until_ready(compiled(params))


def hidden_markov(what: str, initial: np.ndarray, A: np.ndarray, log_likelihoods: np.ndarray) -> dict[str, Callable | None]:
    """Makes calls of an HMM's function, "posterior_mode", "smoother" or "posterior_sample": hmmlearn's C++ in float64, which
    has the first two, and dynamax's sequential code.
    """
    calls: dict[str, Callable | None] = {"hmmlearn": None, "dynamax": None}
    try:
        from hmmlearn import _hmmc  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError:
        pass
    else:
        weights = np.asarray(initial, np.float64), np.asarray(A, np.float64)
        ll = np.asarray(log_likelihoods, np.float64)
        likelihood = np.exp(ll - ll.max(1, keepdims=True))

        def both_ways():
            _, forward, scaling = _hmmc.forward_scaling(*weights, likelihood)
            backward = _hmmc.backward_scaling(*weights, likelihood, scaling)
            return forward * backward

        calls["hmmlearn"] = {"posterior_mode": lambda: _hmmc.viterbi(*weights, ll), "smoother": both_ways}.get(what)
    try:
        from dynamax.hidden_markov_model import inference
    except ImportError:
        return calls
    given = initial, A, log_likelihoods
    key = (jax.random.key(0),) if what == "posterior_sample" else ()
    compiled = jax.jit(getattr(inference, f"hmm_{what}"))
    calls["dynamax"] = lambda: jax.block_until_ready(compiled(*key, *given))
    return calls
