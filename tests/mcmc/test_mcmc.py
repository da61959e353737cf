"""Random-walk Metropolis: against a textbook loop with the same numbers, and every way to run it against every other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan.kernels.mcmc import metropolis
from fastscan.mcmc import MetropolisState, rw_metropolis, threads
from oracles.mcmc import correlated, mixture, textbook

KEY = jax.random.key(7)
WORDS = np.asarray(jax.random.bits(KEY, (2,), "uint32"))
PLANE = correlated(2)[0]
START = np.array([[0.5, -1, 0, 2, 1], [1, 0, -2, 0.25, 3]])


def close(given, wanted, tolerance=1e-12):
    np.testing.assert_allclose(given, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("implementation", ["xla", "pallas_interpret"])
@pytest.mark.parametrize("step_size", [1.5, [0.3, 2.0], [[1.0, 0], [-0.7, 0.4]]], ids=["number", "column", "matrix"])
def test_against_a_textbook_loop(step_size, implementation):
    steps = 30
    positions, accepted = textbook(WORDS, PLANE, START, steps, np.array(step_size))
    run = rw_metropolis(KEY, PLANE, START, steps, step_size=np.array(step_size), implementation=implementation)
    close(run.samples, positions)
    close(run.acceptance_rate, accepted.mean(0))
    close(run.state.position, positions[-1])
    close(run.state.log_density, PLANE(positions[-1]))
    assert (run.state.step, run.state.scale, run.moments) == (steps, 1, None)
    assert 0.1 < accepted.mean() < 0.9


@pytest.mark.parametrize("thin", [1, 3])
@pytest.mark.parametrize("implementation", ["xla", "pallas_interpret"])
def test_what_is_kept(implementation, thin):
    """More records than a block has, and a rest."""
    n = metropolis.BLOCK + 7 if implementation == "xla" else 40
    run = functools.partial(rw_metropolis, KEY, PLANE, START, n, thin=thin, implementation=implementation)
    every = rw_metropolis(KEY, PLANE, START, n * thin, implementation=implementation)
    samples, moments, last = (run(keep=keep) for keep in ("samples", "moments", "last"))
    close(samples.samples, every.samples[thin - 1 :: thin])
    close(moments.moments.mean, samples.samples.mean(0), 1e-10)
    close(moments.moments.variance, samples.samples.var(0), 1e-10)
    assert (moments.samples, last.samples, last.moments, samples.moments) == (None,) * 4
    for other in (samples, moments, last):
        jax.tree.map(close, (other.state, other.acceptance_rate), (every.state, every.acceptance_rate))


def test_moments_of_long_runs_in_float32():
    """Far from the origin, and more blocks than one."""

    def far(x):
        return -0.5 * ((x[0] - 1000) / 3) ** 2

    start = np.full((1, 20), 1000, "float32")
    run = functools.partial(rw_metropolis, KEY, far, start, 50_000, step_size=6.0)
    samples = np.asarray(run().samples, "float64")
    moments = run(keep="moments").moments
    np.testing.assert_allclose(moments.mean, samples.mean(0), rtol=5e-7)
    np.testing.assert_allclose(moments.variance, samples.var(0), rtol=1e-4)


def tree_density(position):
    return -0.5 * (position["a"] ** 2).sum((0, 1)) - jnp.abs(position["b"]) + 0.3 * position["a"][0, 1] * position["b"]


def test_positions_are_pytrees():
    r = np.random.default_rng(0)
    start = {"a": r.normal(size=(2, 2, 6)), "b": r.normal(size=6)}
    size = {"a": np.array([[0.5, 1.0], [2.0, 0.25]]), "b": np.array(0.75)}
    run = rw_metropolis(KEY, tree_density, start, 25, step_size=size)
    flat = rw_metropolis(
        KEY,
        lambda x: tree_density({"a": x[:4].reshape(2, 2, -1), "b": x[4]}),
        np.concatenate([start["a"].reshape(4, 6), start["b"][None]]),
        25,
        step_size=[0.5, 1, 2, 0.25, 0.75],
    )
    close(run.samples["a"], flat.samples[:, :4].reshape(25, 2, 2, 6))
    close(run.samples["b"], flat.samples[:, 4])
    assert jax.tree.structure(run.state.position) == jax.tree.structure(start)


@pytest.mark.parametrize("implementation", ["xla", "pallas_interpret"])
@pytest.mark.parametrize("keep", ["samples", "last"])
def test_going_on_is_one_run(implementation, keep):
    """Bit for bit."""
    run = functools.partial(rw_metropolis, KEY, PLANE, keep=keep, thin=2, implementation=implementation)
    whole = run(START, 30)
    first = run(START, 11)
    second = run(first.state, 19)
    jax.tree.map(np.testing.assert_array_equal, second.state, whole.state)
    if keep == "samples":
        np.testing.assert_array_equal(np.concatenate([first.samples, second.samples]), whole.samples)


@pytest.mark.parametrize("chains", [1, 2, 15, 16, 17, 256, 257, 600])
def test_chains_do_not_depend_on_how_they_are_grouped(chains):
    start = np.random.default_rng(0).normal(size=(1, 600)).astype("float32")
    run = functools.partial(rw_metropolis, KEY, mixture, num_samples=20)
    wanted = run(start).samples
    np.testing.assert_allclose(run(start[:, :chains]).samples, wanted[..., :chains], rtol=1e-5, atol=1e-6)


def test_all_cores(monkeypatch):
    """The same, shared by threads."""
    monkeypatch.setattr(threads, "cores", lambda: 3)
    start = np.random.default_rng(0).normal(size=(1, 1_001)).astype("float32")
    run = functools.partial(rw_metropolis, KEY, mixture, start, 50, warmup=30)
    for keep in ("samples", "moments", "last"):
        monkeypatch.setattr(threads, "THREAD_STEPS", 1e9)
        wanted = run(keep=keep)
        monkeypatch.setattr(threads, "THREAD_STEPS", 0)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), run(keep=keep), wanted)


def test_under_jit_and_vmap():
    def run(key, start, spread):
        def log_density(x):
            return PLANE(x / spread)

        return rw_metropolis(key, log_density, start, 20, step_size=spread).samples

    keys = jax.random.split(KEY, 3)
    starts = np.stack([START, START + 1, -START])
    spreads = np.array([0.5, 1.0, 2.0])
    wanted = [run(*one) for one in zip(keys, starts, spreads, strict=True)]
    close(jax.jit(run)(keys[1], starts[1], spreads[1]), wanted[1])
    close(jax.vmap(run)(keys, starts, spreads), wanted)
    close(jax.jit(jax.vmap(run))(keys, starts, spreads), wanted)
    close(jax.vmap(run, (None, None, 0))(keys[0], starts[0], spreads)[0], wanted[0])


def test_kernels_under_vmap():
    def run(key):
        return rw_metropolis(key, PLANE, START, 6, implementation="pallas_interpret").samples

    keys = jax.random.split(KEY, 2)
    close(jax.vmap(run)(keys), [run(key) for key in keys])


def loop_density(x):
    """Which can't be taken apart."""
    return jax.lax.fori_loop(0, 2, lambda _, total: total - 0.25 * (x**2).sum(0), jnp.zeros(x.shape[-1], x.dtype))


def test_what_cannot_be_taken_apart_runs_as_it_stands():
    def plain(x):
        return -0.5 * (x**2).sum(0)

    given, wanted = (rw_metropolis(KEY, f, START, 40, warmup=10, keep="moments") for f in (loop_density, plain))
    jax.tree.map(close, given, wanted)
    with pytest.raises(NotImplementedError, match="'pallas_interpret' given for a log density with scan"):
        rw_metropolis(KEY, loop_density, START, 5, implementation="pallas_interpret")


def test_many_coordinates():
    """More than native functions hold; and one that they do."""
    for D in (17, 300):
        start = np.zeros((D, 20))
        run = rw_metropolis(KEY, lambda x: -0.5 * (x**2).sum(0), start, 20, step_size=0.2)
        one = rw_metropolis(KEY, lambda x: -0.5 * (x**2).sum(0), start[:, :1], 20, step_size=0.2)
        close(run.samples[..., :1], one.samples)


@pytest.mark.parametrize("implementation", ["xla", "pallas_interpret"])
def test_warmup_finds_the_wanted_rate(implementation):
    log_density, cov = correlated(3)
    steps, chains = (2_000, 64) if implementation == "xla" else (150, 64)
    settings = {"step_size": np.linalg.cholesky(cov) * 20, "warmup": steps, "implementation": implementation}
    for target in (None, 0.5):
        run = rw_metropolis(KEY, log_density, np.zeros((3, chains)), steps, target_acceptance=target, keep="last", **settings)
        rate = run.acceptance_rate.mean()
        assert abs(rate - (target or 0.234)) < (0.02 if implementation == "xla" else 0.1)
        assert run.state.step == 2 * steps
    assert run.state.scale < 0.5


def test_starts_of_no_density():
    def positive(x):
        return jnp.where(x[0] > 0, -x[0], -jnp.inf)

    start = np.array([[1.0, -1.0, 2.0]])
    with pytest.raises(ValueError, match=r"log density of 1 of 3 chains is not finite there \(chain 1: -inf\)"):
        rw_metropolis(KEY, positive, start, 5)
    run = jax.jit(lambda start: rw_metropolis(KEY, positive, start, 5))(start)
    np.testing.assert_array_equal(np.isnan(run.acceptance_rate), [False, True, False])
    assert (np.asarray(run.samples)[:, 0, [0, 2]] > 0).all()


def test_single_precision_is_kept():
    run = rw_metropolis(KEY, mixture, np.zeros((1, 3), "float32"), 5, warmup=5, keep="moments")
    assert {str(x.dtype) for x in jax.tree.leaves(run)} == {"float32", "uint32"}


def test_settings_that_are_traced_or_odd():
    def run(size, matrix):
        steps = {"num_samples": np.int16(40), "thin": np.int8(3)}
        many = rw_metropolis(KEY, PLANE, START, step_size=[size, 2 * size], **steps)
        return many.acceptance_rate, rw_metropolis(KEY, PLANE, START, 9, step_size=matrix).samples

    square = np.array([[1.0, 0.7], [0.2, 0.5]])
    rate, samples = jax.jit(run)(0.5, square)
    close(rate, rw_metropolis(KEY, PLANE, START, 40, thin=3, step_size=[0.5, 1.0]).acceptance_rate)
    close(samples, rw_metropolis(KEY, PLANE, START, 9, step_size=np.tril(square)).samples)


def test_chains_that_are_nowhere_have_no_say_in_the_warmup():
    start = np.zeros((1, 10))
    start[0, 3] = np.nan
    run = jax.jit(lambda start: rw_metropolis(KEY, lambda x: -0.5 * x[0] ** 2, start, 500, warmup=1_000, keep="last"))(start)
    assert 1.5 < run.state.scale < 4
    np.testing.assert_array_equal(np.isnan(run.acceptance_rate), np.arange(10) == 3)


def test_shard_map():
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    P = jax.sharding.PartitionSpec

    def run(key, start):
        return rw_metropolis(key[0], PLANE, start, 5, warmup=3).samples

    keys = jax.random.split(KEY, 1)
    given = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=(P("i"), P()), out_specs=P(None, None, "i")))(keys, START)
    close(given, run(keys, START))


class Unhashable:
    __hash__ = None

    def __call__(self, x):
        return x[0]


ZEROS = np.zeros((2, 3))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"num_samples": 0}, ValueError, "num_samples: 0 given, wanted a whole number of at least 1"),
        ({"num_samples": 1.5}, ValueError, "num_samples: 1.5 given"),
        ({"thin": 0}, ValueError, "thin: 0 given"),
        ({"warmup": -1}, ValueError, "warmup: -1 given"),
        ({"keep": "all"}, ValueError, "keep: 'all' given, wanted one of samples, moments, last"),
        ({"target_acceptance": 1.0}, ValueError, "target_acceptance: 1.0 given"),
        ({"implementation": "cuda"}, ValueError, "implementation: 'cuda' given, wanted None or one of xla, pallas"),
        ({"implementation": "pallas"}, RuntimeError, "wants an NVIDIA GPU"),
        (
            {"initial_position": np.zeros((17, 2)), "log_density": lambda x: x[0], "implementation": "pallas_interpret"},
            ValueError,
            "'pallas_interpret' given for 17 coordinates",
        ),
        ({"initial_position": np.zeros((2, 3), int)}, TypeError, "initial_position: int64 given, wanted arrays of float32"),
        ({"initial_position": {}}, TypeError, "initial_position: nothing given"),
        ({"initial_position": np.float64(0)}, ValueError, "a scalar given"),
        ({"initial_position": (np.zeros((2, 3)), np.zeros(4))}, ValueError, r"shapes \(2, 3\), \(4,\) given, wanted the same"),
        ({"initial_position": np.zeros((2, 0))}, ValueError, "one or more, on last axes"),
        ({"step_size": np.ones(3)}, ValueError, r"step_size: shape \(3,\) given; wanted a number, \(2,\), \(2, 2\)"),
        ({"step_size": {"a": 1.0}}, ValueError, "step_size: shape"),
        ({"step_size": 0.0}, ValueError, r"step_size: \[0.0\] given, wanted finite numbers above zero"),
        ({"step_size": np.ones((2, 2))}, ValueError, "lower triangular Cholesky factor"),
        ({"log_density": lambda x: x}, ValueError, r"returned \(2, 3\) for positions of 3 chains, wanted one array \(3,\)"),
        (
            {"log_density": lambda x: x[0].sum(keepdims=True)},
            ValueError,
            r"log_density: returned \(1,\) for positions of 3 chains",
        ),
        ({"log_density": Unhashable()}, TypeError, "log_density: Unhashable given, wanted a function that can be hashed"),
        (
            {"initial_position": MetropolisState(ZEROS, np.zeros(3), 0, 1), "warmup": 5},
            ValueError,
            "warmup: 5 given with a state",
        ),
    ],
)
def test_errors(changes, error, words):
    arguments = {"log_density": PLANE, "initial_position": ZEROS, "num_samples": 5} | changes
    with pytest.raises(error, match=words):
        rw_metropolis(KEY, **arguments)


HEAVY = {
    "a regression": lambda x: -jax.nn.softplus(np.random.default_rng(0).normal(size=(16, len(x))).astype(x.dtype) @ x).sum(0),
    "gamma functions": lambda x: -jax.scipy.special.gammaln(1 + x**2).sum(0),
    "little of many coordinates": lambda x: -jnp.abs(x).sum(0),
}


@pytest.mark.parametrize(("D", "dtype"), [(4, "float32"), (16, "float32"), pytest.param(16, "float64", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", HEAVY)
def test_groups_are_small_enough_for_xla(name, D, dtype):
    """XLA can't compile a native function with an operation that is large enough for its threads."""
    start = np.zeros((D, 600), dtype)
    factor = 0.1 * np.tril(np.ones((D, D), dtype))
    run = functools.partial(rw_metropolis, KEY, HEAVY[name], num_samples=5, step_size=factor)
    given, few = run(start), run(start[:, :40])
    np.testing.assert_allclose(given.samples[..., :40], few.samples, rtol=1e-4, atol=1e-4)
    assert 0 < given.acceptance_rate.mean() < 1
