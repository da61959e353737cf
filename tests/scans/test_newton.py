"""`newton_scan` equals `jax.lax.scan`, for a gated network and a Markov chain, and so do its derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan import newton_scan


def gru(weights, x, u):
    """Cho et al.'s gated recurrent unit, of states and inputs with one size."""
    W, U = weights
    reset, update = (jax.nn.sigmoid(W[k] @ u + U[k] @ x) for k in (0, 1))
    return (1 - update) * x + update * jnp.tanh(W[2] @ u + U[2] @ (reset * x))


def weights(D, scale=1.0, seed=0):
    r = np.random.default_rng(seed)
    return scale * r.normal(size=(2, 3, D, D)) / np.sqrt(D)


def mala(x, u, step=0.2):
    """A step of Langevin dynamics with Metropolis's correction, for a curved density."""

    def log_density(x):
        return -0.5 * x[0] ** 2 - 0.5 * (x[1] - 0.3 * x[0] ** 2) ** 2

    noise, uniform = u
    drift = jax.grad(log_density)
    ahead = x + step * drift(x) + jnp.sqrt(2 * step) * noise
    back = ((x - ahead - step * drift(ahead)) ** 2).sum() - ((ahead - x - step * drift(x)) ** 2).sum()
    accepted = jnp.log(uniform) < log_density(ahead) - log_density(x) - back / (4 * step)
    return jnp.where(accepted, ahead, x)


def by_scan(f, x0, inputs):
    def step(x, u):
        x = f(x, u)
        return x, x

    return jax.lax.scan(step, x0, inputs)[1]


@pytest.mark.parametrize("jacobian", ["full", "diagonal"])
@pytest.mark.parametrize(("T", "damping"), [(1, 0.0), (2, 0.5), (300, 0.0), (300, 0.3)])
def test_a_gated_network(T, damping, jacobian):
    r = np.random.default_rng(1)
    f, x0, inputs = functools.partial(gru, weights(4)), r.normal(size=4), r.normal(size=(T, 4))
    found = jax.jit(functools.partial(newton_scan, f, jacobian=jacobian, damping=damping))(x0, inputs)
    np.testing.assert_allclose(found.states, by_scan(f, x0, inputs), atol=1e-12)
    assert found.converged
    assert found.residual < 1e-14
    assert 1 <= found.iterations <= (T + 1 if T < 3 else 60)


def test_a_markov_chain():
    """Which jumps where a proposal is accepted, in single precision."""
    r = np.random.default_rng(2)
    inputs = r.normal(size=(400, 2)).astype("float32"), r.uniform(size=400).astype("float32")
    x0 = np.zeros(2, "float32")
    found = newton_scan(mala, x0, inputs)
    wanted = by_scan(mala, x0, inputs)
    assert found.converged
    assert found.iterations < 200
    np.testing.assert_allclose(found.states, wanted, atol=1e-5)
    assert np.mean(np.any(np.diff(wanted, axis=0) != 0, -1)) < 0.99  # some proposals were refused


def test_a_good_guess_takes_two_iterations():
    r = np.random.default_rng(3)
    f, x0, inputs = functools.partial(gru, weights(3)), np.zeros(3), r.normal(size=(50, 3))
    cold = newton_scan(f, x0, inputs)
    warm = newton_scan(f, x0, inputs, cold.states + 1e-9)
    assert warm.iterations <= 2 < cold.iterations


@pytest.mark.parametrize("jacobian", ["full", "diagonal"])
def test_derivatives_are_those_of_a_loop(jacobian):
    """To weights that f closes over, x0 and inputs; of second order, and mapped."""
    r = np.random.default_rng(4)
    x0, inputs = r.normal(size=(2, 3)), r.normal(size=(2, 20, 3))

    def total(run, w, x0, inputs):
        return (jnp.sin(run(functools.partial(gru, w), x0, inputs)) ** 2).sum()

    ours = functools.partial(total, lambda *a: newton_scan(*a, jacobian=jacobian).states)
    plain = functools.partial(total, by_scan)
    got, wanted = (jax.vmap(jax.grad(f, (0, 1, 2)), (None, 0, 0))(weights(3), x0, inputs) for f in (ours, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), got, wanted)


def test_derivatives_of_second_order():
    r = np.random.default_rng(5)
    u = r.normal(size=(7, 2))

    def second(run, x0):
        return jax.hessian(lambda x: (run(functools.partial(gru, weights(2)), x, u) ** 2).sum())(x0)

    x0 = r.normal(size=2)
    np.testing.assert_allclose(second(lambda *a: newton_scan(*a).states, x0), second(by_scan, x0), rtol=1e-8)


def test_states_of_several_arrays():
    def f(x, u):
        return {"level": x["level"] + 0.1 * jnp.tanh(x["slopes"]).sum() + u, "slopes": 0.9 * x["slopes"] - 0.1 * x["level"]}

    x0, inputs = {"level": jnp.zeros(()), "slopes": jnp.ones((2, 2))}, np.random.default_rng(0).normal(size=30)
    found, wanted = newton_scan(f, x0, inputs), by_scan(f, x0, inputs)
    assert found.converged
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), found.states, wanted)


def test_what_grows_for_a_while_is_found():
    """Undamped iterates overflow; what is not finite keeps its guess, so that the known beginning grows."""

    def f(x, u):
        return jnp.sinh(x) * 0.7 + u

    inputs = 0.1 * np.random.default_rng(0).normal(size=(40, 1)).astype("float32")
    x0 = np.full(1, 0.1, "float32")
    guess = np.full((40, 1), 60.0, "float32")
    found = newton_scan(f, x0, inputs, guess)
    assert found.converged
    np.testing.assert_allclose(found.states, by_scan(f, x0, inputs), atol=1e-4)


@pytest.mark.parametrize("implementation", [None, "chunked:3"])
def test_steep_functions_are_right_to_the_bit(implementation):
    """After T + 1 iterations, however steep they are, and whatever their Jacobians."""
    u = np.random.default_rng(0).normal(size=(30, 1)).astype("float32")
    for f in (
        lambda x, u: jnp.sin(1000 * x) + u,
        lambda x, u: jnp.sqrt(jnp.abs(x)) + 0 * u,
        lambda x, u: 3.9 * x * (1 - x) + 0 * u,
    ):
        x0 = np.full(1, 0.3, "float32")
        found = newton_scan(f, x0, u, implementation=implementation)
        assert found.residual < 2e-7
        assert found.converged
        assert found.iterations <= 31
    kinked = newton_scan(lambda x, u: 0.5 * jnp.linalg.norm(x) + u, np.zeros(2), np.ones((5, 2)), damping=1.0)
    assert kinked.converged
    np.testing.assert_allclose(kinked.states, by_scan(lambda x, u: 0.5 * jnp.linalg.norm(x) + u, np.zeros(2), np.ones((5, 2))))


def test_between_devices():
    """Under `shard_map`, with inputs that differ between devices and others that do not."""
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    parts = jax.sharding.PartitionSpec
    r = np.random.default_rng(0)
    x0, inputs = r.normal(size=2), r.normal(size=(1, 9, 2))

    def states(x0, inputs):
        return newton_scan(functools.partial(gru, weights(2)), x0, inputs[0]).states[None]

    mapped = jax.shard_map(states, mesh=mesh, in_specs=(parts(), parts("i")), out_specs=parts("i"))
    np.testing.assert_allclose(mapped(x0, inputs), states(x0, inputs), rtol=1e-12)


def test_what_does_not_converge_says_so():
    r = np.random.default_rng(1)
    found = newton_scan(functools.partial(gru, weights(4)), np.zeros(4), r.normal(size=(100, 4)), max_iterations=1)
    assert not found.converged
    assert found.iterations == 1
    assert found.residual > 1e-6
    nan = newton_scan(lambda x, u: x * jnp.nan + u, np.zeros(1), np.ones((3, 1)))
    assert not nan.converged
    assert np.isnan(nan.residual)


def test_a_jacobian_of_the_users():
    r = np.random.default_rng(1)
    inputs = r.normal(size=(60, 3))

    def f(x, u):
        return 0.8 * jnp.tanh(x) + u

    def slope(x, u):
        del u
        return 0.8 / jnp.cosh(x) ** 2

    found = newton_scan(f, np.zeros(3), inputs, jacobian=slope)
    exact = newton_scan(f, np.zeros(3), inputs)
    assert found.iterations == exact.iterations
    np.testing.assert_allclose(found.states, exact.states, atol=1e-13)


def test_no_steps():
    found = newton_scan(lambda x, u: x + u, np.zeros(2), np.zeros((0, 2)))
    assert found.states.shape == (0, 2)
    assert found.converged


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"jacobian": "sparse"}, ValueError, "jacobian: 'sparse'.*full, diagonal"),
        ({"damping": 2.0}, ValueError, "damping: 2.0"),
        ({"x0": np.zeros(2, int)}, TypeError, "x0: int64"),
        ({"x0": (np.zeros(2), np.int32(1))}, TypeError, "x0: int32"),
        ({"x0": jnp.zeros(2, "bfloat16")}, TypeError, "x0: bfloat16"),
        ({"f": lambda x, u: 1j * x + u}, TypeError, "f: complex128 returned, wanted float64"),
        ({"inputs": (np.ones(3), np.ones(4))}, ValueError, "inputs: leading axes"),
        ({"inputs": 1.0}, ValueError, "inputs: leading axes"),
        ({"guess": np.zeros((3, 2))}, ValueError, r"guess: shapes \(3, 2\).*\(4, 2\)"),
        ({"f": lambda x, u: (x + u)[:1]}, TypeError, r"f: a state of shapes \(1,\)"),
        ({"jacobian": lambda x, u: x[:1] * u}, ValueError, r"jacobian: shape \(1,\)"),
    ],
)
def test_bad_input(change, error, words):
    given = {"f": lambda x, u: 0.5 * x + u, "x0": np.zeros(2), "inputs": np.ones(4)} | change
    with pytest.raises(error, match=words):
        newton_scan(**given)
