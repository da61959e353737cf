"""The laws that make the HMM's recurrences parallel, as properties; and the parts they are made of."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastscan.kernels.algebra import Lanes, Stacked, Staged
from fastscan.kernels.hmm import paths as maps
from fastscan.kernels.hmm import scaled
from fastscan.kernels.hmm.filtering import HMM_BACKWARD_FILTER, HMM_FILTER, HMM_HINDSIGHT, HMMInputs
from fastscan.kernels.hmm.scaled import Scaled
from fastscan.kernels.hmm.smoothing import HMM_SMOOTHER, BackwardInputs
from fastscan.kernels.hmm.viterbi import VITERBI, ViterbiInputs


def weights(r, K):
    """With zeros, but not in the diagonal."""
    A = r.dirichlet(np.ones(K), size=K)
    return np.where((r.random((K, K)) < 0.3) & ~np.eye(K, dtype=bool), 0, A)


def filter_case(r, K):
    return r.dirichlet(np.ones(K))[:, None], lambda: HMMInputs(weights(r, K), 200 * r.normal(size=(K, 1)))


def smoother_case(r, K):
    def row():
        filtered, A = r.dirichlet(np.ones(K))[:, None], weights(r, K)
        return BackwardInputs(filtered, A.T @ filtered, A)

    return r.dirichlet(np.ones(K))[:, None], row


def viterbi_case(r, K):
    def row():
        with np.errstate(divide="ignore"):
            return ViterbiInputs(np.log(weights(r, K)), r.normal(size=(K, 1)))

    return -r.random((K, 1)), row


def paths_case(r, K):
    def row():
        values = Stacked(jnp.asarray(r.integers(K, size=(K, 1)), jnp.uint32))
        return np.asarray(maps.pack(values).array)

    return np.array([[r.integers(K)]], np.uint32), row


CASES = {
    "filter": (lambda _: HMM_FILTER, filter_case, HMMInputs()),
    "backward filter": (lambda _: HMM_BACKWARD_FILTER, filter_case, HMMInputs()),
    "smoother": (lambda _: HMM_SMOOTHER, smoother_case, HMMInputs()),
    "viterbi": (lambda _: VITERBI, viterbi_case, ViterbiInputs()),
    "paths": (maps.paths, paths_case, None),
}


@functools.cache
def laws(name, K, kind):
    """A function of a case's numbers, returning the two sides of every law."""
    recurrence = CASES[name][0](K)
    prepare = recurrence.prepare or (lambda x: x)

    def sides(params, state, xs):
        params, state, *xs = jax.tree.map(lambda a: kind.from_array(a[:, :, None, None]), (params, state, *xs))
        xs = [prepare(x) for x in xs]
        empty = recurrence.identity(state)
        one = [recurrence.append(params, empty, x) for x in xs]
        two = recurrence.append(params, one[0], xs[1])
        three = recurrence.append(params, two, xs[2])
        stepped = state
        for x in xs:
            stepped, _ = recurrence.step(params, stepped, x)
        combine, enter = recurrence.combine, recurrence.enter
        pairs = {
            "associative": (combine(combine(one[0], one[1]), one[2]), combine(one[0], combine(one[1], one[2]))),
            "left identity": (combine(empty, three), three),
            "right identity": (combine(three, empty), three),
            "append combines with one step": (combine(two, one[2]), three),
            "enter an empty stretch": (enter(state, empty), relative(enter(state, empty))),
            "enter is step by step": (relative(enter(state, three)), relative(stepped)),
        }
        return jax.tree.map(lambda m: m.to_array(), pairs, is_leaf=lambda m: isinstance(m, kind))

    def relative(state):
        """Scores mean what they are less the largest."""
        return enter_identity(state) if name == "viterbi" else state

    def enter_identity(state):
        return recurrence.enter(state, recurrence.identity(state))

    return jax.jit(sides)


@pytest.mark.parametrize(("K", "kind"), [(1, Stacked), (3, Stacked), (5, Staged), (2, Lanes)])
@pytest.mark.parametrize("name", CASES)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_laws(name, K, kind, seed):
    _, case, params = CASES[name]
    state, row = case(np.random.default_rng(seed), K)
    for law, (left, right) in laws(name, K, kind)(params, state, [row() for _ in range(3)]).items():
        if isinstance(left, Scaled):
            left, right = (np.float64(s.values) * 2.0 ** np.maximum(s.scale - s.scale.max(), -1e3) for s in (left, right))
            left, right = left / left.max(), right / right.max()
        if name == "viterbi":
            left, right = (x - np.max(x) for x in (left, right))
        np.testing.assert_allclose(*np.broadcast_arrays(left, right), atol=1e-9, err_msg=law)


def test_hindsight_is_the_transposed_product():
    """What a summary says of the state before it, alone and with what follows."""
    r = np.random.default_rng(0)
    A, future = r.random((3, 3)), r.random((3, 1))
    lanes = [Stacked(jnp.asarray(x)[..., None, None]) for x in (A, future)]
    zero = Stacked(jnp.zeros((3, 1, 1, 1)))
    alone = HMM_HINDSIGHT.read(Scaled(lanes[0], zero))
    both = HMM_HINDSIGHT.retreat(Scaled(lanes[1], zero), Scaled(lanes[0], zero))
    for message, wanted in ((alone, A.sum(1)), (both, (A @ future)[:, 0])):
        given = np.asarray(message.values.array * 2.0**message.scale.array).ravel()
        np.testing.assert_allclose(given / given.sum(), wanted / wanted.sum(), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exponents_are_exact(dtype):
    x = np.array([1, 1.5, 2, 3.99, 1e-30, 1e30, 0.75], dtype)
    n = scaled.exponent(jnp.asarray(x))
    np.testing.assert_array_equal(n, np.frexp(x)[1] - 1)
    np.testing.assert_array_equal(scaled.power_of_two(n), np.ldexp(np.ones_like(x), np.frexp(x)[1] - 1))
    assert scaled.exponent(jnp.zeros((), dtype)) == scaled.LOWEST
    assert scaled.power_of_two(jnp.asarray(scaled.LOWEST, dtype)) == 0
    assert scaled.power_of_two(jnp.asarray(1e30, dtype)) > 1e38


@pytest.mark.parametrize("K", [1, 2, 4, 5, 8, 9, 16, 17, 64])
def test_maps_are_packed_and_composed(K):
    r = np.random.default_rng(K)
    first, then = r.integers(K, size=(2, K, 1)).astype(np.uint32)
    words = [maps.pack(Stacked(jnp.asarray(x))) for x in (first, then)]
    assert words[0].shape[0] == maps.Packing.of(K).words
    for x, w in zip((first, then), words, strict=True):
        np.testing.assert_array_equal(maps.unpack(K, w).array, x)
    composed = maps.paths(K).combine(*words)
    np.testing.assert_array_equal(maps.unpack(K, composed).array, then[first[:, 0]])
    np.testing.assert_array_equal(maps.unpack(K, maps.paths(K).identity(words[0])).array[:, 0], np.arange(K))
