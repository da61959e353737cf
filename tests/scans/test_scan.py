"""`fastscan.scan` runs a user's recurrence as `jax.lax.scan` runs its step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fastscan
from fastscan.kernels.algebra import eye, zeros
from fastscan.kernels.lgssm.gaussian import Gaussian

WAYS = [None, "sequential", "chunked:3", "associative", "pallas_interpret"]


class Stretch(NamedTuple):
    shift: Any
    floor: Any


def cusum_append(slack, stretch, x):
    return Stretch(stretch.shift + (x - slack), (stretch.floor + (x - slack)).maximum(zeros(x, 1, 1)))


def cusum_step(slack, state, x):
    state = (state + (x - slack)).maximum(zeros(state, 1, 1))
    return state, state


CUSUM = fastscan.Recurrence(
    "cusum",
    lambda state: Stretch(zeros(state, 1, 1), state.constant(np.full((1, 1), -np.inf))),
    cusum_append,
    lambda left, right: Stretch(left.shift + right.shift, (left.floor + right.shift).maximum(right.floor)),
    lambda state, stretch: (state + stretch.shift).maximum(stretch.floor),
    cusum_step,
)


def moments_append(F, map_, x):
    return Gaussian(F @ map_.mean, F @ map_.cov + x["noise"] * eye(F, F.shape[0]))


def moments_step(F, state, x):
    after = Gaussian(F @ state.mean + x["push"], F @ state.cov @ F.T + x["noise"] * eye(F, F.shape[0]))
    return after, {"mean": after.mean, "before": state.mean.T}


def by_loop(x, slack, s):
    out = []
    for value in x:
        s = max(0.0, s + value - slack)
        out.append(s)
    return s, np.array(out)


@pytest.mark.parametrize("implementation", WAYS)
@pytest.mark.parametrize("T", [1, 2, 17, 64])
def test_values(T, implementation):
    x = np.random.default_rng(T).normal(size=T)
    for series in (x, x[::-1]):
        reverse = series is not x
        last, out = fastscan.scan(CUSUM, 0.1, 0.5, series, reverse=reverse, implementation=implementation)
        end, wanted = by_loop(x, 0.1, 0.5)
        assert last.shape == ()
        assert out.shape == (T, 1, 1)
        np.testing.assert_allclose(last, end, atol=1e-12)
        np.testing.assert_allclose(out[:, 0, 0][::-1] if reverse else out[:, 0, 0], wanted, atol=1e-12)


@pytest.mark.parametrize("implementation", [None, "chunked:3", "pallas_interpret"])
def test_vmap_grad_and_vmap_of_grad(implementation):
    r = np.random.default_rng(0)
    x, slack, s = r.normal(size=(3, 21)), r.uniform(size=3), r.uniform(size=3)

    def ours(x, slack, s):
        last, out = fastscan.scan(CUSUM, slack, s, x, implementation=implementation)
        return (out**2).sum() + last

    def plain(x, slack, s):
        def step(s, x):
            s = jnp.maximum(0, s + x - slack)
            return s, s

        last, out = jax.lax.scan(step, s, x)
        return (out**2).sum() + last

    np.testing.assert_allclose(jax.vmap(ours)(x, slack, s), jax.vmap(plain)(x, slack, s), rtol=1e-12)
    got, wanted = (jax.vmap(jax.grad(f, (0, 1, 2)), (0, 0, None))(x, slack, s[0]) for f in (ours, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), got, wanted)
    (got, change), (wanted, tangent) = (jax.jvp(lambda x, f=f: f(x, 0.2, 0.0), (x[0],), (x[1],)) for f in (ours, plain))
    np.testing.assert_allclose([got, change], [wanted, tangent], rtol=1e-10)


def test_trees_of_matrices():
    """A state of two matrices and rows of two kinds, of which only `step` is used where time is not cut."""
    recurrence = fastscan.Recurrence("moments", lambda state: state, moments_append, None, None, moments_step)
    r = np.random.default_rng(0)
    F, mean, cov = 0.5 * r.normal(size=(2, 2)), r.normal(size=2), np.eye(2)
    series = {"noise": r.uniform(size=9), "push": r.normal(size=(9, 2))}
    last, out = fastscan.scan(recurrence, F, Gaussian(mean, cov), series)
    for t in range(9):
        np.testing.assert_allclose(out["before"][t, 0], mean, rtol=1e-12)
        mean, cov = F @ mean + series["push"][t], F @ cov @ F.T + series["noise"][t] * np.eye(2)
        np.testing.assert_allclose(out["mean"][t, :, 0], mean, rtol=1e-12)
    np.testing.assert_allclose(last.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(last.cov, cov, rtol=1e-12)


def test_dtypes_are_promoted_as_jax_promotes_them():
    x = np.ones(5, np.float32)
    assert fastscan.scan(CUSUM, 0.1, 0.0, x)[1].dtype == np.float32
    assert fastscan.scan(CUSUM, np.float64(0.1), 0.0, jnp.asarray(x))[1].dtype == np.float64
    assert fastscan.scan(CUSUM, jnp.float64(0.1), 0.0, jnp.asarray(x))[0].dtype == np.float64


def test_numbers_of_python_are_promoted():
    x = np.ones(5, np.float32)
    assert fastscan.scan(CUSUM, 1, 0, x)[1].dtype == np.float32


def test_no_rows():
    last, out = fastscan.scan(CUSUM, 0.1, 0.5, np.zeros(0))
    assert last == 0.5
    assert out.shape == (0, 1, 1)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"recurrence": CUSUM._replace(sums=lambda _, state: state)}, ValueError, "sums given"),
        (
            {"recurrence": CUSUM._replace(step=lambda _, s, x: (type(s).vstack([x, x]), x)), "implementation": "sequential"},
            ValueError,
            "a step from a state of shapes",
        ),
        ({"recurrence": cusum_step}, TypeError, "recurrence: function given.*fastscan.Recurrence"),
        ({"series": (np.ones(3), np.ones(4))}, ValueError, "series: arrays with 3 and 4 rows"),
        ({"series": ()}, ValueError, "no arrays given"),
        ({"series": np.ones((2, 3, 4, 5))}, ValueError, r"series: shape \(2, 3, 4, 5\).*\(T, rows, columns\)"),
        ({"state": np.ones((1, 1, 1))}, ValueError, r"state: shape \(1, 1, 1\).*\(rows, columns\)"),
        ({"params": "slack"}, TypeError, "params: str given"),
        ({"implementation": "quick"}, ValueError, "implementation: 'quick'"),
    ],
)
def test_bad_input(change, error, words):
    given = {"recurrence": CUSUM, "params": 0.1, "state": 0.0, "series": np.ones(3)} | change
    with pytest.raises(error, match=words):
        fastscan.scan(**given)
