"""Linear dynamical systems in natural parameters, against a dense joint Gaussian."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from fastscan.kernels.lds import passes
from fastscan.kernels.lds.potentials import PAIR_FILTER, Potential
from fastscan.kernels.plan import Launch, Plan
from fastscan.kernels.scan import driver
from fastscan.lds import (
    InitialPotential,
    NodePotential,
    PairPotential,
    _chain,
    _checked,
    lds_inference,
    lds_log_normalizer,
    lds_sample,
)
from fastscan.profiling.compiled.kernel_report import report
from oracles.lds import dense, random_chain, textbook

ALL = ("sequential", "chunked:3", "associative", "pallas_interpret")


def close(got, wanted, rounding=1e-10):
    np.testing.assert_allclose(got, wanted, rtol=rounding, atol=rounding * max(1.0, np.abs(wanted).max(initial=0)))


def check(posterior, wanted, rounding=1e-10):
    for got, right in zip((*posterior.statistics, posterior.log_normalizer), wanted, strict=True):
        close(got, right, rounding)


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize(("T", "D"), [(1, 1), (1, 2), (2, 1), (3, 2), (7, 2), (8, 3)])
def test_against_a_dense_gaussian(T, D, static, implementation):
    if implementation == "pallas_interpret" and (T, D) not in ((2, 1), (7, 2)):
        pytest.skip("these take long to trace, and other sizes are the same text")
    chain = random_chain(T * 10 + D, T, D, static=static, missing=(1, 2) if T == 7 else ())
    check(lds_inference(*chain, implementation=implementation), textbook(*chain))
    close(lds_log_normalizer(*chain, implementation=implementation), textbook(*chain)[-1])


@pytest.mark.parametrize("D", [5, 9, 18])
def test_larger_ones(D):
    chain = random_chain(D, 21, D)
    for implementation in ("sequential", "chunked:4", "associative"):
        check(lds_inference(*chain, implementation=implementation), textbook(*chain), 1e-9)


@pytest.mark.parametrize("implementation", ALL)
def test_float32(implementation):
    chain = random_chain(1, 8 if implementation == "pallas_interpret" else 40, 2, dtype="float32")
    posterior = lds_inference(*chain, implementation=implementation)
    assert posterior.statistics.x.dtype == np.float32
    check(posterior, textbook(*(type(part)(*(x.astype("float64") for x in part)) for part in chain)), 1e-5)


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize("static", [True, False])
def test_derivatives_of_the_log_normaliser_are_the_statistics(static, implementation):
    T, D = 7, 2
    chain = random_chain(3, T, D, static=static)
    x, xx, xx_next, _ = textbook(*chain)
    pair = PairPotential(-x[:-1], xx[:-1] / -2, xx_next, xx[1:] / -2, x[1:])
    wanted = (
        NodePotential(x, xx / -2),
        InitialPotential(x[0], xx[0] / -2),
        PairPotential(*(block.sum(0) for block in pair)) if static else pair,
    )
    value = functools.partial(lds_log_normalizer, implementation=implementation)
    for function in (value, lambda *chain: lds_inference(*chain, implementation=implementation).log_normalizer):
        jax.tree.map(close, jax.grad(function, (0, 1, 2))(*chain), wanted)


def test_statistics_have_symmetric_and_exact_derivatives():
    """The log normaliser's second ones, against central differences of the dense Gaussian."""
    chain = random_chain(4, 4, 2)
    flat, unravel = ravel_pytree(chain)
    r = np.random.default_rng(0)
    u, v = r.standard_normal((2, len(flat)))

    def symmetric(x):  # precisions are, and so are the changes they are given
        node, init, pair = unravel(x)
        mirrored = [node._replace(R=node.R + node.R.mT), init._replace(J=init.J + init.J.T)]
        return *mirrored, pair._replace(J11=pair.J11 + pair.J11.mT, J22=pair.J22 + pair.J22.mT)

    u, v = (ravel_pytree(symmetric(x))[0] for x in (u, v))

    def slope(x):
        return jax.grad(lambda x: lds_log_normalizer(*unravel(x), implementation="chunked:2"))(x)

    forward, backward = (jax.jvp(slope, (flat,), (d,))[1] @ e for d, e in ((u, v), (v, u)))
    close(forward, backward)
    reverse = jax.vjp(slope, flat)[1](u)[0]
    step = 1e-4

    def value(a, b):
        return textbook(*unravel(np.asarray(flat + step * (a * u + b * v))))[-1]

    wanted = (value(1, 1) - value(1, -1) - value(-1, 1) + value(-1, -1)) / (4 * step**2)
    close(forward, wanted, 1e-5)
    close(reverse @ v, wanted, 1e-5)


def test_reverse_mode_of_the_statistics():
    chain = random_chain(5, 6, 2)
    weights = np.random.default_rng(1).standard_normal((6, 2, 2))

    def loss(chain, implementation):
        statistics = lds_inference(*chain, implementation=implementation).statistics
        return (weights * statistics.xx).sum() + jnp.sin(statistics.x).sum() + (statistics.xx_next**2).sum()

    gradients = [jax.grad(loss)(chain, implementation) for implementation in ("sequential", "chunked:2", "associative")]
    for other in gradients[1:]:
        jax.tree.map(functools.partial(close, rounding=1e-9), other, gradients[0])

    def textbook_loss(r):
        x, xx, xx_next, _ = textbook(chain[0]._replace(r=r), *chain[1:])
        return (weights * xx).sum() + np.sin(x).sum() + (xx_next**2).sum()

    direction, step = np.random.default_rng(2).standard_normal((6, 2)), 1e-5
    difference = (textbook_loss(chain[0].r + step * direction) - textbook_loss(chain[0].r - step * direction)) / (2 * step)
    close((gradients[0][0].r * direction).sum(), difference, 1e-7)


@pytest.mark.parametrize("implementation", ["chunked:3", "associative"])
def test_pairs_that_are_densities_only_together_with_nodes(implementation):
    """By themselves they are not even bounded; their derivatives are no less those of the sequential code."""
    node, init, pair = random_chain(11, 7, 2)
    more = 4 * np.eye(2) * (np.arange(7) < 6)[:, None, None]
    chain = node._replace(R=node.R + more), init, pair._replace(J11=pair.J11 - more[:-1])
    assert np.linalg.eigvalsh(chain[2].J11).min() < -1
    check(lds_inference(*chain, implementation=implementation), textbook(*chain))

    def loss(chain, implementation):
        statistics = lds_inference(*chain, implementation=implementation).statistics
        return jnp.sin(statistics.xx).sum() + (statistics.x**2).sum()

    gradients = [jax.grad(loss)(chain, name) for name in (implementation, "sequential")]
    jax.tree.map(functools.partial(close, rounding=1e-8), *gradients)


@pytest.mark.parametrize("implementation", ALL)
def test_samples_are_a_linear_map_of_their_noise(implementation):
    """All implementations draw the same; moments are those of the density (4 standard errors of 20,000 draws)."""
    chain = random_chain(6, 5, 2)
    keys = jax.random.split(jax.random.key(0), 20_000 if implementation == "sequential" else 3)
    draw = jax.vmap(lambda key: lds_sample(key, *chain, implementation=implementation))
    drawn = np.asarray(draw(keys)).reshape(len(keys), -1)
    close(drawn[:3], np.reshape([lds_sample(key, *chain, implementation="sequential") for key in keys[:3]], (3, -1)))
    if implementation == "sequential":
        Lambda, eta = dense(*chain)
        cov = np.linalg.inv(Lambda)
        root = np.linalg.cholesky(cov)
        z = np.linalg.solve(root, (drawn - cov @ eta).T)
        assert np.abs(z.mean(1)).max() < 4 / np.sqrt(len(keys))
        assert np.abs(np.cov(z) - np.eye(len(z))).max() < 6 / np.sqrt(len(keys))


def test_under_vmap_chains_are_lanes():
    chains = [random_chain(seed, 9, 2) for seed in range(3)]
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *chains)
    together = jax.jit(jax.vmap(lambda chain: lds_inference(*chain, implementation="chunked:3")))(stacked)
    for b, chain in enumerate(chains):
        check(jax.tree.map(lambda x: x[b], together), textbook(*chain))  # noqa: B023
    gradient = jax.vmap(jax.grad(lambda chain: lds_inference(*chain).statistics.xx.sum()))(stacked)
    alone = jax.grad(lambda chain: lds_inference(*chain).statistics.xx.sum())(chains[1])
    jax.tree.map(lambda a, b: close(a[1], b, 1e-9), gradient, alone)


@pytest.mark.parametrize("chunks", [1, 2, 3, 5, 6])
def test_combining_is_associative_and_the_empty_stretch_its_identity(chunks):
    """Padded chunks are appended nothing, chunks' ends meet empty stretches."""
    chain = random_chain(7, 7, 2)
    given, _ = _checked(*chain, None)
    for launch in (None, Launch(group=2, interpret=True)):
        plan = Plan(6, chunks, algebra="staged", launch=launch)
        total, moments = jax.jit(functools.partial(passes.smooth, plan))(_chain(*given))
        x, _, xx_next, log_normalizer = textbook(*chain)
        close(total[0] + 7 * np.log(2 * np.pi), log_normalizer)
        close(moments.mean[0, ..., 0], x)
        close(moments.cross[0], xx_next)
    state = Potential(jnp.zeros((2, 1, 1, 1)), jnp.zeros((2, 2, 1, 1)))
    matrices = driver.phases(Plan(1, 1)).matrices(state)
    empty = PAIR_FILTER.identity(matrices)
    both = PAIR_FILTER.combine(empty, empty)
    assert all(np.array_equal(a.array, b.array) for a, b in zip(both, empty, strict=True))


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("D", "dtype", "capability"),
    [(2, "float32", 80), slow(1, "float32", 90), slow(2, "float64", 90), slow(4, "float32", 80), slow(4, "float32", 90)],
)
def test_kernels_compile_without_spills(D, dtype, capability):
    pytest.importorskip("triton", reason="Triton's compiler, which pip has for Linux only")
    rows = list(report("lds", D, 0, dtype=dtype, capabilities=[capability]))
    assert {"pair_filter_summarise", "pair_filter_sweep", "backward_kernels_sweep"} <= {
        row.kernel for row in rows if row.per_step
    }
    for row in rows:
        assert row.spilled_bytes == 0, row
        assert 0 < row.registers <= 255, row


def test_what_has_no_integral_is_nan():
    node, init, pair = random_chain(8, 5, 2)
    posterior = lds_inference(node, init, pair._replace(J22=-100 * pair.J22))
    assert np.isnan(posterior.log_normalizer)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda n, i, p: (n._replace(r=n.r[0]), i, p), ValueError, r"NodePotential.r: shape \(2,\) given, wanted \(T, D\)"),
        (
            lambda n, i, p: (n, i._replace(h=np.zeros(3)), p),
            ValueError,
            r"InitialPotential.h: shape \(3,\) given, wanted \(2,\)",
        ),
        (lambda n, i, p: (n, i, p._replace(J12=p.J12[1:])), ValueError, r"PairPotential.J12: .* wanted \(4, 2, 2\), as T = 5"),
        (lambda n, i, p: (n, i._replace(J=i.J.astype("float32")), p), TypeError, "InitialPotential.J: float32 given"),
        (lambda n, i, p: (n._replace(r=n.r.astype(int)), i, p), TypeError, "NodePotential.r: int64 given, wanted float32"),
    ],
)
def test_errors(change, error, words):
    with pytest.raises(error, match=words):
        lds_inference(*change(*random_chain(9, 5, 2)))


def test_kernels_where_there_are_none():
    with pytest.raises(RuntimeError, match="implementation: 'pallas' given, which wants an NVIDIA GPU"):
        lds_inference(*random_chain(9, 5, 2), implementation="pallas")
    with pytest.raises(ValueError, match=r"implementation: 'pallas_interpret' given for D = 9, float64; .* D up to 8"):
        lds_inference(*random_chain(9, 5, 9), implementation="pallas_interpret")
