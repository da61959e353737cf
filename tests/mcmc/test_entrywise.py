"""Functions taken apart into arithmetic on entries: the numbers are those of the functions as they stand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy import stats
from jax.scipy.special import logsumexp

from fastscan.kernels.mcmc import entrywise

PRECISION = np.array([[2.0, 0.5, 0], [0.5, 1, 0], [0, 0, 3]])
FUNCTIONS = {
    "mixture": lambda x: logsumexp(stats.norm.logpdf(x[:1], np.array([-2.0, 3])[:, None], 2) + np.log([[0.2], [0.8]]), axis=0),
    "dot": lambda x: -0.5 * jnp.einsum("ic,ij,jc->c", x, PRECISION, x),
    "matmul": lambda x: (PRECISION @ x)[jnp.array([2, 0])].sum(0),
    "matvec": lambda x: jnp.vdot(PRECISION[0], PRECISION[1]) * (PRECISION[0] @ x),
    "indices": lambda x: x[0] * x[-1] + x[::-1][0] + jnp.take(x, 1, axis=0) + x[1:].prod(0),
    "accumulate": lambda x: jnp.cumsum(x, 0)[1] + jnp.cumsum(x[::-1], 0)[-1] + jax.lax.cummax(x, reverse=True)[0],
    "calls": lambda x: jax.nn.softplus(x).sum(0) + jax.nn.logsumexp(x, axis=0) + jnp.linalg.norm(x, axis=0),
    "select": lambda x: jnp.where((x > 0).all(0) | (x < -1).any(0), x.max(0), x.min(0)),
    "clip": lambda x: jnp.clip(x, -0.5, 0.5).sum(0) + jnp.sign(x[0]) * jnp.abs(x[1]) ** 1.5 + x[2] ** 3,
    "shapes": lambda x: jnp.concatenate([x, 2 * x])[1:4].reshape(3, 1, -1).transpose(1, 0, 2)[0].mean(0),
    "split": lambda x: jnp.split(x, 3)[1][0] + jnp.stack([x[0], x[1]])[1],
    "laws": lambda x: stats.t.logpdf(x, 3.0).sum(0) + stats.gamma.logpdf(jnp.abs(x[0]), 2.0),
    "funnel": lambda x: stats.norm.logpdf(x[0], 0, 3) + stats.norm.logpdf(x[1:], 0, jnp.exp(x[0] / 2)).sum(0),
    "iota": lambda x: (x * jnp.arange(3)[:, None]).sum(0) + jnp.sort(jnp.array([3.0, 1.0]))[0] * x[0],
    "empty": lambda x: (x[3:] ** 2).sum(0) + jnp.cumsum(x[3:], 0).max(0, initial=-1) + jnp.ones(0) @ x[3:] + x[3:].prod(0),
    "jitted": jax.jit(lambda x: -((x / jnp.array([[1.0], [2.0], [4.0]])) ** 2).sum(0)),
    "calls of what is known": lambda x: x[0] + jax.nn.relu(jnp.array([1.0, -1.0])).sum() + jnp.logaddexp(jnp.ones(2), 0).sum(),
    "vast": lambda x: x[0] * 1e38 / np.asarray(2e38, x.dtype),
    "nothing": lambda x: jnp.zeros(x.shape[-1]),
}


def apart(function, x, unknown=()):
    """A function of (..., lanes) to (lanes,), by its entries."""
    traced = entrywise.trace(function, jax.ShapeDtypeStruct((*x.shape[:-1], 1), x.dtype))
    vectors = entrywise.entries(list(x.reshape(-1, x.shape[-1])), (*x.shape[:-1], 1))
    return traced(unknown, vectors)[0][0]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_numbers_are_the_same(name, dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 7)), dtype)
    given = jax.jit(lambda x: apart(FUNCTIONS[name], x))(x)
    wanted = FUNCTIONS[name](x)
    np.testing.assert_allclose(jnp.broadcast_to(given, (7,)), wanted, rtol=1e-5 if dtype == "float32" else 1e-13)


def test_constants_that_are_traced():
    def run(x, y):
        def function(x):
            return (x * y[:, None]).sum(0)

        traced = entrywise.trace(function, jax.ShapeDtypeStruct((3, 1), x.dtype))
        (constant,) = traced.unknown
        entries = [entrywise.entries(list(a), shape) for a, shape in ((constant, (3,)), (x, (3, 1)))]
        return traced(entries[:1], entries[1])[0][0]

    x, y = np.arange(12.0).reshape(3, 4), np.array([1.0, -2, 0.5])
    np.testing.assert_allclose(jax.jit(run)(x, y), y @ x)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, s: -0.5 * x[0] ** 2 / s[0] ** 2 + jnp.log(s.mean()),
        lambda x, s: stats.norm.logpdf(x, s[1], jnp.abs(s[2])).sum(0) * s.astype(int).astype(x.dtype)[2],
    ],
)
def test_arithmetic_on_constants_that_are_traced(function):
    def run(x, s):
        traced = entrywise.trace(lambda x: function(x, s), jax.ShapeDtypeStruct((3, 1), x.dtype))
        (constant,) = traced.unknown
        return traced([entrywise.entries(list(constant), (3,))], entrywise.entries(list(x), (3, 1)))[0][0]

    x, s = np.arange(12.0).reshape(3, 4), np.array([2.0, -1, 3.5])
    np.testing.assert_allclose(jax.jit(run)(x, s), function(x, s))


def test_what_is_known_is_not_computed_in_lanes():
    def operations(function):
        text = jax.make_jaxpr(lambda x: apart(function, x))(jnp.ones((3, 8)))
        return [e.primitive.name for e in text.eqns if e.primitive.name in ("add", "mul", "log")]

    assert operations(lambda x: np.array([1.0, 2, 0]) @ x) == ["mul", "add"]
    assert operations(lambda x: x[0] + jnp.log(jnp.arange(1.0, 3.0)).sum()) == ["add"]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: (np.ones((90, 3)) @ x).sum(0), "270 products, more than 256"),
        (lambda x: jnp.sort(x, axis=0)[0], "sort, which is no arithmetic"),
        (lambda x: jax.lax.fori_loop(0, 3, lambda _, x: x * x, x[0]), "scan, which is no arithmetic"),
        (lambda x: jnp.array([1.0, 2.0, 3.0])[x[0].astype(int)], "gather at places that are computed"),
        (lambda x: x[0] * jax.random.normal(jax.random.key(0)), "no type of numbers that are known"),
        (lambda x: (x[:, None] * jnp.ones((3, 10_000, 1))).sum((0, 1)), "more than 1,000 operations"),
    ],
)
def test_what_cannot_be_taken_apart(function, words):
    with pytest.raises(entrywise.NotEntrywiseError, match=words):
        jax.eval_shape(lambda x: apart(function, x), jax.ShapeDtypeStruct((3, 8), "float64"))
