"""Functions of t of large models: against the arrays (T, ...) that they stand for."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan import (
    Regimes,
    functions,
    lgssm_filter,
    lgssm_forecast,
    lgssm_joint_sample,
    lgssm_marginal_loglik,
    lgssm_posterior_predictive,
    lgssm_posterior_sample,
    lgssm_smoother,
)
from fastscan.kernels.functions import traced
from fastscan.kernels.lgssm import in_blocks
from fastscan.kernels.tables import Computed
from fastscan.lgssm import api
from fastscan.lgssm.timing import plain_params
from oracles.lgssm import assert_moments, close, random_params, textbook
from programs.arrays_made import large_arrays

R, KEY = 3, jax.random.key(0)
NAMES = (("dynamics", "weights"), ("dynamics", "cov"), ("emissions", "weights"))


@pytest.fixture(autouse=True)
def however_short(monkeypatch):
    """Rows are computed of series too short for it to pay, too."""
    monkeypatch.setattr(functions, "SMALLER", 0)


def weight(values, k):
    return 1 - 0.1 * (k % 2).astype(values.dtype)


def of_time(values, z):
    """No mere look-up, which would become `Regimes`."""
    return lambda t: values[z[t]] * weight(values, z[t])


def arrays(values, z):
    return values[z] * weight(values, z)[:, None, None]


@functools.cache
def model(D, m, diagonal=True):
    """The values of R regimes, and all else."""
    several = [random_params(k, D, m) for k in range(R)]
    values = tuple(jnp.stack([getattr(getattr(p, part), name) for p in several]) for part, name in NAMES)
    rest = jax.tree.map(jnp.asarray, several[0])
    noise = jnp.diagonal(rest.emissions.cov) if diagonal else rest.emissions.cov
    return values, rest._replace(emissions=rest.emissions._replace(cov=noise))


def params(rest, values, z, of):
    F, Q, H = (of(x, z) for x in values)
    return rest._replace(dynamics=rest.dynamics._replace(weights=F, cov=Q), emissions=rest.emissions._replace(weights=H))


def data(T, m, B=None, gaps=False):
    r = np.random.default_rng(T)
    z, y = jnp.asarray(r.integers(0, R, T)), r.normal(size=(T, m) if B is None else (B, T, m))
    if gaps:
        y[..., 1, :], y[..., -1, 0] = np.nan, np.nan
    return z, jnp.asarray(y)


def same(found, wanted, tolerance=1e-9):
    jax.tree.map(lambda a, b: close(a, b, tolerance), found, wanted)


def moments(made, y, **options):
    return lgssm_smoother(made, y, per_step_loglik=True, **options)


def samples(made, y, **options):
    return lgssm_posterior_sample(KEY, made, y, **options)


def joint(made, y, **options):
    return lgssm_joint_sample(made, KEY, len(y), **options)


def both(function, D, m, T, diagonal=True, gaps=False, **options):
    (values, rest), (z, y) = model(D, m, diagonal), data(T, m, gaps=gaps)
    given = plain_params(params(rest, values, z, of_time), T)
    assert all(isinstance(getattr(getattr(given, part), name), Computed) for part, name in NAMES)
    return [function(params(rest, values, z, of), y, **options) for of in (of_time, arrays)]


SLOW = [
    (samples, None, 12, 17, False, True),
    (moments, "associative", 9, 2, True, False),
    (moments, None, 20, 50, True, True),
    (moments, "chunked", 12, 50, True, True),
    (moments, "sequential", 9, 17, False, False),
    (joint, "chunked", 9, 50, True, False),
    (lgssm_posterior_predictive, None, 9, 17, False, False),
    (lambda made, y, **options: lgssm_forecast(made, y[:-3], 3, **options), None, 9, 17, False, False),
    (lgssm_marginal_loglik, "pallas_interpret", 9, 17, True, False),
]
CASES = [
    (moments, "sequential", 9, 17, True, False),
    (samples, None, 9, 50, True, False),
    (joint, None, 9, 17, True, False),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW),
]


@pytest.mark.parametrize("function, implementation, D, T, diagonal, gaps", CASES)
def test_functions_are_the_arrays_they_stand_for(function, implementation, D, T, diagonal, gaps):
    same(*both(function, D, 2, T, diagonal, gaps, implementation=implementation))


def gradients(values, y, rest, z, of, **options):
    """Of what the functions close over."""

    def loglik(values, y):
        return lgssm_marginal_loglik(params(rest, values, z, of), y, **options).sum()

    return jax.value_and_grad(loglik, (0, 1))(values, y)


@pytest.mark.parametrize(
    "implementation, D, B, gaps",
    [
        ("sequential", 9, None, True),
        *(pytest.param(*x, marks=pytest.mark.slow) for x in (("chunked", 9, 2, False), (None, 20, 2, True))),
    ],
)
def test_gradients(implementation, D, B, gaps):
    (values, rest), (z, y) = model(D, 2), data(17, 2, B, gaps)
    found, wanted = (gradients(values, y, rest, z, of, implementation=implementation) for of in (of_time, arrays))
    same(found, wanted, 1e-8)


@pytest.mark.slow
def test_gradients_of_samples():
    (values, rest), (z, y) = model(9, 2), data(9, 2)

    def sample(values, of):
        return (samples(params(rest, values, z, of), y, missing=False) ** 2).sum()

    same(*(jax.jit(jax.grad(functools.partial(sample, of=of)))(values) for of in (of_time, arrays)), 1e-8)


@pytest.mark.parametrize(
    "mapped", ["index", *(pytest.param(x, marks=pytest.mark.slow) for x in ("values", "emissions", "first"))]
)
def test_vmap_and_jit(mapped):
    (values, rest), (z, y) = model(9, 2), data(17, 2)
    several = {
        "values": jax.tree.map(lambda x: jnp.stack([x, 1.1 * x]), values),
        "index": jnp.stack([z, (z + 1) % R]),
        "emissions": jnp.stack([y, 2 * y]),
        "first": jnp.stack([rest.initial.cov, 2 * rest.initial.cov]),
    }
    given = {"values": values, "index": z, "emissions": y, "first": rest.initial.cov}
    axes = [0 if name == mapped else None for name in given]

    def run(of):
        def one(values, z, y, cov):
            made = rest._replace(initial=rest.initial._replace(cov=cov))
            if mapped == "index":
                return gradients(values, y, made, z, of)
            return moments(params(made, values, z, of), y)

        return jax.jit(jax.vmap(one, axes))(*(given | {mapped: several[mapped]}).values())

    same(run(of_time), run(arrays), 1e-8)


@pytest.mark.parametrize("length", [17, pytest.param(16, marks=pytest.mark.slow)])
def test_departure_moves_rows(length):
    (values, rest), (z, y) = model(9, 2), data(17, 2)
    F, Q, H = (arrays(x, z) for x in values)
    moved = rest._replace(
        dynamics=rest.dynamics._replace(weights=F[:length], cov=Q[:length]), emissions=rest.emissions._replace(weights=H)
    )
    found = lgssm_filter(params(rest, values, z, of_time), y, timing="departure")
    same(found, lgssm_filter(moved, y, timing="departure"))


@pytest.mark.parametrize("one", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_one_function_alone(one):
    """Beside matrices that do not vary, which may settle."""
    (values, rest), (z, y) = model(9, 2), data(80, 2)

    def run(of):
        given = (of(x, z) if k == one else x[0] for k, x in enumerate(values))
        return lgssm_filter(params(rest, tuple(given), z, lambda x, _: x), y)

    same(run(of_time), run(arrays))


@pytest.mark.slow
def test_textbook():
    """Against recursions that are not ours; in a batch whose sequences have covariances of their own."""
    (values, rest), (z, y) = model(20, 2), data(17, 2, B=2)
    first = rest.initial._replace(cov=jnp.stack([rest.initial.cov, 2 * rest.initial.cov]))
    found = lgssm_smoother(params(rest._replace(initial=first), values, z, of_time), y)
    for b in range(2):
        alone = params(rest._replace(initial=first._replace(cov=first.cov[b])), values, z, arrays)
        wanted = textbook(jax.tree.map(np.asarray, alone), y[b])
        assert_moments(jax.tree.map(lambda x, b=b: x[b], found), wanted, "float64")


LONG = 1000


@pytest.mark.parametrize("D", [9, 20])
@pytest.mark.parametrize("function", [lgssm_marginal_loglik, samples, joint, "gradient"])
def test_nothing_with_a_matrix_a_step(function, D, monkeypatch):
    monkeypatch.undo()  # as it is for those who call
    monkeypatch.setattr(in_blocks, "KEPT_BYTES", 0)
    jax.clear_caches()
    (values, rest), (z, y) = model(D, 4), data(LONG, 4)
    options = {} if function is joint else {"missing": False}

    def run(values, z, y, of=of_time, implementation="sequential"):
        if function == "gradient":
            return gradients(values, y, rest, z, of, implementation=implementation, **options)
        return function(params(rest, values, z, of), y, implementation=implementation, **options)

    entries = LONG * 4 * D
    assert not large_arrays(run, values, z, y, entries=entries)
    assert large_arrays(functools.partial(run, of=arrays), values, z, y, entries=entries)
    if function is lgssm_marginal_loglik:
        assert not large_arrays(functools.partial(run, implementation="chunked"), values, z, y, entries=entries)
    mapped = jax.vmap(run, (None, 0, None))
    assert not large_arrays(mapped, values, jnp.stack([z, z]), y, entries=2 * entries)
    if function is not joint:
        assert not large_arrays(run, values, z, jnp.stack([y, y]), entries=2 * entries)


@pytest.mark.parametrize("function", [lgssm_filter, lgssm_smoother])
def test_moments_are_all_there_is(function):
    (values, rest), (z, y) = model(9, 4), data(LONG, 4)

    def run(values, z, y):
        return function(params(rest, values, z, of_time), y)

    assert not large_arrays(run, values, z, y, entries=LONG * 4 * 9, by=("gather", "dynamic_slice"))


def test_a_function_written_anew_compiles_nothing_anew():
    (values, rest), (z, y) = model(9, 2), data(17, 2)
    counted = api._filter._cache_size
    first, before = lgssm_filter(params(rest, values, z, of_time), y), counted()
    again = lgssm_filter(params(rest, values, z, of_time), y)
    assert counted() == before
    same(first, again, 0)
    lgssm_filter(params(rest, values, z, lambda x, z: lambda t: 0.5 * x[z[t]] + 0.5 * x[z[t]]), y)
    assert counted() == before + 1

    def softened(values, z):
        return lambda t: jax.nn.softplus(values[z[t]])

    keys = [traced(softened(values[0], z), jnp.int32(0))[0] for _ in range(2)]
    assert keys[0] == keys[1]
    assert hash(keys[0]) == hash(keys[1])


@pytest.mark.parametrize(
    "other",
    [
        lambda x, t: 2 * x[t],
        lambda x, t: -3 * x[t],
        lambda x, t: 3.0 * x[t] + 0.0 * t,
        lambda x, t: 3 * x[t].T,
        lambda x, t: 3 * x[t + 1],
        lambda x, t: jnp.where(t < 1, 3 * x[t], x[t]),
        lambda x, t: jax.lax.fori_loop(0, 3, lambda _, total: total + x[t], 0 * x[t]),
    ],
)
def test_other_functions_are_others(other):
    x, t = jnp.ones((R, 2, 2)), jnp.int32(0)
    assert traced(lambda t: 3 * x[t], t)[0] == traced(lambda t: 3 * x[t], t)[0]
    assert traced(lambda t: 3 * x[t], t)[0] != traced(lambda t: other(x, t), t)[0]
    assert traced(lambda t: other(x, t), t)[0] == traced(lambda t: other(x, t), t)[0]


def test_indefinite_rows_make_results_nan():
    (values, rest), (z, y) = model(9, 2), data(17, 2)
    F, Q, H = values
    wrong = jnp.concatenate([Q, -Q[:1]])
    found, unread = (lgssm_filter(params(rest, (F, wrong, H), z.at[k].set(3), of_time), y).filtered_covariances for k in (5, 0))
    np.testing.assert_array_equal(jnp.isnan(found).any((1, 2)), np.arange(17) >= 5)
    assert not jnp.isnan(unread).any()


def test_a_table_that_is_too_short_is_noticed():
    values, rest = model(9, 2)
    short, right = (jnp.zeros(n, int).at[-1].set(1) for n in (16, 17))
    with pytest.warns(UserWarning, match=r"dynamics.weights: .* out of bounds for some t in 0 to 16.*timing=\"departure\""):
        plain_params(rest._replace(dynamics=rest.dynamics._replace(weights=of_time(values[0], short))), 17)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for z in (right, jnp.zeros(17, int)):
            plain_params(params(rest, values, z, of_time), 17)


def test_what_stays_a_table(monkeypatch):
    """Small models, and functions of arrays about as large as the table."""
    monkeypatch.undo()
    (values, rest), (z, _) = model(9, 2), data(17, 2)
    small, (zs, _) = model(8, 2), data(LONG, 2)
    given = [
        plain_params(params(small[1], small[0], zs, of_time), LONG),
        plain_params(params(rest, tuple(x[z] for x in values), jnp.arange(17), of_time), 17),
        plain_params(params(rest, values, z[:1], of_time), 1),
    ]
    for made in given:
        for part, name in NAMES:
            assert isinstance(getattr(getattr(made, part), name), jax.Array)
    ragged = rest._replace(dynamics=rest.dynamics._replace(cov=of_time(jnp.ones((R, 9, 10)), zs)))
    with pytest.raises(ValueError, match=r"dynamics.cov: shape \(1000, 9, 10\) given, wanted \(9, 9\) or \(1000, 9, 9\)"):
        lgssm_filter(ragged, jnp.ones((LONG, 2)))


@pytest.mark.parametrize("shift", [0, -3, 2])
def test_a_look_up_becomes_regimes(shift):
    """Numbers are those that indexing reads: from the end if they are negative, and no further than a table's ends."""
    (values, rest), (z, y) = model(9, 2), data(17, 2)
    given = [lambda t, x=x: x[z[t] + shift] for x in values[:2]]
    made = rest._replace(dynamics=rest.dynamics._replace(weights=given[0], cov=given[1]))
    for name in ("weights", "cov"):
        assert isinstance(getattr(plain_params(made, 17).dynamics, name), Regimes)
    numbers = np.clip(np.where(z + shift < 0, z + shift + R, z + shift), 0, R - 1)
    wanted = made._replace(dynamics=made.dynamics._replace(weights=values[0][numbers], cov=values[1][numbers]))
    same(lgssm_filter(made, y), lgssm_filter(wanted, y))


@pytest.mark.parametrize(
    "function",
    [
        lambda values, z: lambda t: values[0][z[t]].T,
        lambda values, z: lambda t: values[0][z[t]] + values[1][z[t]],
        lambda values, z: lambda t: jnp.concatenate([values[0], values[0]], 1)[z[t], :9],
        lambda values, z: lambda t: jnp.concatenate([values[0], values[0]], 1)[z[t], 9:],
        lambda values, z: lambda t: jnp.where(t < 5, values[0][z[t]], values[0][0]),
    ],
)
def test_other_functions_of_a_table_are_no_look_up(function):
    (values, rest), (z, y) = model(9, 2), data(17, 2)
    of = function(tuple(0.5 * x for x in values), z)
    made, wanted = (
        rest._replace(dynamics=rest.dynamics._replace(weights=x, cov=values[1][0])) for x in (of, jax.vmap(of)(jnp.arange(17)))
    )
    assert isinstance(plain_params(made, 17).dynamics.weights, Computed)
    same(lgssm_filter(made, y), lgssm_filter(wanted, y))
