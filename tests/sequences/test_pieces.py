"""Filtering in pieces is filtering at once: to the bit where every piece runs by the same plan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import fastscan as fs
from oracles.hmm import random_model
from oracles.lgssm import random_params, simulate

PIECES = [(0, 1), (1, 2), (2, 17), (17, 60)]
LOOPS = [(0, 3), (3, 18), (18, 60)]
"""Those of which each has two rows or more, and so a loop, to be the same to the bit: XLA may contract a single row to other
multiply-adds."""
T, K = 60, 3


def same(found, wanted, exact):
    """Equal to the bit, or to rounding."""
    if exact:
        np.testing.assert_array_equal(found, wanted)
    else:
        np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-10)


def data(D, m, gaps):
    params = random_params(0, D, m)
    y = simulate(params, T, 0)
    if gaps:
        y[5:9] = y[17, 0] = np.nan
    return params, y


@pytest.mark.parametrize(("D", "dtype"), [(1, "float32"), (4, "float32"), (4, "float64"), (20, "float64")])
@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("implementation", ["sequential", "chunked:4", "pallas_interpret"])
def test_linear_gaussian_models(implementation, gaps, D, dtype):
    if implementation == "pallas_interpret" and D == 20:
        pytest.skip("takes minutes")
    params, y = jax.tree.map(lambda x: np.asarray(x, dtype), data(D, 2, gaps))
    options = {"implementation": implementation, "missing": gaps, "per_step_loglik": True}
    whole = fs.lgssm_filter(params, y, **options)
    exact, state = implementation == "sequential" and D < 9, None  # of larger models, covariances may settle
    for a, b in LOOPS if exact else PIECES:
        piece = fs.lgssm_filter(params, y[a:b], initial_state=state, **options)
        if dtype == "float64" or exact:
            same(piece.filtered_means, whole.filtered_means[a:b], exact)
            same(piece.filtered_covariances, whole.filtered_covariances[a:b], exact)
            same(piece.marginal_loglik, whole.marginal_loglik[a:b], False if dtype == "float64" else exact)
        loglik = fs.lgssm_marginal_loglik(params, y[a:b], initial_state=state, implementation=implementation)
        np.testing.assert_allclose(loglik, piece.marginal_loglik.sum(), rtol=1e-4 if dtype == "float32" else 1e-9)
        state = piece.final_state


def test_parameters_that_vary():
    """Of which entry 0 of a piece is that of the transition into it; with inputs, and regimes."""
    r = np.random.default_rng(0)
    params, y = data(3, 2, True)
    F, u, index = 0.5 * r.normal(size=(T, 3, 3)), r.normal(size=(T, 2)), r.integers(0, 2, T)
    B, H = r.normal(size=(3, 2)), np.stack([params.emissions.weights, 2 * params.emissions.weights])

    def model(part):
        dynamics = params.dynamics._replace(weights=F[part], input_weights=B)
        return params._replace(dynamics=dynamics, emissions=params.emissions._replace(weights=fs.Regimes(H, index[part])))

    whole = fs.lgssm_filter(model(slice(None)), y, u)
    state = None
    for a, b in PIECES:
        piece = fs.lgssm_filter(model(slice(a, b)), y[a:b], u[a:b], initial_state=state)
        same(piece.filtered_means, whole.filtered_means[a:b], False)
        same(piece.filtered_covariances, whole.filtered_covariances[a:b], False)
        state = piece.final_state


def test_a_smoother_of_the_last_piece():
    """Which sees the same future as at once; the states of others see less."""
    params, y = data(3, 2, True)
    whole = fs.lgssm_smoother(params, y)
    state = fs.lgssm_smoother(params, y[:30]).final_state
    last = fs.lgssm_smoother(params, y[30:], initial_state=state)
    same(last.smoothed_means, whole.smoothed_means[30:], False)
    same(last.smoothed_cross_covariances, whole.smoothed_cross_covariances[30:], False)


def test_batches_vmap_and_starts():
    params, y = data(3, 2, False)
    both = np.stack([y, y[::-1]])
    states = fs.lgssm_filter(params, both[:, :10]).final_state
    found = fs.lgssm_filter(params, both[:, 10:], initial_state=states)
    mapped = jax.vmap(lambda y, s: fs.lgssm_filter(params, y, initial_state=s))(both[:, 10:], states)
    whole = fs.lgssm_filter(params, both)
    for x in (found, mapped):
        same(x.filtered_means, whole.filtered_means[:, 10:], False)
    starts = np.arange(50) == 20
    packed = fs.lgssm_filter(params, y[10:], starts=starts, initial_state=jax.tree.map(lambda x: x[0], states))
    same(packed.filtered_means[:20], whole.filtered_means[0, 10:30], False)
    same(packed.filtered_means[20:], fs.lgssm_filter(params, y[30:]).filtered_means, False)


def test_a_step_that_begins_a_sequence():
    """A piece of one step, which forgets the state before it."""
    params, y = data(3, 2, False)
    state = fs.lgssm_filter(params, y[:10]).final_state
    begun = fs.lgssm_filter(params, y[10:11], starts=np.array([True]), initial_state=state)
    same(begun.filtered_means, fs.lgssm_filter(params, y[10:11]).filtered_means, False)


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        ((np.zeros(3), np.eye(3)), TypeError, "initial_state: tuple given.*final_state"),
        (fs.GaussianState(np.zeros(3), -np.eye(3)), ValueError, r"initial_state.cov"),
    ],
)
def test_states_that_are_none(state, error, words):
    params, y = data(3, 2, False)
    for function in (fs.lgssm_filter, lambda *a, **k: fs.lgssm_fixed_lag_smoother(*a, 2, **k)):
        with pytest.raises(error, match=words):
            function(params, y, initial_state=state)
    with pytest.raises(ValueError, match="initial_state: -1 given, wanted weights that are not negative"):
        fs.hmm_filter(*random_model(0, 4, 3), initial_state=np.array([-1.0, 1, 1]))


def test_gradients_go_through_states():
    params, y = data(2, 2, True)

    def at_once(F):
        return fs.lgssm_marginal_loglik(params._replace(dynamics=params.dynamics._replace(weights=F)), y)

    def in_pieces(F, total=0.0, state=None):
        p = params._replace(dynamics=params.dynamics._replace(weights=F))
        for a, b in PIECES:
            piece = fs.lgssm_filter(p, y[a:b], initial_state=state)
            total, state = total + piece.marginal_loglik, piece.final_state
        return total

    F = params.dynamics.weights
    same(jax.grad(in_pieces)(F), jax.grad(at_once)(F), False)
    state = fs.lgssm_filter(params, y[:30]).final_state

    def rest(state):
        return fs.lgssm_marginal_loglik(params, y[30:], initial_state=state)

    got, wanted = (
        jax.grad(rest)(state),
        jax.grad(lambda s: fs.lgssm_filter(params, y[30:], initial_state=s).marginal_loglik)(state),
    )
    jax.tree.map(lambda a, b: same(a, b, False), got, wanted)
    check_grads(lambda m: rest(state._replace(mean=m)), (jnp.asarray(state.mean),), 1, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["sequential", "chunked:4", "pallas_interpret"])
@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("log_weights", [False, True])
def test_hidden_markov_models(log_weights, varying, implementation):
    initial, A, ll = random_model(0, T, K, varying=varying)
    whole = fs.hmm_filter(initial, A, ll, implementation=implementation)
    smoothed = fs.hmm_smoother(initial, A, ll, implementation=implementation)
    exact, state, total = implementation == "sequential", None, 0.0
    for a, b in LOOPS if exact else PIECES:
        matrix = A[max(a - 1, 0) : b - 1] if varying else A
        given = (np.log(initial), np.log(matrix)) if log_weights else (initial, matrix)
        options = {"implementation": implementation, "log_weights": log_weights, "initial_state": state}
        piece = fs.hmm_filter(*given, ll[a:b], **options)
        for name in ("filtered_probs", "predicted_probs"):
            same(getattr(piece, name), getattr(whole, name)[a:b], exact and not log_weights)
        same(fs.hmm_marginal_loglik(*given, ll[a:b], **options), piece.marginal_loglik, False)
        total += piece.marginal_loglik
        before, state = options, piece.final_state
    np.testing.assert_allclose(total, whole.marginal_loglik, rtol=1e-10)
    last = fs.hmm_smoother(*given, ll[a:b], **before)
    same(last.smoothed_probs, smoothed.smoothed_probs[a:b], False)
    same(last.initial_probs, last.smoothed_probs[0], True)
    if varying:
        same(last.trans_probs, smoothed.trans_probs[a : b - 1], False)
    else:
        each = fs.compute_transition_probs(A, smoothed, summed=False)
        same(last.trans_probs, each[a : b - 1].sum(0), False)


def test_gradients_of_hidden_markov_models():
    initial, A, ll = random_model(0, T, K)

    def at_once(initial, A, ll):
        return fs.hmm_marginal_loglik(initial, A, ll)

    def in_pieces(initial, A, ll, total=0.0, state=None):
        for a, b in PIECES:
            piece = fs.hmm_filter(initial, A, ll[a:b], initial_state=state)
            total, state = total + piece.marginal_loglik, piece.final_state
        return total

    got, wanted = (jax.grad(f, (0, 1, 2))(initial, A, ll) for f in (in_pieces, at_once))
    jax.tree.map(lambda a, b: same(a, b, False), got, wanted)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda p, y, _: fs.lgssm_filter(p, y, initial_state=fs.GaussianState(np.zeros(3), np.eye(2))),
            r"initial_state.mean: shape \(3,\).*\(2,\)",
        ),
        (
            lambda p, y, _: fs.lgssm_filter(p, y, initial_state=fs.GaussianState(np.zeros(2), np.eye(3))),
            r"initial_state.cov: shape \(3, 3\)",
        ),
        (
            lambda p, y, _: fs.lgssm_filter(p, y, initial_state=fs.GaussianState(np.zeros(2), np.eye(2)), timing="departure"),
            'initial_state: given with timing="departure"',
        ),
        (lambda *given: fs.hmm_filter(*given[2], initial_state=np.ones(2) / 2), r"initial_state: shape \(2,\).*\(3,\)"),
        (
            lambda *given: fs.hmm_filter(given[2][0], np.zeros((3, 3, 3)), given[2][2], initial_state=np.ones(3) / 3),
            r"transition_matrix: shape \(3, 3, 3\).*\(4, 3, 3\)",
        ),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call(random_params(0, 2, 2), np.zeros((4, 2)), random_model(0, 4, 3))
