"""What users give that is no float array of JAX's: converted, or one line of what was given, wanted and to be done."""

import jax
import numpy as np
import pytest

from fastscan import (
    compute_transition_probs,
    hmm_filter,
    hmm_fixed_lag_smoother,
    hmm_marginal_loglik,
    hmm_posterior_mode,
    hmm_posterior_sample,
    hmm_smoother,
    lds,
    lgssm_filter,
    lgssm_forecast,
    lgssm_joint_sample,
    lgssm_marginal_loglik,
    lgssm_posterior_predictive,
    lgssm_posterior_sample,
    lgssm_smoother,
    pad_sequences,
    slds,
)
from fastscan.learn import (
    CATEGORICAL,
    GAUSSIAN,
    HMM,
    LGSSM,
    CategoricalEmissions,
    GaussianEmissions,
    ParamsHMM,
    fit_em,
    fit_hmc,
    fit_sgd,
)
from fastscan.mcmc import rw_metropolis
from oracles.hmm import random_model
from oracles.hmm import textbook as hmm_textbook
from oracles.lds import random_chain
from oracles.lgssm import cast, close, random_params, simulate, textbook
from oracles.slds import random_slds

T, D, M, K = 5, 2, 2, 2
KEY = jax.random.key(0)
PARAMS = random_params(0, D, M)
Y = simulate(PARAMS, T, 0)
STATES = random_model(0, T, K)


def changed(part, **fields):
    return PARAMS._replace(**{part: getattr(PARAMS, part)._replace(**fields)})


# Dtypes.


@pytest.mark.parametrize("kind", ["float32", "int64", "list", "DataFrame"])
def test_emissions_are_promoted(kind):
    y = np.round(3 * Y)
    wanted = textbook(PARAMS, y)
    given = y.tolist() if kind == "list" else y.astype("float64" if kind == "DataFrame" else kind)
    if kind == "DataFrame":
        given = pytest.importorskip("pandas").DataFrame(given)
    for function in (lgssm_filter, jax.jit(lgssm_filter)) if kind in ("float32", "int64") else (lgssm_filter,):
        posterior = function(PARAMS, given)
        assert {x.dtype for x in jax.tree.leaves(posterior)} == {np.dtype("float64")}
        close(posterior.filtered_means, wanted.filtered_means, 1e-9)


@pytest.mark.slow
def test_parameters_are_promoted():
    """Each by itself; biases and input weights, which dynamax fills with zeros of its default dtype, have no say."""
    single, y = cast(PARAMS, "float32"), Y.astype("float32")
    double = single._replace(initial=single.initial._replace(mean=PARAMS.initial.mean))
    assert lgssm_filter(single, y).filtered_means.dtype == np.float32
    assert lgssm_filter(double, y).filtered_means.dtype == np.float64
    zeros = single._replace(dynamics=single.dynamics._replace(bias=np.zeros(D)))
    assert lgssm_filter(zeros, y).filtered_means.dtype == np.float32
    whole = changed("initial", mean=np.zeros(D, int))
    z, y = lgssm_joint_sample(whole, KEY, T)
    assert z.dtype == y.dtype == np.float64
    assert lgssm_posterior_sample(KEY, whole, Y.astype("float32")).dtype == np.float64
    assert lgssm_forecast(whole, np.round(Y).astype(int), 2)[2].dtype == np.float64
    assert lgssm_posterior_predictive(whole, np.round(Y).astype(int))[1].dtype == np.float64
    padded, _ = pad_sequences([Y, Y[:2].astype("float32"), np.ones((1, M), int)])
    assert padded.dtype == np.float64
    with jax.enable_x64(False):
        assert lgssm_filter(PARAMS, Y).filtered_means.dtype == np.float32
        assert pad_sequences([Y])[0].dtype == np.float32


def test_fits_take_parameters_as_lists():
    """A list is an array here, never a container of arrays."""
    as_lists = jax.tree.map(lambda x: np.asarray(x).tolist(), PARAMS)
    model = ParamsHMM(np.ones(K) / K, np.eye(K) / 2 + 0.25, GaussianEmissions(np.eye(K, M), np.stack([np.eye(M)] * K)))
    for family, params in ((LGSSM, as_lists), (HMM(GAUSSIAN), jax.tree.map(lambda x: x.tolist(), model))):
        arrays = jax.tree.map(np.asarray, params, is_leaf=lambda x: isinstance(x, list))
        for given, wanted in zip(
            jax.tree.leaves(fit_em(family, params, Y, num_iters=2, progress=False).params),
            jax.tree.leaves(fit_em(family, arrays, Y, num_iters=2, progress=False).params),
            strict=True,
        ):
            close(given, wanted, 1e-12)
        fitted, _ = fit_sgd(family, params, Y, num_epochs=1, progress=False)
        assert jax.tree.structure(fitted) == jax.tree.structure(arrays)


def test_log_likelihoods_are_promoted():
    initial, A, ll = STATES
    whole = np.round(ll)
    for given in (whole.astype("float32"), whole.astype(int), whole.astype(int).tolist()):
        posterior = hmm_smoother(initial, A, given)
        assert {x.dtype for x in jax.tree.leaves(posterior)} == {np.dtype("float64")}
        close(posterior.smoothed_probs, hmm_textbook(initial, A, whole).smoothed, 1e-9)
        loglik, states = hmm_posterior_sample(KEY, initial, A, given)
        assert (loglik.dtype, states.dtype) == (np.float64, np.int32)
        assert hmm_posterior_mode(initial, A, given).dtype == np.int32
        close(
            hmm_fixed_lag_smoother(initial, A, given, 2).marginal_loglik[1],
            hmm_filter(initial, A, whole[:2]).marginal_loglik,
            1e-9,
        )
    assert compute_transition_probs(A.astype("float32"), posterior).dtype == np.float64
    assert hmm_marginal_loglik(np.array([1, 0]), np.eye(2, dtype=int), whole).dtype == np.float64


@pytest.mark.slow
def test_fits_of_mixed_dtypes():
    fitted, logliks = fit_em(LGSSM, PARAMS, Y.astype("float32"), num_iters=2, progress=False)
    wanted, _ = fit_em(LGSSM, PARAMS, Y.astype("float32").astype(float), num_iters=2, progress=False)
    jax.tree.map(lambda a, b: close(a, b, 1e-6), fitted, wanted)
    assert logliks.dtype == np.float64


# Masked arrays.


WITH_EMISSIONS = [
    lambda y: lgssm_marginal_loglik(PARAMS, y),
    lambda y: pad_sequences([y, Y]),
    lambda y: lgssm_smoother(PARAMS, y),
    lambda y: lgssm_posterior_sample(KEY, PARAMS, y),
    lambda y: lgssm_posterior_predictive(PARAMS, y),
    lambda y: lgssm_forecast(PARAMS, y, 2),
    lambda y: fit_em(LGSSM, PARAMS, y, num_iters=1, progress=False),
]


def check_masked(function, y, masked, gaps):
    function(y)  # so that its program is compiled
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), function(masked), function(gaps))


@pytest.mark.slow
def test_masked_entries_are_missing_in_every_function():
    mask = np.arange(T * M).reshape(T, M) % 4 == 1
    for function in WITH_EMISSIONS:
        check_masked(function, Y, np.ma.masked_array(Y, mask), np.where(mask, np.nan, Y))


def test_masked_entries_are_missing_on_every_call():
    mask = np.zeros((T, M), bool)
    mask[2], mask[3, 1] = True, True
    masked, gaps = np.ma.masked_array(Y, mask), np.where(mask, np.nan, Y)
    for function in WITH_EMISSIONS[:2]:
        check_masked(function, Y, masked, gaps)
    whole = lgssm_filter(PARAMS, np.ma.masked_array(np.round(Y).astype(int), mask))
    close(whole.filtered_means, textbook(PARAMS, np.where(mask, np.nan, np.round(Y))).filtered_means, 1e-9)


def test_masked_rows_of_log_likelihoods_are_missing():
    initial, A, ll = STATES
    mask = np.zeros((T, K), bool)
    mask[2] = True
    gaps = np.where(mask, np.nan, ll)
    for function in (hmm_smoother, hmm_posterior_mode, lambda *given: hmm_fixed_lag_smoother(*given, 2)):
        function(initial, A, ll)
        given, wanted = function(initial, A, np.ma.masked_array(ll, mask)), function(initial, A, gaps)
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), given, wanted)
    mask[2, 1] = False
    with pytest.raises(ValueError, match="log_likelihoods: rows with some entries masked given, wanted whole rows"):
        hmm_smoother(initial, A, np.ma.masked_array(ll, mask))


def test_masked_symbols_are_missing():
    params = ParamsHMM(*STATES[:2], CategoricalEmissions(np.array([[0.2, 0.8], [0.6, 0.4]])))
    y = np.array([0, 1, 1, 0, 1])
    masked = np.ma.masked_array(y, [False, False, True, False, False])
    given, wanted = (
        fit_em(HMM(CATEGORICAL), params, x, num_iters=2, progress=False) for x in (masked, np.where(masked.mask, -1, y))
    )
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), given, wanted)


def test_masked_parameters_are_an_error():
    mask = np.array([True, False])
    mean = np.ma.masked_array(np.zeros(D), mask)
    lgssm_filter(PARAMS, Y)
    with pytest.raises(TypeError, match=r"initial.mean: masked entries given, wanted all"):
        lgssm_filter(changed("initial", mean=mean), Y)
    with pytest.raises(TypeError, match="initial_distribution: masked entries given"):
        hmm_filter(np.ma.masked_array(STATES[0], mask), *STATES[1:])
    with pytest.raises(TypeError, match="inputs: masked entries given"):
        lgssm_filter(PARAMS, Y, np.ma.masked_array(np.zeros((T, 1)), np.eye(T, 1)))
    node, init, pair = random_chain(0, T, D)
    with pytest.raises(TypeError, match=r"InitialPotential.h: masked entries given"):
        lds.lds_inference(node, init._replace(h=np.ma.masked_array(init.h, mask)), pair)
    close(lgssm_filter(changed("initial", mean=np.ma.masked_array(PARAMS.initial.mean)), Y).filtered_means,
          lgssm_filter(PARAMS, Y).filtered_means, 0)  # nothing is masked  # fmt: skip


# Errors.

CHAIN, SWITCHING = random_chain(0, T, D), random_slds(0, T, D, K)
WITH_KEYS = {
    "lgssm_posterior_sample": lambda key: lgssm_posterior_sample(key, PARAMS, Y),
    "lgssm_joint_sample": lambda key: lgssm_joint_sample(PARAMS, key, T),
    "hmm_posterior_sample": lambda key: hmm_posterior_sample(key, *STATES),
    "lds_sample": lambda key: lds.lds_sample(key, *CHAIN),
    "slds_inference": lambda key: slds.slds_inference(*SWITCHING, key=key),
    "slds_sample": lambda key: slds.slds_sample(key, *SWITCHING, None),
    "rw_metropolis": lambda key: rw_metropolis(key, lambda x: x[0], np.zeros((1, 3)), 5),
    "fit_sgd": lambda key: fit_sgd(LGSSM, PARAMS, Y, key=key, progress=False),
    "fit_hmc": lambda key: fit_hmc(LGSSM, PARAMS, Y, key=key, progress=False),
}
NO_KEYS = [
    (0, TypeError, "key: 0 given, wanted a random key, e.g. jax.random.key"),
    ("seed", TypeError, "key: 'seed' given"),
    (np.random.default_rng(0), TypeError, "key: Generator given"),
    (np.arange(2), TypeError, r"key: an array of int64, shape \(2,\), given"),
    (PARAMS, TypeError, "key: ParamsLGSSM given"),
    (jax.random.split(KEY, 3), ValueError, r"key: an array of shape \(3,\) given, wanted one key.*jax.vmap"),
]


@pytest.mark.parametrize("name", WITH_KEYS)
@pytest.mark.parametrize(("key", "error", "message"), NO_KEYS, ids=range(len(NO_KEYS)))
def test_keys(name, key, error, message):
    with pytest.raises(error, match=message):
        WITH_KEYS[name](key)


ERRORS = [
    (lambda: lgssm_filter(PARAMS, None), TypeError, "emissions: None given, wanted an array"),
    (lambda: lgssm_filter(Y, PARAMS), TypeError, "emissions: ParamsLGSSM given, wanted .* Are params and emissions exchanged"),
    (lambda: lgssm_filter(PARAMS, KEY), TypeError, "emissions: a random key given, wanted numbers. Are arguments exchanged"),
    (lambda: lgssm_filter(PARAMS, "data.csv"), TypeError, "emissions: str given, wanted an array of numbers"),
    (lambda: lgssm_filter(PARAMS, Y.astype(object)), TypeError, r"emissions: an array of object given.*astype"),
    (lambda: lgssm_filter(PARAMS, [Y, Y[:3]]), ValueError, r"emissions: 2 sequences of shapes .*`fastscan.pad_sequences`"),
    (lambda: lgssm_filter(PARAMS, np.zeros((M, 7))), ValueError, r"shape \(2, 7\) given, wanted \(2, 2\).*take emissions.mT"),
    (
        lambda: lgssm_filter(PARAMS, Y, missing=np.isnan(Y)),
        TypeError,
        r"missing: an array of bool.* wanted None, True or False",
    ),
    (lambda: lgssm_filter(changed("initial", mean="zero"), Y), TypeError, "initial.mean: str given, wanted an array of num"),
    (lambda: lgssm_filter(changed("dynamics", cov=None), Y), TypeError, "dynamics.cov: None given, wanted an array"),
    (lambda: lgssm_filter(changed("emissions", weights=np.ones((3, M, D))), Y), ValueError, "dynamax reads the last of 3 entr"),
    (lambda: lgssm_joint_sample(KEY, PARAMS, T), TypeError, r"key: ParamsLGSSM given.* The order is \(params, key, num_time"),
    (lambda: lgssm_posterior_sample(PARAMS, KEY, Y), TypeError, r"key: ParamsLGSSM given.*order is \(key, params, emissions"),
    (lambda: lgssm_joint_sample(PARAMS, KEY, 5.0), TypeError, "num_timesteps: 5.0 given, wanted a whole number"),
    (lambda: lgssm_forecast(PARAMS, Y, 5.0), TypeError, "num_forecast_timesteps: 5.0 given, wanted a whole number"),
    (lambda: jax.jit(lgssm_forecast)(PARAMS, Y, 5), TypeError, "num_forecast_timesteps: a number that jax.jit traces given"),
    (lambda: hmm_fixed_lag_smoother(*STATES, 2.0), TypeError, "window_size: 2.0 given, wanted a whole number"),
    (lambda: hmm_filter(STATES[1], STATES[0], STATES[2]), ValueError, r"shapes \(2, 2\) and \(2,\) given.* exchanged"),
    (lambda: hmm_filter(*STATES[:2], None), TypeError, "log_likelihoods: None given, wanted an array"),
    (
        lambda: hmm_filter(STATES[0], -STATES[1], STATES[2]),
        ValueError,
        "transition_matrix: -.* given, wanted weights that are n",
    ),
    (lambda: hmm_filter(STATES[0] * np.nan, *STATES[1:]), ValueError, "initial_distribution: NaN given, wanted weights"),
    (lambda: hmm_smoother(np.log(STATES[0]), *STATES[1:]), ValueError, "initial_distribution: -.* want log_weights=True"),
    (
        lambda: lgssm_filter(changed("dynamics", cov=np.eye(2) + np.eye(2, k=1)), Y),
        ValueError,
        "dynamics.cov: a matrix that is n",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), ERRORS, ids=range(len(ERRORS)))
def test_errors(call, error, message):
    with pytest.raises(error, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


# Values.


def test_rounding_is_no_error():
    """A covariance made by subtraction has eigenvalues of rounding's size below zero."""
    P, F = np.eye(D, dtype="float32"), np.diag([1.0, 0.5]).astype("float32")
    Q = P - F @ P @ F.T - np.diag([1e-7, 0]).astype("float32")
    params = cast(changed("dynamics", weights=F, cov=Q)._replace(initial=PARAMS.initial._replace(cov=P)), "float32")
    assert np.isfinite(lgssm_filter(params, Y.astype("float32")).marginal_loglik)
    with pytest.raises(ValueError, match=r"dynamics.cov: a matrix with eigenvalue -1e-07"):  # of float64 it is none
        lgssm_filter(cast(params, "float64"), Y)
    tiny = changed("dynamics", weights=F, cov=np.diag([-1e-15, 1e-9]))  # beside a state of variance one
    assert np.isfinite(lgssm_filter(tiny._replace(initial=PARAMS.initial._replace(cov=P)), Y).marginal_loglik)
    with pytest.raises(ValueError, match=r"dynamics.cov: a matrix with eigenvalue -1e-15"):
        lgssm_filter(tiny._replace(initial=PARAMS.initial._replace(cov=1e-9 * P)), Y)


@pytest.mark.parametrize("least", [-1e-4, -1e-6, -1e-9, -1e-12, -1e-15])
def test_what_is_refused_is_what_would_be_nan(least):
    Q = np.array([[1.0, 0.0], [0.0, least]])
    params = changed("dynamics", cov=Q)
    results = jax.jit(lambda p: lgssm_filter(p, Y).marginal_loglik)(params)
    if np.isnan(results):
        with pytest.raises(ValueError, match=r"dynamics.cov: a matrix with eigenvalue"):
            lgssm_filter(params, Y)
    else:
        assert np.isfinite(lgssm_filter(params, Y).marginal_loglik)


def test_entries_that_are_not_read_are_not_looked_at():
    Q = np.stack([PARAMS.dynamics.cov] * T)
    Q[0] = np.nan
    close(lgssm_filter(changed("dynamics", cov=Q), Y).filtered_means, textbook(PARAMS, Y).filtered_means, 1e-9)


def test_noise_of_as_many_steps_as_entries():
    """(m, m) is one covariance; what can't be one, or would say that all noise is the same, says what else it may be."""
    y, lines = Y[:M], np.array([[0.5, 2.0], [0.1, 3.0]])
    with pytest.raises(ValueError, match=r"emissions.cov: a matrix that is not symmetric given, .* where T = m; .*\(T, m, m\)"):
        lgssm_filter(changed("emissions", cov=lines), y)
    with pytest.warns(UserWarning, match=r"emissions.cov: shape \(2, 2\) with equal entries given, where T = m = 2"):
        lgssm_filter(changed("emissions", cov=np.full((M, M), 0.5)), y)
    for cov in (np.eye(M), np.array([[1.0, 0.5], [0.5, 1.0]]), np.stack([np.diag(v) for v in lines])):
        lgssm_filter(changed("emissions", cov=cov), y)  # and without a word
    lgssm_filter(changed("emissions", cov=np.full((M, M), 0.5)), Y)


def test_gaussian_states_of_another_dtype_are_an_error():
    params = ParamsHMM(*STATES[:2], GaussianEmissions(np.zeros((K, M)), np.stack([np.eye(M)] * K)))
    with pytest.raises(TypeError, match="emissions: float32 given, wanted float64, which the means have"):
        fit_em(HMM(GAUSSIAN), params, Y.astype("float32"), progress=False)
