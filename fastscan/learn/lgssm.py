"""Learning linear-Gaussian models: their constraints, and the two steps of EM.

Shumway & Stoffer (1982, doi:10.1111/j.1467-9892.1982.tb00349.x), with missing observations replaced by what the state and the
observations beside them say of these.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastscan.learn.constraints import FROZEN, POSITIVE, POSITIVE_DEFINITE, REAL
from fastscan.learn.learnable import Learnable
from fastscan.lgssm import lgssm_marginal_loglik, lgssm_smoother
from fastscan.model import product
from fastscan.transforms import any_nan

_COEFFICIENTS = ("weights", "input_weights", "bias")


class Residuals(NamedTuple):
    """Expected products, summed over time and sequences, of regressors x and residuals r = y - W x; and how many were summed.

    Regressions on residuals lose less to rounding than those on y, the less the closer W is.
    """

    xx: jax.Array
    xr: jax.Array
    rr: jax.Array
    count: int


class Statistics(NamedTuple):
    """Of the first state on 1, of z_{t+1} on (z_t, u_{t+1}, 1) unless T is 1, of y_t on (z_t, u_t, 1)."""

    initial: Residuals
    dynamics: Residuals | None
    emissions: Residuals


def log_likelihoods(params: Any, emissions: jax.Array, inputs: jax.Array | None, missing: bool | None = None) -> jax.Array:
    """Log p(y_1..T) of every sequence (B,)."""
    return lgssm_marginal_loglik(params, emissions, inputs, missing=missing)


def constraints(params: Any) -> Any:
    """Covariances are positive definite, variances positive, the rest is real."""
    m = jnp.shape(params.emissions.weights)[-2]
    full = jnp.shape(params.emissions.cov)[-2:] == (m, m)
    real = jax.tree.map(lambda _: REAL, params)
    return real._replace(
        initial=real.initial._replace(cov=POSITIVE_DEFINITE),
        dynamics=real.dynamics._replace(cov=POSITIVE_DEFINITE),
        emissions=real.emissions._replace(cov=POSITIVE_DEFINITE if full else POSITIVE),
    )


def expect(
    params: Any, emissions: jax.Array, inputs: jax.Array | None, missing: bool | None = None
) -> tuple[Statistics, jax.Array]:
    """The E-step.

    Args:
        params: a model that does not vary in time.
        emissions: (B, T, m); NaN entries are missing.
        inputs: (B, T, U) or None.
        missing: whether entries are, None if that is not known.

    Returns:
        Statistics, and log-likelihoods (B,).

    Raises:
        ValueError: parameters that vary.
    """
    _check_static(params)
    posterior = lgssm_smoother(params, emissions, inputs, missing=missing, central=True)
    mean, cov = posterior.smoothed_means, posterior.smoothed_covariances
    B, T, _ = mean.shape
    one = jnp.ones((B, 1, 1), mean.dtype)
    initial = _residuals(one, mean[:, :1] - params.initial.mean)
    initial = initial._replace(rr=initial.rr + cov[:, 0].sum(0))
    arrivals = None if T == 1 else _arrivals(params.dynamics, mean, cov, posterior.smoothed_cross_covariances, inputs)
    emitted = _emitted(params.emissions, mean, cov, emissions, inputs, missing)
    return Statistics(initial, arrivals, emitted), posterior.marginal_loglik


def maximise(params: Any, statistics: Statistics, constraints: Any) -> Any:
    """The M-step: regressions, in which frozen coefficients and covariances keep their values."""
    dynamics = params.dynamics
    if statistics.dynamics is not None:
        dynamics = _regress(dynamics, _COEFFICIENTS, statistics.dynamics, constraints.dynamics)
    return params._replace(
        initial=_regress(params.initial, ("mean",), statistics.initial, constraints.initial),
        dynamics=dynamics,
        emissions=_regress(params.emissions, _COEFFICIENTS, statistics.emissions, constraints.emissions),
    )


def check(params: Any, emissions: jax.Array, inputs: Any) -> None:
    """Parameters are the same for all sequences. `lgssm_marginal_loglik` checks the rest."""
    del emissions, inputs
    for name, (alone, x) in _shapes(params).items():
        most = len(alone) + (not name.startswith("initial"))
        if x is not None and jnp.ndim(x) > most:
            raise ValueError(f"{name}: shape {jnp.shape(x)} given, wanted {alone}, which all sequences share.")


def _check_static(params: Any) -> None:
    for name, (alone, x) in _shapes(params).items():
        if x is not None and jnp.shape(x) != alone and not (name == "emissions.cov" and jnp.shape(x) == alone[:1]):
            raise ValueError(
                f"{name}: shape {jnp.shape(x)} given, wanted {alone}: EM wants parameters that do not vary. Take fit_sgd."
            )


def _shapes(params: Any) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Of every parameter the shape that it has if it does not vary, and itself."""
    D, m = jnp.shape(params.dynamics.weights)[-1], jnp.shape(params.emissions.weights)[-2]
    shapes = {"initial.mean": ((D,), params.initial.mean), "initial.cov": ((D, D), params.initial.cov)}
    for part, n in (("dynamics", D), ("emissions", m)):
        x = getattr(params, part)
        U = 0 if x.input_weights is None else jnp.shape(x.input_weights)[-1]
        sizes = {"weights": (n, D), "bias": (n,), "input_weights": (n, U), "cov": (n, n)}
        shapes |= {f"{part}.{name}": (size, getattr(x, name)) for name, size in sizes.items()}
    return shapes


def _sum_of_products(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum("bti,btj->ij", x, y, precision="highest")


def _residuals(x: jax.Array, r: jax.Array) -> Residuals:
    return Residuals(_sum_of_products(x, x), _sum_of_products(x, r), _sum_of_products(r, r), x.shape[0] * x.shape[1])


def _regressors(part: Any, mean: jax.Array, inputs: jax.Array | None, start: int) -> tuple[jax.Array, jax.Array]:
    """E[x] (B, T, n), the state, the inputs from ``start`` on and a one, as far as the part has coefficients; and W E[x]."""
    B, T, _ = mean.shape
    x = [mean]
    if part.input_weights is not None and inputs is not None:
        x.append(jnp.broadcast_to(inputs[:, start:], (B, T, inputs.shape[-1])))
    if part.bias is not None:
        x.append(jnp.ones((B, T, 1), mean.dtype))
    x = jnp.concatenate(x, -1)
    return x, jnp.einsum("mn,btn->btm", _coefficients(part, _COEFFICIENTS), x, precision="highest")


def _arrivals(part: Any, mean: jax.Array, cov: jax.Array, cross: Any, inputs: jax.Array | None) -> Residuals:
    """Of the transitions, r = z_{t+1} - F z_t - B u_{t+1} - b; ``cross`` are the covariances of z_t and z_{t+1}."""
    x, expected = _regressors(part, mean[:, :-1], inputs, 1)
    V, after, F = cov[:, :-1].sum((0, 1)), cov[:, 1:].sum((0, 1)), part.weights
    C = cross.sum((0, 1))
    of_state = C - product(V, F.T)
    sums = _with_covariance(_residuals(x, mean[:, 1:] - expected), V, of_state)
    return sums._replace(rr=sums.rr + after - product(F, C) - product(of_state.T, F.T))


def _emitted(
    part: Any, mean: jax.Array, cov: jax.Array, y: jax.Array, inputs: jax.Array | None, missing: bool | None
) -> Residuals:
    """Of the emissions, r = y - H z - D u - d."""
    x, expected = _regressors(part, mean, inputs, 0)
    V, H = cov.sum((0, 1)), part.weights

    def complete() -> Residuals:
        HV = product(H, V)
        sums = _with_covariance(_residuals(x, y - expected), V, -HV.T)
        return sums._replace(rr=sums.rr + product(HV, H.T))

    def with_gaps() -> Residuals:
        """Given the state, r is N(K (y - W x), (I - K) R), where K looks at what is seen only, which it keeps."""
        R = jnp.diag(part.cov) if jnp.ndim(part.cov) == 1 else part.cov
        seen = ~jnp.isnan(y)
        both = seen[..., :, None] & seen[..., None, :]
        K = jnp.linalg.solve(jnp.where(both, R, jnp.eye(len(R))), jnp.where(seen[..., :, None], R, 0)).mT
        K = jnp.where(seen[..., None, :], K, 0)
        r = jnp.einsum("btij,btj->bti", K, jnp.where(seen, y - expected, 0), precision="highest")
        KH = product(K, H)
        KHV = product(KH, cov)
        sums = _with_covariance(_residuals(x, r), V, -KHV.sum((0, 1)).T)
        unseen = product(jnp.eye(len(R)) - K, R)
        return sums._replace(rr=sums.rr + (product(KHV, KH.mT) + unseen).sum((0, 1)))

    if missing is not None:
        return with_gaps() if missing else complete()
    xx, xr, rr = lax.cond(any_nan(y), lambda: with_gaps()[:3], lambda: complete()[:3])
    return Residuals(xx, xr, rr, x.shape[0] * x.shape[1])


def _with_covariance(sums: Residuals, of_state: jax.Array, with_residual: jax.Array) -> Residuals:
    """With the covariances of the state, which is the first of x."""
    D = len(of_state)
    return sums._replace(xx=sums.xx.at[:D, :D].add(of_state), xr=sums.xr.at[:D].add(with_residual))


def _coefficients(part: Any, names: tuple[str, ...]) -> jax.Array:
    """W, of what the part has of these."""
    columns = [getattr(part, name).astype(part.cov.dtype) for name in names if getattr(part, name) is not None]
    return jnp.concatenate([x if x.ndim == 2 else x[:, None] for x in columns], 1)


def _regress(part: Any, names: tuple[str, ...], sums: Residuals, constraints: Any) -> Any:
    """The part with its most likely coefficients and covariance, given those that are frozen."""
    names = tuple(name for name in names if getattr(part, name) is not None)
    widths = [getattr(part, name).shape[1] if getattr(part, name).ndim == 2 else 1 for name in names]
    free = np.flatnonzero(np.repeat([getattr(constraints, name) is not FROZEN for name in names], widths))
    W, change = _coefficients(part, names), jnp.zeros_like(sums.xr.T)
    if len(free):
        change = change.at[:, free].set(jax.scipy.linalg.solve(sums.xx[np.ix_(free, free)], sums.xr[free], assume_a="pos").T)
    found = dict(zip(names, jnp.split(W + change, np.cumsum(widths)[:-1], 1), strict=True))
    found = {name: x if getattr(part, name).ndim == 2 else x[:, 0] for name, x in found.items()}
    if constraints.cov is not FROZEN:
        explained = product(change, sums.xr)
        cov = (sums.rr - explained - explained.T + product(product(change, sums.xx), change.T)) / sums.count
        cov = (cov + cov.T) / 2
        found["cov"] = jnp.diag(cov) if part.cov.ndim == 1 else cov
    return part._replace(**found)


LGSSM = Learnable(log_likelihoods, constraints, expect, maximise, check)
"""Linear-Gaussian models, with a `ParamsLGSSM` or dynamax's."""
