"""The two representations of matrices, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan.kernels import algebra
from fastscan.kernels.algebra import (
    ALGEBRAS,
    StackedAlone,
    Staged,
    StagedAlone,
    eliminate,
    eye,
    pivots,
    select,
    solve,
    stage,
    symmetric,
    zeros,
)
from fastscan.kernels.algebra.stacked import UNROLLED_ROWS, UNROLLED_TERMS

LANES = (3, 2)
KINDS = [kind for kind in ALGEBRAS.values() if not issubclass(kind, StackedAlone)]


def matrices(kind, *arrays):
    return tuple(kind.from_array(jnp.asarray(a)) for a in arrays)


def random(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).normal(size=(*shape, *LANES))


def psd(n, rank=None, seed=0):
    a = random(n, n if rank is None else rank, seed=seed)
    return np.einsum("ik...,jk...->ij...", a, a)


@pytest.mark.parametrize("kind", KINDS)
def test_operators(kind):
    a, b, c, row, one = random(3, 2), random(2, 3), random(3, 2, seed=1), random(1, 2), random(1, 1)
    A, B, C, r, s = matrices(kind, a, b, c, row, one)
    product = np.einsum("ik...,kj...->ij...", a, b)
    checks = (
        (A @ B, product),
        (A + C, a + c),
        (A - C, a - c),
        (A * C, a * c),
        (A * r, a * row),
        (A * s, a * one),
        (A * 2.0, 2 * a),
        (A.T, np.swapaxes(a, 0, 1)),
        (symmetric(A @ B), (product + np.swapaxes(product, 0, 1)) / 2 if kind is not algebra.Lanes else None),
        ((A @ B).diagonal(), np.stack([product[i, i] for i in range(3)])[:, None]),
        (kind.vstack([A, r]), np.concatenate([a, row])),
        (kind.elementwise(lambda x, y: jnp.maximum(x, y), A, C), np.maximum(a, c)),
        (eye(A, 4) @ zeros(A, 4, 1), np.zeros((4, 1, 1, 1))),
    )
    for given, wanted in checks:
        if wanted is not None:
            np.testing.assert_allclose(*np.broadcast_arrays(given.to_array(), wanted), rtol=1e-14, atol=1e-14)
    assert A.shape == (3, 2)
    assert A.dtype == np.float64


@pytest.mark.parametrize("n", [1, 3, 9, 18])
def test_a_matrix_without_lane_axes(n):
    """Is what it is in one lane."""
    arrays = psd(n)[..., :1, :1], random(n, 2)[..., :1, :1]
    for function in (
        lambda A, b: (A @ b, A.T @ b, A * b.block(0, 1).columns(0, 1), symmetric(A), A.diagonal(), eye(A, n) - A),
        lambda A, b: eliminate(A, b),
        lambda A, b: solve(A, b),
        lambda A, b: (pivots(A), A.reduce(jnp.add), type(A).vstack([b, b])),
    ):
        alone, wanted = (function(*matrices(kind, *arrays)) for kind in (StagedAlone, Staged))
        for x, y in zip(alone, wanted, strict=True):
            assert x.array.ndim == 2
            np.testing.assert_allclose(x.to_array(), y.to_array(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_symmetric_is_exactly_so(kind):
    (A,) = matrices(kind, psd(4) + 1e-3 * random(4, 4))
    S = symmetric(A).to_array()
    np.testing.assert_array_equal(S, jnp.swapaxes(S, 0, 1))


@pytest.mark.parametrize("n", [1, 2, 5, UNROLLED_ROWS + 1])
@pytest.mark.parametrize("kind", KINDS)
def test_elimination_factorises_and_solves(kind, n):
    a, b = psd(n), random(n, 2)
    L, d, x = (m.to_array() for m in eliminate(*matrices(kind, a, b)))
    np.testing.assert_allclose(np.einsum("ik...,k...,jk...->ij...", L, d[:, 0], L), a, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(np.einsum("ik...,kj...->ij...", L, x), b, rtol=1e-9, atol=1e-12)
    L = np.reshape(L, (n, n, -1))[..., 0]
    assert np.all(np.triu(L, 1) == 0)
    assert np.all(np.diagonal(L) == 1)


@pytest.mark.parametrize("n", [1, 2, 4, 5, UNROLLED_ROWS + 1])
@pytest.mark.parametrize("kind", KINDS)
def test_systems_are_solved(kind, n):
    a, b = psd(n), random(n, 2)
    whitened, inverses, x = (m.to_array() for m in solve(*matrices(kind, a, b)))
    np.testing.assert_allclose(np.einsum("ik...,kj...->ij...", a, x), b, rtol=1e-7, atol=1e-8)
    squares = np.einsum("ki...,k...,kj...->ij...", whitened, inverses[:, 0], whitened)
    np.testing.assert_allclose(squares, np.einsum("ki...,kj...->ij...", b, x), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("n", [3, 6, UNROLLED_ROWS + 2])
@pytest.mark.parametrize("kind", KINDS)
def test_systems_that_are_singular_have_a_solution(kind, n):
    """Right-hand sides in the matrix's own range are met, in any units."""
    units = 10.0 ** np.linspace(-4, 4, n)[:, None, None, None]
    a = psd(n, rank=2)
    b = np.einsum("ik...,kj...->ij...", a, random(n, 2)) * units
    a = a * units * np.swapaxes(units, 0, 1)
    *_, x = (m.to_array() for m in solve(*matrices(kind, a, b)))
    np.testing.assert_allclose(np.einsum("ik...,kj...->ij...", a, x) / units, b / units, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_elimination_of_singular_matrices(kind, dtype):
    """Rank 2 of 4, and nothing at all: two pivots are rounding at most, and the product is still the matrix."""
    eps = np.finfo(dtype).eps
    for a in (psd(4, rank=2), np.zeros((4, 4, *LANES))):
        L, d, _ = (m.to_array() for m in eliminate(*matrices(kind, a.astype(dtype), np.zeros((4, 1, *LANES), dtype))))
        rank = np.linalg.matrix_rank(a[..., 0, 0])
        assert np.all(np.sum(d[:, 0] > 100 * eps, axis=0) == rank)
        assert np.all(np.isfinite(L))
        np.testing.assert_allclose(np.einsum("ik...,k...,jk...->ij...", L, d[:, 0], L), a, atol=100 * eps)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_is_not_taken_for_a_zero_pivot(kind):
    a = psd(3)
    a[1, 1] = np.nan
    L, d, _ = eliminate(*matrices(kind, a, random(3, 1)))
    assert np.all(np.isnan(d.to_array()[1]))
    assert np.all(np.isnan(L.to_array()[2, 1]))


@pytest.mark.parametrize("kind", KINDS)
def test_an_indefinite_matrix_is_told_where_asked(kind):
    A, b = matrices(kind, psd(3) - 100 * np.eye(3)[..., None, None], random(3, 1))
    assert np.all(np.isnan(eliminate(A, b, checked=True)[1].to_array()[0]))
    assert np.all(eliminate(A, b)[1].to_array() == 0)


@pytest.mark.parametrize("n", [1, 2, 5, UNROLLED_ROWS + 1])
@pytest.mark.parametrize("kind", KINDS)
def test_pivots_are_those_of_elimination(kind, n):
    """Also of singular matrices, and NaN where a matrix is indefinite."""
    a = random(n, n)
    whole = np.einsum("ik...,jk...->ij...", a, a)
    singular = np.einsum("ik...,jk...->ij...", a[:, :1], a[:, :1])
    for x in (whole, singular, -whole):
        (A,) = matrices(kind, x)
        for checked in (False, True):
            wanted = eliminate(A, zeros(A, n, 1), checked=checked)[1].to_array()
            np.testing.assert_allclose(pivots(A, checked=checked).to_array(), wanted, rtol=1e-12, atol=1e-14)
    assert np.isnan(pivots(A, checked=True).to_array()[0]).all()


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_diagonals(kind, n):
    a = random(n, n)
    (A,) = matrices(kind, a)
    np.testing.assert_array_equal(A.diagonal().to_array()[:, 0], np.stack([a[i, i] for i in range(n)]))


@pytest.mark.parametrize("rolled", [False, True])
@pytest.mark.parametrize("n", [1, 3, UNROLLED_ROWS + 1])
@pytest.mark.parametrize("kind", KINDS)
def test_loop_over_rows(kind, n, rolled):
    a = random(n, 2)
    (A,) = matrices(kind, a)

    def body(total, row):
        return total + row, (total, row * 2.0)

    total, (before, doubled) = kind.over_rows(body, zeros(A, 1, 2), A, rolled=rolled)
    np.testing.assert_allclose(total.to_array()[0], a.sum(0), rtol=1e-12)
    np.testing.assert_allclose(*np.broadcast_arrays(before.to_array(), np.cumsum(a, 0) - a), atol=1e-12)
    np.testing.assert_allclose(doubled.to_array(), 2 * a)


@pytest.mark.parametrize("lanes", [((1, 1), LANES), (LANES, (1, 1)), (LANES, LANES), ((3, 1), (1, 2))])
def test_products_too_long_to_unroll(lanes):
    r = np.random.default_rng(0)
    n = UNROLLED_TERMS + 1
    a, b = r.normal(size=(2, n, *lanes[0])), r.normal(size=(n, 3, *lanes[1]))
    given = (algebra.Stacked(jnp.asarray(a)) @ algebra.Stacked(jnp.asarray(b))).array
    both = np.broadcast_shapes(*lanes)
    wanted = np.einsum("ik...,kj...->ij...", *(np.broadcast_to(x, x.shape[:2] + both) for x in (a, b)))
    np.testing.assert_allclose(given, wanted, rtol=1e-12)


@pytest.mark.parametrize("lanes", [(1, 1), LANES])
@pytest.mark.parametrize("kind", [algebra.Stacked, algebra.Staged])
def test_the_column_of_a_number(kind, lanes):
    r = np.random.default_rng(0)
    a, number = r.normal(size=(4, 5, *lanes)), r.integers(5, size=(1, 1, *LANES)).astype(np.uint32)
    given = kind(jnp.asarray(a)).column(kind(jnp.asarray(number))).array
    each = np.broadcast_to(a, (4, 5, *LANES))
    for lane in np.ndindex(LANES):
        np.testing.assert_array_equal(given[:, 0, *lane], each[:, number[0, 0, *lane], *lane])


def test_a_stage_is_a_unit_of_its_own_only_for_staged_matrices():
    @stage
    def square(a):
        return a @ a

    for kind, units in ((algebra.Staged, 1), (algebra.Stacked, 0), (algebra.Lanes, 0)):
        text = jax.jit(lambda x, kind=kind: square(kind.from_array(x)).to_array()).lower(random(2, 2)).as_text()
        assert text.count("call @square") == units
        assert ("inlineable" in text) == bool(units)


def test_select_is_where_without_a_call():
    x = jnp.arange(4.0)
    np.testing.assert_array_equal(select(x > 1, x, 0), jnp.where(x > 1, x, 0))
    assert "jit" not in str(jax.make_jaxpr(lambda x: select(x > 1, x, 0))(x))
