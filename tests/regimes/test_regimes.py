"""Parameters of regimes: against the arrays (T, ...) that they stand for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan import (
    ParamsLGSSM,
    ParamsLGSSMDynamics,
    ParamsLGSSMEmissions,
    Regimes,
    lgssm_filter,
    lgssm_forecast,
    lgssm_joint_sample,
    lgssm_marginal_loglik,
    lgssm_posterior_predictive,
    lgssm_posterior_sample,
    lgssm_smoother,
)
from oracles.lgssm import assert_moments, close, random_params, textbook

U, KEY = 2, jax.random.key(0)
TOLERANCE = {"float32": 3e-4, "float64": 1e-9}


@functools.cache
def values(D, m, R, dtype="float64", diagonal=False):
    """Of R regimes: the fields of the dynamics and of the emissions."""
    r = np.random.default_rng(D)
    models = [random_params(k, D, m) for k in range(R)]
    dynamics, emissions = (
        {name: np.stack([getattr(getattr(p, part), name) for p in models]) for name in ("weights", "bias", "cov")}
        for part in ("dynamics", "emissions")
    )
    dynamics["input_weights"], emissions["input_weights"] = r.normal(size=(R, D, U)), r.normal(size=(R, m, U))
    if diagonal:
        emissions["cov"] = np.diagonal(emissions["cov"], axis1=1, axis2=2)
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), (dynamics, emissions))


def params(fields, of):
    """A model with ``of(values)`` in every field."""
    dynamics, emissions = ({name: of(x) for name, x in part.items()} for part in fields)
    D = fields[0]["weights"].shape[-1]
    first = jax.tree.map(lambda x: np.asarray(x, fields[0]["cov"].dtype), random_params(9, D, 1).initial)
    return ParamsLGSSM(first, ParamsLGSSMDynamics(**dynamics), ParamsLGSSMEmissions(**emissions))


def both(fields, index):
    """A model of regimes, and the same one written out."""
    return params(fields, lambda x: Regimes(x, index)), params(fields, lambda x: x[index])


def data(T, m, dtype="float64", B=None, gaps=False):
    r = np.random.default_rng(T)
    y, u = r.normal(size=(T, m) if B is None else (B, T, m)), r.normal(size=(T, U))
    if gaps:
        y[..., 1, :], y[..., -1, 0] = np.nan, np.nan
    return jnp.asarray(y, dtype), jnp.asarray(u, dtype)


def numbers(T, R, B=None):
    return np.random.default_rng(R).integers(0, R, T if B is None else (B, T)).astype(np.int32)


def same(found, wanted, tolerance):
    jax.tree.map(lambda a, b: close(a, b, tolerance), found, wanted)


def results(model, y, u, **options):
    sample = lgssm_posterior_sample(KEY, model, y, u, **options)
    return lgssm_smoother(model, y, u, per_step_loglik=True, **options), sample


SLOW = [
    ("chunked", 2, 3, 50, 3, "float32"),
    ("associative", 2, 3, 2, 3, "float64"),
    (None, 1, 1, 17, 3, "float64"),
    (None, 2, 3, 1, 3, "float64"),
    ("sequential", 5, 2, 17, 1, "float64"),
    ("sequential", 12, 2, 17, 3, "float64"),
    ("sequential", 20, 3, 17, 3, "float32"),
    ("associative", 2, 3, 17, 3, "float64"),
    ("pallas_interpret", 2, 3, 17, 3, "float64"),
]
CASES = [(None, 2, 3, 2, 1, "float64"), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]


@pytest.mark.parametrize("implementation, D, m, T, R, dtype", CASES)
def test_regimes_are_the_arrays_they_stand_for(implementation, D, m, T, R, dtype):
    fields, index, gaps = values(D, m, R, dtype, diagonal=D in (5, 20)), numbers(T, R), D == 2 and T > 2
    regimes, arrays = both(fields, index)
    y, u = data(T, m, dtype, gaps=gaps)
    options = {"implementation": implementation}
    same(results(regimes, y, u, **options), results(arrays, y, u, **options), TOLERANCE[dtype])

    def loglik(fields, y, of):
        return lgssm_marginal_loglik(params(fields, of), y, u, **options)

    found, wanted = (
        jax.value_and_grad(functools.partial(loglik, of=of), (0, 1))(fields, y)
        for of in (lambda x: Regimes(x, index), lambda x: x[index])
    )
    same(found, wanted, 10 * TOLERANCE[dtype])


def test_samples():
    regimes, arrays = both(values(2, 3, 3), numbers(17, 3))
    y, u = data(17, 3)
    same(lgssm_posterior_sample(KEY, regimes, y, u), lgssm_posterior_sample(KEY, arrays, y, u), 1e-9)
    same(lgssm_joint_sample(regimes, KEY, 17, u), lgssm_joint_sample(arrays, KEY, 17, u), 1e-9)


@pytest.mark.parametrize("own", [pytest.param(False, marks=pytest.mark.slow), True])
def test_batches(own):
    fields, index = values(2, 3, 3), numbers(17, 3, B=2 if own else None)
    regimes, arrays = both(fields, index)
    y, u = data(17, 3, B=2)
    if not own:
        same(results(regimes, y, u), results(arrays, y, u), 1e-9)
    grads = [
        jax.value_and_grad(lambda fields, of=of: lgssm_marginal_loglik(params(fields, of), y, u).sum())(fields)
        for of in (lambda x: Regimes(x, index), lambda x: x[index])
    ]
    same(*grads, 1e-8)


@pytest.mark.parametrize("implementation, D", [("sequential", 20), ("chunked", 5), ("pallas_interpret", 1)])
def test_textbook(implementation, D):
    """Against recursions that are not ours."""
    regimes, arrays = both(values(D, 2, 3), numbers(17, 3))
    y, u = data(17, 2)
    found = lgssm_smoother(regimes, y, u, implementation=implementation)
    assert_moments(found, textbook(jax.tree.map(np.asarray, arrays), y, u), "float64")


SLOWLY = [pytest.param(name, marks=pytest.mark.slow) for name in ("values", "emissions")]


@pytest.mark.parametrize("mapped", ["index", *SLOWLY])
def test_vmap_and_its_gradients(mapped):
    fields, index, (y, u) = values(2, 3, 3), numbers(17, 3), data(17, 3)
    several = jax.tree.map(lambda x: jnp.stack([x, 1.1 * x]), fields) if mapped == "values" else fields
    indices = numbers(17, 3, B=2) if mapped == "index" else index
    ys = jnp.stack([y, 2 * y]) if mapped == "emissions" else y
    axes = tuple(0 if mapped == name else None for name in ("values", "index", "emissions"))

    def run(of):
        def loglik(fields, index, y):
            return lgssm_marginal_loglik(params(fields, lambda x: of(x, index)), y, u)

        return jax.jit(jax.vmap(jax.value_and_grad(loglik), axes))(several, jnp.asarray(indices), ys)

    same(run(Regimes), run(lambda x, index: x[index]), 1e-8)


@pytest.mark.slow
def test_only_some_fields_are_regimes():
    """The others static or varying; and where H and R have each an index of its own, both are looked up."""
    fields, (y, u) = values(2, 3, 3), data(17, 3)
    index, other = numbers(17, 3), numbers(17, 3)[::-1]
    for chosen in ("weights", "cov", "input_weights"):
        made = []
        for of in (Regimes, lambda x, index: x[index]):
            dynamics, emissions = (
                {name: of(x, i) if name == chosen else x[0] if (name == "bias") == k else x[index] for name, x in part.items()}
                for k, (part, i) in enumerate(zip(fields, (index, other), strict=True))
            )
            first = params(fields, lambda x: x[0]).initial
            made.append(ParamsLGSSM(first, ParamsLGSSMDynamics(**dynamics), ParamsLGSSMEmissions(**emissions)))
        same(results(made[0], y, u), results(made[1], y, u), 1e-9)


def test_diagonal_noise_that_varies_stays_diagonal():
    fields = values(2, 3, 3)
    regimes, arrays = both(fields, numbers(17, 3))
    noise = np.random.default_rng(1).uniform(0.1, 1, (17, 3))
    y, u = data(17, 3)
    found, wanted = (lgssm_smoother(p._replace(emissions=p.emissions._replace(cov=noise)), y, u) for p in (regimes, arrays))
    same(found, wanted, 1e-9)


@pytest.mark.parametrize("length", [17, 16])
def test_departure_moves_the_index(length):
    fields, index, (y, u) = values(2, 3, 3), numbers(17, 3), data(17, 3)
    regimes, arrays = both(fields, index)
    departing = ParamsLGSSMDynamics(**{name: Regimes(x, index[:length]) for name, x in fields[0].items()})
    moved = ParamsLGSSMDynamics(**{name: x[index[:length]] for name, x in fields[0].items()})
    found = lgssm_filter(regimes._replace(dynamics=departing), y, u, timing="departure")
    same(found, lgssm_filter(arrays._replace(dynamics=moved), y, u, timing="departure"), 1e-9)


@pytest.mark.slow
def test_forecasts_and_predictions():
    regimes, arrays = both(values(2, 3, 3), numbers(17, 3))
    y, u = data(17, 3)
    same(lgssm_posterior_predictive(regimes, y, u), lgssm_posterior_predictive(arrays, y, u), 1e-9)
    ahead = [lgssm_forecast(p, y[:12], 5, u[:12], u[12:]) for p in (regimes, arrays)]
    same(*ahead, 1e-9)


@pytest.mark.slow
def test_samples_of_models_without_gaps_have_derivatives():
    fields, index, (y, u) = values(2, 3, 3, diagonal=True), numbers(9, 3), data(9, 3)

    def sample(fields, of):
        return (lgssm_posterior_sample(KEY, params(fields, of), y, u, missing=False) ** 2).sum()

    found, wanted = (
        jax.jit(jax.grad(functools.partial(sample, of=of)))(fields) for of in (lambda x: Regimes(x, index), lambda x: x[index])
    )
    same(found, wanted, 1e-8)
