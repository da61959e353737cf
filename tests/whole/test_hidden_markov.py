"""Kernels whose programs hold an HMM's matrix: interpreted, they are the other implementations."""

import jax
import numpy as np
import pytest
from hmm.test_many_states import TOLERANCE, model_of, without_missing

from fastscan import hmm_backward_filter, hmm_filter, hmm_posterior_mode, hmm_posterior_sample, hmm_smoother
from fastscan.dispatch.choice import choose
from oracles.hmm import textbook, viterbi
from oracles.lgssm import close

KEY = jax.random.key(1)
SIZES = [(K, T) for K in (9, 16, 31, 64, 100, 128) for T in (1, 2, 13, 71)]
FEW = {(9, 71), (16, 1), (31, 2), (100, 13)}


@pytest.mark.parametrize(("K", "T"), [pytest.param(*s, marks=[] if s in FEW else pytest.mark.slow) for s in SIZES])
def test_sizes(K, T):
    """K up to 64 in chunks where there are rows for some, paths and more states in one."""
    model = model_of(K, T, "float32")
    plan = choose("pallas_interpret", T=T, B=1, D=K, dtype="float32", family="hmm").plan
    assert plan.launch.whole
    assert (plan.chunks > 1) == (K <= 64 and T == 71)
    reference, tolerance = textbook(*(x.astype(np.float64) for x in model)), TOLERANCE["float32"]
    posterior = hmm_smoother(*model, implementation="pallas_interpret")
    close(posterior.marginal_loglik, reference.loglik, tolerance, "loglik")
    close(posterior.filtered_probs, reference.filtered, tolerance, "filtered")
    close(posterior.smoothed_probs, reference.smoothed, tolerance, "smoothed")
    close(posterior.trans_probs, reference.pairs.sum(0), tolerance, "pairs")
    mode, sample = (
        [function(i) for i in ("pallas_interpret", "sequential")]
        for function in (
            lambda i: hmm_posterior_mode(*model, implementation=i),
            lambda i: hmm_posterior_sample(KEY, *model, implementation=i)[1],
        )
    )
    np.testing.assert_array_equal(*mode)
    np.testing.assert_array_equal(*sample)


def test_the_other_functions():
    model = model_of(17, 12)
    close(
        hmm_filter(*model, implementation="pallas_interpret").filtered_probs,
        textbook(*model).filtered,
        TOLERANCE["float64"],
    )
    given, wanted = (hmm_backward_filter(*model[1:], implementation=i) for i in ("pallas_interpret", "sequential"))
    jax.tree.map(lambda a, b: close(a, b, TOLERANCE["float64"]), given, wanted)
    np.testing.assert_array_equal(
        hmm_posterior_mode(*model, implementation="pallas_interpret"), viterbi(*without_missing(model))
    )


def test_samples_have_the_posterior_s_frequencies():
    """Also where states have no weight, which must not be drawn."""
    initial, A, ll = model_of(9, 5, "float32")
    keys = jax.random.split(KEY, 2_000)
    states = jax.vmap(lambda key: hmm_posterior_sample(key, initial, A, ll, implementation="pallas_interpret")[1])(keys)
    frequencies = (np.asarray(states)[..., None] == np.arange(9)).mean(0)
    smoothed = textbook(*(x.astype(np.float64) for x in (initial, A, ll))).smoothed
    assert not frequencies[smoothed < 1e-12].any()
    np.testing.assert_allclose(frequencies, smoothed, atol=5 * np.sqrt(0.25 / 2_000))


def test_models_that_no_kernel_holds():
    with pytest.raises(ValueError, match="K up to 128"):
        choose("pallas", T=10, B=1, D=129, dtype="float32", family="hmm", device="NVIDIA H200")
    with pytest.raises(ValueError, match="K up to 4"):
        choose("pallas", T=10, B=1, D=9, dtype="float64", family="hmm", device="NVIDIA H200")


@pytest.mark.parametrize(
    ("family", "K", "T", "B", "taken"),
    [
        ("hmm", 64, 100_000, 1, True),
        ("hmm", 65, 10_001, 1, False),
        ("hmm", 65, 20_000, 2, True),
        ("hmm_sample", 16, 10_000, 1, True),
        ("hmm_sample", 16, 10_001, 1, False),
        ("hmm_mode", 16, 10_001, 1, False),
    ],
)
def test_kernels_are_chosen_but_for_long_series_in_turn(family, K, T, B, taken):
    choice = choose(None, T=T, B=B, D=K, dtype="float32", family=family, device="NVIDIA H200")
    assert (choice.implementation == "pallas") == taken
