"""Learning linear-Gaussian models: their constraints, and the two steps of EM.

Shumway & Stoffer (1982, doi:10.1111/j.1467-9892.1982.tb00349.x), with missing observations replaced by what the state and the
observations beside them say of these.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastscan.kernels.arrays import matmul
from fastscan.kernels.lgssm.smoothing import SmootherSums, added_up
from fastscan.learn.constraints import FROZEN, POSITIVE, POSITIVE_DEFINITE, REAL
from fastscan.learn.floors import Floor, floor, raised
from fastscan.learn.learnable import Learnable
from fastscan.learn.lgssm.expectations import smoothed_sums
from fastscan.learn.lgssm.regression import Regression, fit
from fastscan.learn.priors import MatrixNormalInverseWishart, NormalInverseWishart
from fastscan.lgssm import lgssm_marginal_loglik, lgssm_smoother
from fastscan.transforms import any_missing
from fastscan.types import Regimes

_COEFFICIENTS = ("weights", "input_weights", "bias")


class Statistics(NamedTuple):
    """Regressions of a model: of the first state on 1, of z_{t+1} on (z_t, u_{t+1}, 1) unless T is 1, of y_t on (z_t, u_t,
    1).
    """

    initial: Regression
    dynamics: Regression | None
    emissions: Regression


def log_likelihoods(params: Any, emissions: jax.Array, inputs: jax.Array | None, missing: bool | None = None) -> jax.Array:
    """Computes log p(y_1..T) of every sequence (B,)."""
    return lgssm_marginal_loglik(params, emissions, inputs, missing=missing)


def constraints(params: Any) -> Any:
    """Returns constraints: covariances are positive definite, variances positive, the rest is real."""
    _refuse_regimes(params)
    m = jnp.shape(params.emissions.weights)[-2]
    full = jnp.shape(params.emissions.cov)[-2:] == (m, m)
    real = jax.tree.map(lambda _: REAL, params)
    return real._replace(
        initial=real.initial._replace(cov=POSITIVE_DEFINITE),
        dynamics=real.dynamics._replace(cov=POSITIVE_DEFINITE),
        emissions=real.emissions._replace(cov=POSITIVE_DEFINITE if full else POSITIVE),
    )


def expect(
    params: Any,
    emissions: jax.Array,
    inputs: jax.Array | None,
    missing: bool | None = None,
    starts: jax.Array | None = None,
) -> tuple[Statistics, jax.Array]:
    """Takes the E-step.

    Args:
        params: a model that does not vary in time.
        emissions: (B, T, m); NaN entries are missing.
        inputs: (B, T, U) or None.
        missing: whether entries are, None if that is not known.
        starts: bool (B, T), True where one of many sequences begins; None if each is one.

    Returns:
        Statistics, and log-likelihoods (B,).

    Raises:
        ValueError: parameters that vary.
    """
    _check_static(params)
    if missing is False and starts is None:
        loglik, mean, sums = smoothed_sums(params, emissions, inputs)
        emitted = _emitted(params.emissions, mean, (sums.first + sums.after).sum(0), emissions, inputs)
    else:
        posterior = lgssm_smoother(params, emissions, inputs, missing=missing, central=True, starts=starts)
        loglik, mean, cov = posterior.marginal_loglik, posterior.smoothed_means, posterior.smoothed_covariances
        sums = added_up(cov, posterior.smoothed_cross_covariances, starts)
        emitted = _emitted_with_gaps(params.emissions, mean, cov, emissions, inputs, missing)
    sums = SmootherSums(*(x.sum(0) for x in sums))
    arrivals = None if mean.shape[1] == 1 else _arrivals(params.dynamics, mean, sums, inputs, starts)
    return Statistics(_first(params.initial, mean, sums, starts), arrivals, emitted), loglik


def maximise(
    params: Any, statistics: Statistics, constraints: Any, priors: dict[str, Any], floors: dict[str, Floor]
) -> tuple[Any, dict[str, Any]]:
    """Takes the M-step: regressions, in which frozen coefficients and covariances keep their values.

    Returns:
        Parameters; and which regressors were redundant, and which channels' noise is at its floor.
    """
    notes = {"floored": {}, "redundant": {}}
    for name, of in statistics._asdict().items():
        if of is not None:
            given = getattr(constraints, name), priors.get(name), floors.get(name)
            part, noted = _regress(name, getattr(params, name), of, *given)
            params = params._replace(**{name: part})
            notes = {kind: known | noted.get(kind, {}) for kind, known in notes.items()}
    return params, notes


def log_prior(params: Any, given: dict[str, Any]) -> jax.Array:
    """Sum the log densities of all parts with a prior."""
    total = jnp.zeros((), params.initial.mean.dtype)
    for name, prior in given.items():
        part = getattr(params, name)
        cov = jnp.diag(part.cov) if part.cov.ndim == 1 else part.cov
        location = part.mean if name == "initial" else _coefficients(part, _present(part))
        total += prior.log_density(location, cov)
    return total


def floors(params: Any, emissions: jax.Array) -> dict[str, Floor]:
    """Finds the floor of the emissions' noise. States have no scale of their own, and their noise may vanish: inference takes
    that.
    """
    _check_static(params)
    return {"emissions": floor(emissions, params.emissions.cov)}


def check(params: Any, emissions: jax.Array, inputs: Any) -> None:
    """Checks that parameters are the same for all sequences. `lgssm_marginal_loglik` checks the rest."""
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


def _refuse_regimes(params: Any) -> None:
    """Refuses regimes, whose numbers are no parameters to learn."""
    for part, fields in params._asdict().items():
        for name, x in fields._asdict().items():
            if isinstance(x, Regimes):
                raise TypeError(
                    f"{part}.{name}: fastscan.Regimes given, wanted an array. Learn the values by the gradient of "
                    "lgssm_marginal_loglik, or from states that lgssm_posterior_sample draws."
                )


def _shapes(params: Any) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Returns for every parameter the shape that it has if it does not vary, and the parameter itself."""
    _refuse_regimes(params)
    D, m = jnp.shape(params.dynamics.weights)[-1], jnp.shape(params.emissions.weights)[-2]
    shapes = {"initial.mean": ((D,), params.initial.mean), "initial.cov": ((D, D), params.initial.cov)}
    for part, n in (("dynamics", D), ("emissions", m)):
        x = getattr(params, part)
        U = 0 if x.input_weights is None else jnp.shape(x.input_weights)[-1]
        sizes = {"weights": (n, D), "bias": (n,), "input_weights": (n, U), "cov": (n, n)}
        shapes |= {f"{part}.{name}": (size, getattr(x, name)) for name, size in sizes.items()}
    return shapes


def _regressors(part: Any, mean: jax.Array, inputs: jax.Array | None, start: int) -> tuple[jax.Array, jax.Array]:
    """Computes E[x] (B, T, n), the state, the inputs from ``start`` on and a one, as far as the part has coefficients; and W
    E[x].
    """
    B, T, _ = mean.shape
    x = [mean]
    if part.input_weights is not None and inputs is not None:
        x.append(jnp.broadcast_to(inputs[:, start:], (B, T, inputs.shape[-1])))
    if part.bias is not None:
        x.append(jnp.ones((B, T, 1), mean.dtype))
    x = jnp.concatenate(x, -1)
    return x, jnp.einsum("mn,btn->btm", _coefficients(part, _COEFFICIENTS), x, precision="highest")


def _first(part: Any, mean: jax.Array, sums: SmootherSums, starts: jax.Array | None) -> Regression:
    """Makes the regression of the first states, r = z_1 - m."""
    D = mean.shape[-1]
    one, nothing = jnp.ones((len(mean), 1, 1), mean.dtype), jnp.zeros((D, D), mean.dtype)
    known = jnp.eye(D, dtype=mean.dtype)[None], sums.first[None], nothing
    if starts is None:
        return Regression(one, mean[:, :1] - part.mean, *known)
    there = starts[..., None].astype(mean.dtype)
    return Regression(there, jnp.where(starts[..., None], mean - part.mean, 0), *known, there)


def _arrivals(part: Any, mean: jax.Array, sums: SmootherSums, inputs: jax.Array | None, starts: jax.Array | None) -> Regression:
    """Makes the regression of the transitions, r = z_{t+1} - F z_t - B u_{t+1} - b."""
    x, expected = _regressors(part, mean[:, :-1], inputs, 1)
    r, there = mean[:, 1:] - expected, None
    if starts is not None:
        here = ~starts[:, 1:, None]
        x, r, there = jnp.where(here, x, 0), jnp.where(here, r, 0), here.astype(mean.dtype)
    one = jnp.eye(mean.shape[-1], dtype=mean.dtype)
    both = jnp.block([[sums.before, sums.cross], [sums.cross.T, sums.after]])
    loadings = jnp.concatenate([-part.weights, one], 1)
    return Regression(x, r, loadings[None], both[None], jnp.zeros_like(one), there)


def _emitted(part: Any, mean: jax.Array, cov: jax.Array, y: jax.Array, inputs: jax.Array | None) -> Regression:
    """Makes the regression of the emissions, r = y - H z - D u - d; with ``cov`` (D, D) summed over all states."""
    x, expected = _regressors(part, mean, inputs, 0)
    m = y.shape[-1]
    return Regression(x, y - expected, -part.weights[None], cov[None], jnp.zeros((m, m), part.cov.dtype))


def _emitted_with_gaps(
    part: Any, mean: jax.Array, cov: jax.Array, y: jax.Array, inputs: jax.Array | None, missing: bool | None
) -> Regression:
    """Makes the same with gaps, with ``cov`` (B, T, D, D).

    Given the state, r is N(K (y - W x), (I - K) R), where K looks at what is seen only, which it keeps.
    """
    x, expected = _regressors(part, mean, inputs, 0)
    R = jnp.diag(part.cov) if part.cov.ndim == 1 else part.cov

    def with_gaps() -> tuple[jax.Array, jax.Array, jax.Array]:
        seen = ~jnp.isnan(y)
        unseen = ~seen[..., :, None] & ~seen[..., None, :]
        r = jnp.where(seen, y - expected, 0)
        if part.cov.ndim == 1:
            return r, -jnp.where(seen[..., None], part.weights, 0), jnp.where(unseen, R, 0).sum((0, 1))
        one = jnp.eye(len(R), dtype=R.dtype)
        both = seen[..., :, None] & seen[..., None, :]
        K = jnp.linalg.solve(jnp.where(both, R, one), jnp.where(seen[..., :, None], R, 0)).mT
        K = jnp.where(seen[..., :, None], one, jnp.where(seen[..., None, :], K, 0))
        r = jnp.einsum("btij,btj->bti", K, r, precision="highest")
        return r, -matmul(K, part.weights), jnp.where(unseen, matmul(one - K, R), 0).sum((0, 1))

    def complete() -> tuple[jax.Array, jax.Array, jax.Array]:
        return y - expected, jnp.broadcast_to(-part.weights, (*y.shape[:2], *part.weights.shape)), jnp.zeros_like(R)

    r, loadings, rest = with_gaps() if missing else lax.cond(any_missing(~jnp.isnan(y)), with_gaps, complete)
    flat = loadings.reshape(-1, *loadings.shape[2:]), cov.reshape(-1, *cov.shape[2:])
    return Regression(x, r, *flat, rest)


def _present(part: Any) -> tuple[str, ...]:
    return tuple(name for name in ("mean", *_COEFFICIENTS) if getattr(part, name, None) is not None)


def _coefficients(part: Any, names: tuple[str, ...]) -> jax.Array:
    """Returns W, made of those of these coefficients that the part has."""
    columns = [getattr(part, name).astype(part.cov.dtype) for name in names if getattr(part, name) is not None]
    return jnp.concatenate([x if x.ndim == 2 else x[:, None] for x in columns], 1)


def _regress(
    name: str, part: Any, of: Regression, constraints: Any, given: Any, least: Floor | None
) -> tuple[Any, dict[str, Any]]:
    """Returns the part with its most likely coefficients and covariance, given those that are frozen."""
    names = _present(part)
    widths = [getattr(part, x).shape[1] if getattr(part, x).ndim == 2 else 1 for x in names]
    free = np.flatnonzero(np.repeat([getattr(constraints, x) is not FROZEN for x in names], widths))
    W, cuts = _coefficients(part, names), np.cumsum(widths)[:-1].tolist()
    prior = None if given is None else given.of_regression()
    states = 0 if "mean" in names else widths[0]
    change, rr, redundant = fit(
        of, states, free, bool(len(free)) and names[-1] == "bias" and free[-1] == W.shape[1] - 1, prior, W
    )
    found = dict(zip(names, jnp.split(W + change, cuts, 1), strict=True))
    found = {x: y if getattr(part, x).ndim == 2 else y[:, 0] for x, y in found.items()}
    noted = {"redundant": {}, "floored": {}}
    for x, mask in zip(names, jnp.split(redundant, cuts), strict=True):
        if getattr(constraints, x) is not FROZEN and mask.size:
            noted["redundant"][f"{name}.{x}"] = mask if getattr(part, x).ndim == 2 else mask[0]
    if constraints.cov is not FROZEN:
        count = of.count
        count += 0 if prior is None else prior.df + len(W) + W.shape[1] + 1
        cov = (jnp.diagonal(rr) if part.cov.ndim == 1 else rr) / count
        if least is not None:
            cov, noted["floored"][f"{name}.cov"] = raised(cov, least)
        found["cov"] = cov
    return part._replace(**found), noted


LGSSM = Learnable(
    log_likelihoods,
    constraints,
    expect,
    maximise,
    check,
    floors=floors,
    log_prior=log_prior,
    priors=(
        ("initial", (NormalInverseWishart,)),
        ("dynamics", (MatrixNormalInverseWishart,)),
        ("emissions", (MatrixNormalInverseWishart,)),
    ),
)
"""Linear-Gaussian models, with a `ParamsLGSSM` or dynamax's."""
