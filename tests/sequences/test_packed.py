"""Many sequences on one time axis: every function does what it does with each by itself."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fastscan as fs
from fastscan.learn import GAUSSIAN, HMM, LGSSM, GaussianEmissions, ParamsHMM, fit_em
from oracles.hmm import random_model
from oracles.lgssm import random_params, simulate

LENGTHS = [1, 7, 1, 16, 2, 33, 1]
D, M, K = 3, 2, 3
WAYS = [None, "sequential", "chunked:4", "pallas_interpret"]


def panel(seed=0, m=M, missing=True):
    """Sequences of these lengths, some entries missing."""
    r = np.random.default_rng(seed)
    sequences = [r.normal(size=(n, m)) for n in LENGTHS]
    if missing:
        sequences[1][2, 0] = sequences[3][5:7] = sequences[5][0] = np.nan
    return sequences


def each(function, sequences, *more):
    """What a function makes of every sequence, with fields one after the other and log-likelihoods added."""
    return [function(s, *x) for s, *x in zip(sequences, *more, strict=True)]


def cat(results, name):
    return np.concatenate([np.asarray(getattr(x, name)) for x in results])


def rows(x, starts):
    """Those of a series of transitions that lie within sequences."""
    return np.asarray(x)[~np.asarray(starts)[1:]]


def varied(params, T, kind, seed=0):
    """A model whose dynamics vary in one of the ways there are, and what of it sequence i has from step a on."""
    r = np.random.default_rng(seed)
    F, Q = 0.5 * r.normal(size=(T, D, D)), np.stack([np.eye(D) * x for x in r.uniform(0.2, 1, T)])
    index = r.integers(0, 2, T)

    def dynamics(part):
        if kind == "arrays":
            return params.dynamics._replace(weights=F[part], cov=Q[part])
        if kind == "regimes":
            return params.dynamics._replace(weights=fs.Regimes(F[:2], index[part]))
        return params.dynamics

    return [params._replace(dynamics=dynamics(slice(a, b))) for a, b in pieces()], params._replace(
        dynamics=dynamics(slice(None))
    )


def pieces():
    return list(itertools.pairwise(np.cumsum([0, *LENGTHS])))


def test_packing_and_its_inverse():
    sequences = panel()
    packed, starts = fs.pack_sequences(sequences)
    assert packed.shape == (sum(LENGTHS), M)
    assert starts.dtype == bool
    assert np.flatnonzero(starts).tolist() == [a for a, _ in pieces()]
    for found, wanted in zip(fs.unpack_sequences({"y": packed}, starts), sequences, strict=True):
        np.testing.assert_array_equal(found["y"], wanted)
    (alone,) = fs.unpack_sequences(packed[:3], np.zeros(3, bool))
    assert alone.shape == (3, M)
    symbols, _ = fs.pack_sequences([[1, 2], [3]])
    assert symbols.tolist() == [1, 2, 3]
    traced, _ = jax.jit(lambda x: fs.pack_sequences([x, x[:2]]))(packed[:3])
    assert traced.shape == (5, M)


@pytest.mark.parametrize("implementation", WAYS)
@pytest.mark.parametrize("kind", ["static", "arrays", "regimes"])
def test_linear_gaussian_models(kind, implementation):
    sequences = panel()
    packed, starts = fs.pack_sequences(sequences)
    models, model = varied(random_params(0, D, M), len(packed), kind)
    options = {"implementation": implementation}
    wanted = each(lambda y, p: fs.lgssm_smoother(p, y), sequences, models)
    filtered = fs.lgssm_filter(model, packed, starts=starts, **options)
    found = fs.lgssm_smoother(model, packed, starts=starts, **options)
    loglik = fs.lgssm_marginal_loglik(model, packed, starts=starts, **options)
    for x in (filtered.marginal_loglik, found.marginal_loglik, loglik):
        np.testing.assert_allclose(x, sum(w.marginal_loglik for w in wanted), rtol=1e-10)
    for name in ("filtered_means", "filtered_covariances", "smoothed_means", "smoothed_covariances"):
        np.testing.assert_allclose(getattr(found, name), cat(wanted, name), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(filtered.filtered_means, cat(wanted, "filtered_means"), rtol=1e-7, atol=1e-9)
    cross = rows(found.smoothed_cross_covariances, starts)
    np.testing.assert_allclose(cross, cat(wanted, "smoothed_cross_covariances"), rtol=1e-7, atol=1e-9)
    central = fs.lgssm_smoother(model, packed, starts=starts, central=True, **options).smoothed_cross_covariances
    np.testing.assert_allclose(np.asarray(central)[np.asarray(starts)[1:]], 0, atol=1e-12)


def test_inputs_act_within_sequences_alone():
    r = np.random.default_rng(0)
    sequences, inputs = panel(), [r.normal(size=(n, 2)) for n in LENGTHS]
    params = random_params(0, D, M)
    params = params._replace(
        dynamics=params.dynamics._replace(input_weights=r.normal(size=(D, 2))),
        emissions=params.emissions._replace(input_weights=r.normal(size=(M, 2))),
    )
    wanted = each(lambda y, u: fs.lgssm_filter(params, y, u), sequences, inputs)
    found = fs.lgssm_filter(
        params, *(fs.pack_sequences(x)[0] for x in (sequences, inputs)), starts=fs.pack_sequences(inputs)[1]
    )
    np.testing.assert_allclose(found.filtered_means, cat(wanted, "filtered_means"), rtol=1e-9)


def test_inputs_at_a_beginning_are_not_read():
    """As entry 0 of one sequence is not: covariates with a lag have none there."""
    params, y = random_params(0, D, M), np.random.default_rng(0).normal(size=(6, M))
    params = params._replace(dynamics=params.dynamics._replace(input_weights=np.ones((D, 1))))
    u = np.where(np.arange(6)[:, None] % 3 == 0, np.nan, 1.0)
    wanted = sum(fs.lgssm_marginal_loglik(params, y[a : a + 3], u[a : a + 3]) for a in (0, 3))
    np.testing.assert_allclose(fs.lgssm_marginal_loglik(params, y, u, starts=np.arange(6) % 3 == 0), wanted, rtol=1e-10)


def test_numbers_of_no_regime_stay_such():
    params, y = random_params(0, D, M), np.zeros((6, M))
    starts = np.arange(6) == 3

    def loglik(index):
        dynamics = params.dynamics._replace(weights=fs.Regimes(np.zeros((2, D, D)), index))
        return fs.lgssm_marginal_loglik(params._replace(dynamics=dynamics), y, starts=starts)

    assert np.isfinite(jax.jit(loglik)(jnp.array([0, 0, 1, 9, 1, 1])))  # not read where a sequence begins
    assert np.isnan(jax.jit(loglik)(jnp.array([0, 0, 1, 0, 2, 1])))
    assert np.isnan(jax.jit(loglik)(jnp.array([0, 0, 1, 0, 7, 1])))


@pytest.mark.parametrize("kind", ["static", "arrays", "regimes"])
def test_gradients(kind):
    """With respect to everything, the first state's distribution among it, and mapped."""
    sequences = panel()
    packed, starts = fs.pack_sequences(sequences)
    models, model = varied(random_params(0, D, M), len(packed), kind)
    initial = model.initial

    def together(initial, H, y):
        return fs.lgssm_marginal_loglik(
            model._replace(initial=initial, emissions=model.emissions._replace(weights=H)), y, starts=starts
        )

    def apart(initial, H, y):
        total = 0
        for (a, b), p in zip(pieces(), models, strict=True):
            p = p._replace(initial=initial, emissions=p.emissions._replace(weights=H))
            total += fs.lgssm_marginal_loglik(p, y[a:b])
        return total

    given = initial, model.emissions.weights, jnp.nan_to_num(packed)
    got, wanted = (jax.grad(f, (0, 1, 2))(*given) for f in (together, apart))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), got, wanted)


def test_samples_of_sequences_are_independent():
    """The first states of sequences have the moments of their posteriors, and no correlation with what was before."""
    params = random_params(1, 1, 1)
    packed, starts = fs.pack_sequences([np.ones((2, 1)), np.ones((3, 1))])
    keys = jax.random.split(jax.random.key(0), 4000)
    draws = jax.vmap(lambda k: fs.lgssm_posterior_sample(k, params, packed, starts=starts))(keys)[..., 0]
    posterior = fs.lgssm_smoother(params, packed, starts=starts)
    np.testing.assert_allclose(draws.mean(0), posterior.smoothed_means[:, 0], atol=0.08)
    correlations = np.corrcoef(draws.T)
    assert np.abs(correlations[:2, 2:]).max() < 0.06
    assert np.abs(correlations[2, 3]) > 0.1


def test_batches_and_vmap():
    packed, starts = fs.pack_sequences(panel())
    other = jnp.roll(starts, 3)
    params = random_params(0, D, M)
    both, marks = jnp.stack([packed, packed[::-1]]), jnp.stack([starts, other])
    found = fs.lgssm_smoother(params, both, starts=marks)
    mapped = jax.vmap(lambda y, s: fs.lgssm_smoother(params, y, starts=s))(both, marks)
    alone = fs.lgssm_smoother(params, both[1], starts=other)
    for name in ("marginal_loglik", "smoothed_means", "smoothed_covariances"):
        np.testing.assert_allclose(getattr(found, name), getattr(mapped, name), rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(getattr(found, name)[1], getattr(alone, name), rtol=1e-8, atol=1e-10)
    shared = fs.lgssm_filter(params, both, starts=starts)
    np.testing.assert_allclose(shared.marginal_loglik[0], found.marginal_loglik[0], rtol=1e-10)


@pytest.mark.parametrize("implementation", WAYS)
@pytest.mark.parametrize("log_weights", [False, True])
@pytest.mark.parametrize("varying", [False, True])
def test_hidden_markov_models(varying, log_weights, implementation):
    T = sum(LENGTHS)
    initial, A, ll = random_model(0, T, K, varying=varying)
    ll = np.asarray(ll).copy()
    ll[4] = np.nan
    sequences = [ll[a:b] for a, b in pieces()]
    matrices = [A[a : b - 1] if varying else A for a, b in pieces()]
    _, starts = fs.pack_sequences(sequences)
    given = (np.log(initial), np.log(A)) if log_weights else (initial, A)
    options = {"implementation": implementation, "starts": starts, "log_weights": log_weights}
    wanted = each(lambda x, a: fs.hmm_smoother(initial, a, x), sequences, matrices)
    found = fs.hmm_smoother(*given, ll, **options)
    filtered = fs.hmm_filter(*given, ll, **options)
    loglik = fs.hmm_marginal_loglik(*given, ll, **options)
    for x in (found.marginal_loglik, filtered.marginal_loglik, loglik):
        np.testing.assert_allclose(x, sum(w.marginal_loglik for w in wanted), rtol=1e-10)
    for name in ("filtered_probs", "predicted_probs", "smoothed_probs"):
        np.testing.assert_allclose(getattr(found, name), cat(wanted, name), rtol=1e-8, atol=1e-12)
    if varying:
        np.testing.assert_allclose(rows(found.trans_probs, starts), cat(wanted, "trans_probs"), rtol=1e-8, atol=1e-12)
        np.testing.assert_array_equal(np.asarray(found.trans_probs)[np.asarray(starts)[1:]], 0)
    else:
        np.testing.assert_allclose(found.trans_probs, sum(w.trans_probs for w in wanted), rtol=1e-8)
        counted = fs.compute_transition_probs(given[1], found, starts=starts, log_weights=log_weights)
        np.testing.assert_allclose(counted, found.trans_probs, rtol=1e-8)
    states = fs.hmm_posterior_mode(*given, ll, **options)
    paths = each(lambda x, a: fs.hmm_posterior_mode(initial, a, x), sequences, matrices)
    np.testing.assert_array_equal(states, np.concatenate(paths))


def test_sampled_paths():
    """Their frequencies are the smoothed probabilities, and paths of two sequences are independent."""
    initial, A, ll = random_model(0, 5, 2)
    starts = np.array([True, False, True, False, False])
    keys = jax.random.split(jax.random.key(0), 4000)
    _, states = jax.vmap(lambda k: fs.hmm_posterior_sample(k, initial, A, ll, starts=starts))(keys)
    smoothed = fs.hmm_smoother(initial, A, ll, starts=starts).smoothed_probs
    np.testing.assert_allclose(states.mean(0), smoothed[:, 1], atol=0.03)
    assert abs(np.corrcoef(states[:, 1], states[:, 2])[0, 1]) < 0.06


def test_gradients_of_hidden_markov_models():
    initial, A, ll = random_model(0, sum(LENGTHS), K)
    _, starts = fs.pack_sequences([ll[a:b] for a, b in pieces()])

    def apart(*hmm):
        return sum(fs.hmm_marginal_loglik(*hmm[:2], hmm[2][a:b]) for a, b in pieces())

    got = jax.grad(lambda *hmm: fs.hmm_marginal_loglik(*hmm, starts=starts), (0, 1, 2))(initial, A, ll)
    for a, b in zip(got, jax.grad(apart, (0, 1, 2))(initial, A, ll), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("missing", [True, False])
def test_em_of_linear_gaussian_models(missing):
    """As of a batch of sequences with one length, and as of sequences by themselves: their statistics add."""
    params = random_params(0, D, M)
    batch = np.stack([simulate(params, 12, s) for s in range(5)])
    if missing:
        batch[1, 3, 0] = batch[2, 5:7] = np.nan
    packed, starts = fs.pack_sequences(list(batch))
    options = {"num_iters": 4, "progress": False}
    wanted, values = fit_em(LGSSM, params, batch, **options)
    found, others = fit_em(LGSSM, params, packed, starts=starts, **options)
    np.testing.assert_allclose(others, values, rtol=1e-9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8), found, wanted)
    padded, _ = fs.pad_sequences(panel(3))
    uneven, marks = fs.pack_sequences(panel(3))
    _, theirs = fit_em(LGSSM, params, uneven, starts=marks, num_iters=8, progress=False)
    assert (np.diff(theirs) > -1e-9).all()
    np.testing.assert_allclose(theirs[0], fs.lgssm_marginal_loglik(params, padded).sum(), rtol=1e-10)


def test_em_of_hidden_markov_models():
    r = np.random.default_rng(0)
    batch = r.normal(size=(4, 15, M)) + 2 * r.integers(0, 2, (4, 15, 1))
    initial, A, _ = random_model(0, 5, K)
    params = ParamsHMM(initial, A, GaussianEmissions(r.normal(size=(K, M)), np.stack([np.eye(M)] * K)))
    packed, starts = fs.pack_sequences(list(batch))
    wanted, values = fit_em(HMM(GAUSSIAN), params, batch, num_iters=4, progress=False)
    found, others = fit_em(HMM(GAUSSIAN), params, packed, starts=starts, num_iters=4, progress=False)
    np.testing.assert_allclose(others, values, rtol=1e-10)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10), found, wanted)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda p, y: fs.lgssm_filter(p, y, starts=np.ones(3, bool)), ValueError, r"starts: shape \(3,\).*\(4,\)"),
        (lambda p, y: fs.lgssm_filter(p, y, starts=np.ones(4, int)), TypeError, "starts: int64.*True where"),
        (lambda p, y: fs.lgssm_filter(p, y[None], starts=np.ones((2, 4), bool)), ValueError, r"\(4,\) or \(1, 4\)"),
        (lambda _, y: fs.hmm_filter(np.ones(2), np.eye(2), y, starts=np.ones(3, bool)), ValueError, r"starts: shape \(3,\)"),
        (lambda _, y: fs.pack_sequences(y), ValueError, "one array of shape"),
        (lambda p, y: fs.lgssm_filter(p, y[:, 0], starts=np.ones(4, bool)), ValueError, "emissions: shape"),
        (lambda *_: fs.pack_sequences([]), ValueError, "at least one"),
        (lambda _, y: fs.pack_sequences([y, y[:0]]), ValueError, "T_i"),
        (lambda _, y: fs.pack_sequences([y, y[:, :1]]), ValueError, r"\(4, 1\)"),
        (lambda _, y: fs.unpack_sequences(y, np.ones(3, bool)), ValueError, r"packed: leading axes \[\(4,\)\]"),
        (lambda p, y: fit_em(LGSSM, p, y, starts=np.ones(4, bool), progress=False), ValueError, "at least one sequence of two"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call(random_params(0, 2, 2), np.random.default_rng(0).normal(size=(4, 2)))
