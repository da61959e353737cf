"""Matrices that whole programs hold, against NumPy and the other representation; and their products by matrix units."""

import jax.numpy as jnp
import numpy as np
import pytest

from fastscan.kernels.algebra import Stacked, Tile, downdate, eliminate, eye, multiply_add, pivots, solve, symmetric, zeros
from fastscan.kernels.algebra.tile import padded, sides
from fastscan.kernels.gpu.arithmetic import InterpretedTile
from oracles.lgssm import close

SIZES = [1, 2, 7, 16, 17, 33]


def random(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).normal(size=shape)


def psd(n, rank=None, seed=0):
    a = random(n, n if rank is None else rank, seed=seed)
    return a @ a.T


def tiles(*arrays, kind=Tile):
    return tuple(kind.from_array(jnp.asarray(x)) for x in arrays)


def stacked(*arrays):
    return tuple(Stacked(jnp.asarray(x)[..., None, None]) for x in arrays)


def entries(matrix):
    """The matrix; what lies past it must be zero."""
    if isinstance(matrix, Stacked):
        return np.asarray(matrix.array)[..., 0, 0]
    n, p = matrix.shape
    array = np.asarray(matrix.array).reshape(padded(n), padded(p))
    rest = array.copy()
    rest[:n, :p] = 0
    assert not rest.any()
    return array[:n, :p]


@pytest.mark.parametrize(("n", "p"), [(1, 1), (1, 20), (2, 3), (7, 1), (16, 16), (17, 3), (33, 20)])
def test_operators(n, p):
    a, b, c, row, column, one = random(n, p), random(p, n), random(n, p, seed=1), random(1, p), random(n, 1), random(1, 1)
    A, B, C, r, k, s = tiles(a, b, c, row, column, one)
    checks = (
        (A @ B, a @ b),
        (A @ B @ A, a @ b @ a),
        (k @ r, column @ row),
        (r @ B, row @ b),
        (B @ k, b @ column),
        (A + C, a + c),
        (A - C, a - c),
        (A * C, a * c),
        (A + r, a + row),
        (A - k, a - column),
        (A * r, a * row),
        (A * k, a * column),
        (A * s, a * one),
        (s + A, a + one),
        (A * 2.0, 2 * a),
        (A.T, a.T),
        (A.maximum(r), np.maximum(a, row)),
        (multiply_add(k, r, A), a + column @ row),
        (multiply_add(A, B, s), a @ b + one),
        (symmetric(A @ B), (a @ b + (a @ b).T) / 2),
        ((A @ B).diagonal(), np.diagonal(a @ b)[:, None]),
        (A.reduce(jnp.add), a.sum(1, keepdims=True)),
        ((A * -1.0).reduce(jnp.maximum), (-np.abs(a)).max(1, keepdims=True) if (a > 0).all() else (-a).max(1, keepdims=True)),
        (Tile.elementwise(lambda x: -jnp.abs(x) - 1, A).reduce(jnp.maximum), (-np.abs(a) - 1).max(1, keepdims=True)),
        (Tile.elementwise(lambda x: jnp.abs(x) + 1, A).reduce(jnp.minimum), (np.abs(a) + 1).min(1, keepdims=True)),
        (Tile.elementwise(lambda x, y: jnp.exp(x) + y, A, r), np.exp(a) + row),
        (A.accumulated(), np.cumsum(a, 0)),
        (A.block(n - 1, n), a[-1:]),
        (A.block(0, n), a),
        (A.columns(p - 1, p), a[:, -1:]),
        (A.column(Tile(jnp.int32(p - 1), (1, 1))), a[:, -1:]),
        (Tile.vstack([A.block(i, i + 1) for i in reversed(range(n))]), a[::-1]),
        (A.max_plus(B), (a[:, :, None] + b[None]).max(1)),
        (r.max_plus(B), (row[:, :, None] + b[None]).max(1)),
        (B.max_plus(k), (b[:, :, None] + column[None]).max(1)),
        (Tile.from_array(A.to_array()), a),
        (Tile.zeros(n, p, a.dtype), np.zeros((n, p))),
    )
    for number, (given, wanted) in enumerate(checks):
        assert given.shape == wanted.shape, number
        close(entries(given), wanted, 1e-13, str(number))
    assert Tile.form(n, p, a.dtype).array.shape == sides(n, p)


@pytest.mark.parametrize(
    "values",
    [
        np.eye(1),
        np.eye(20),
        3 * np.eye(4),
        np.zeros((3, 20)),
        np.full((20, 1), 2.0),
        np.triu(np.ones((5, 5))),
        np.tri(20, 20, -1),
        np.where(np.eye(3) > 0, 0.0, -np.inf),
        np.arange(20.0)[:, None],
        1 - np.arange(7.0)[None],
    ],
)
def test_constants(values):
    np.testing.assert_array_equal(entries(zeros(*tiles(np.ones((2, 2))), 1, 1).constant(values)), values)


def test_constants_that_no_kernel_has():
    with pytest.raises(NotImplementedError, match="no sequence"):
        tiles(np.ones((2, 2)))[0].constant(np.array([[1.0, 4.0, 9.0]]))
    with pytest.raises(NotImplementedError, match="Rows 0 to 2 of 3"):
        tiles(np.ones((3, 2)))[0].block(0, 2)


@pytest.mark.parametrize(("n", "rank"), [*((n, None) for n in SIZES), (2, 1), (17, 3), (16, 15)])
def test_systems_are_those_of_the_other_representation(n, rank):
    """Also of singular matrices, where both must take the same pivots for zero."""
    a, b = psd(n, rank), random(n, 5)
    for function in (eliminate, solve):
        if function is solve and (rank or n) < n:
            continue  # which the other representation then does in another order
        for given, wanted in zip(function(*tiles(a, b)), function(*stacked(a, b)), strict=True):
            close(entries(given), entries(wanted), 1e-10)
    L, d, W = map(entries, eliminate(*tiles(a, np.eye(n))))
    close(L * d[:, 0] @ L.T, a, 1e-12)
    close(W @ L, np.eye(n), 1e-12)
    close(entries(pivots(*tiles(a))), d, 1e-12)


def test_an_indefinite_matrix():
    a = np.diag([1.0, -1.0, 1.0])
    assert np.isnan(entries(pivots(*tiles(a), checked=True))[1])
    assert not np.isnan(entries(pivots(*tiles(a)))).any()


def test_downdates_are_symmetric_to_the_last_bit():
    a, column, scale = tiles(psd(20).astype(np.float32), random(20, 1).astype(np.float32), np.full((1, 1), 0.3, np.float32))
    given = entries(downdate(a, column, scale))
    np.testing.assert_array_equal(given, given.T)
    close(given, psd(20) - 0.3 * random(20, 1) @ random(20, 1).T, 1e-6)


@pytest.mark.parametrize("n", [1, 2, 17])
def test_loops_over_rows(n):
    a, b = random(n, 3), random(n, 1)

    def body(total, row):
        x, y = row
        return total + x * y, (x + total, y)

    total, (sums, same) = Tile.over_rows(body, zeros(*tiles(b), 1, 3), tiles(a, b))
    before = np.cumsum(a * b, 0) - a * b
    close(entries(total), (a * b).sum(0, keepdims=True), 1e-13)
    close(entries(sums), a + before, 1e-13)
    close(entries(same), b, 0)
    assert eye(sums, 4).shape == (4, 4)


def test_products_by_matrix_units():
    """Three products of TF32 are as good as float32, and one alone is not."""
    a, b = random(40, 50).astype(np.float32), random(50, 30).astype(np.float32)
    size = np.abs(a).astype(np.float64) @ np.abs(b)
    exact = a.astype(np.float64) @ b

    def error(given):
        return (np.abs(np.asarray(given, np.float64) - exact) / size).max()

    A, B = tiles(a, b, kind=InterpretedTile)
    assert error(entries(A @ B)) < 2**-21
    assert error(InterpretedTile.units(A.array, B.array)[:40, :30]) > 2**-14
    doubles = tiles(a.astype(np.float64), b.astype(np.float64), kind=InterpretedTile)
    assert error(entries(doubles[0] @ doubles[1])) < 1e-15
