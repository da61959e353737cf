"""`affine_scan` against a plain loop, and its derivatives against those of `jax.lax.scan`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import fastscan
from fastscan import affine_scan

RUNS = [(1, None), (2, "sequential"), (15, None), (37, "chunked:4"), (16, "associative"), (17, "pallas_interpret")]
STRUCTURES = {"dense": 3, "diagonal": 3, "blocks": 4}


def dense(A, structure):
    """Matrices (..., D, D) of any structure."""
    if structure == "dense":
        return A
    if structure == "diagonal":
        return A[..., None] * np.eye(A.shape[-1])
    n = A.shape[-1]
    return np.moveaxis(A[..., None] * np.eye(n), -4, -3).swapaxes(-4, -3).swapaxes(-3, -2).reshape(*A.shape[:-3], 2 * n, 2 * n)


def by_loop(A, b, x0, starts, reverse):
    """The recurrence as it is written, with dense A (T, D, D)."""
    x, state = np.zeros(b.shape, np.result_type(A, b)), x0
    for t in range(len(b))[:: -1 if reverse else 1]:
        begins = (t == len(b) - 1 or starts[t + 1]) if reverse else starts[t]
        state = A[t] @ (x0 if begins else state) + b[t]
        x[t] = state
    return x


def by_scan(A, b, x0, starts, reverse):
    """The same by `jax.lax.scan`."""
    begins = jnp.append(starts[1:], True) if reverse else starts

    def step(state, row):
        A, b, begin = row
        state = A @ jnp.where(begin, x0, state) + b
        return state, state

    return jax.lax.scan(step, x0, (A, b, begins), reverse=reverse)[1]


def case(T, structure, *batch, dtype=np.float64, seed=0):
    r = np.random.default_rng(seed)
    D = STRUCTURES[structure]
    shape = {"dense": (D, D), "diagonal": (D,), "blocks": (2, 2, D // 2)}[structure]
    A, b, x0 = (r.normal(size=(*batch, *s)) for s in ((T, *shape), (T, D), (D,)))
    if np.issubdtype(dtype, np.complexfloating):
        A, b, x0 = (x + 1j * r.normal(size=x.shape) for x in (A, b, x0))
    return *(x.astype(dtype) for x in (0.5 * A, b, x0)), r.random((*batch, T)) < 0.3


def test_the_oracle_knows_blocks():
    A = np.arange(8.0).reshape(2, 2, 2)
    wanted = [[0, 0, 2, 0], [0, 1, 0, 3], [4, 0, 6, 0], [0, 5, 0, 7]]
    np.testing.assert_array_equal(dense(A, "blocks"), wanted)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(("T", "implementation"), RUNS)
def test_values(T, implementation, structure, reverse):
    A, b, x0, starts = case(T, structure)
    scan = functools.partial(affine_scan, reverse=reverse, structure=structure, implementation=implementation)
    nowhere = np.zeros(T, bool)
    nowhere[0] = True  # a sequence begins there anyway
    for given, found in ((starts, scan(A, b, x0, starts=starts)), (nowhere, scan(A, b, x0, starts=nowhere))):
        np.testing.assert_allclose(found, by_loop(dense(A, structure), b, x0, given | nowhere, reverse), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(scan(A, b), by_loop(dense(A, structure), b, 0 * x0, nowhere, reverse), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_one_matrix_for_all_steps(structure):
    A, b, x0, starts = case(9, structure)
    A = A[0]
    every = np.broadcast_to(dense(A, structure), (9, b.shape[1], b.shape[1]))
    found = affine_scan(A, b, x0, starts=starts, structure=structure)
    np.testing.assert_allclose(found, by_loop(every, b, x0, starts | (np.arange(9) == 0), False), rtol=1e-12, atol=1e-12)
    derivative = jax.grad(lambda A: jnp.sin(affine_scan(A, b, x0, structure=structure)).sum())(A)
    each = jax.grad(lambda A: jnp.sin(affine_scan(A, b, x0, structure=structure)).sum())(np.broadcast_to(A, (9, *A.shape)))
    np.testing.assert_allclose(derivative, each.sum(0), rtol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "complex64", "complex128"])
@pytest.mark.parametrize("implementation", [None, "chunked:3"])
def test_dtypes(dtype, implementation):
    A, b, x0, starts = case(23, "dense", dtype=np.dtype(dtype))
    found = affine_scan(A, b, x0, starts=starts, implementation=implementation)
    assert found.dtype == dtype
    wanted = by_loop(*(np.asarray(x, "complex128") for x in (A, b, x0)), starts | (np.arange(23) == 0), False)
    np.testing.assert_allclose(found, wanted, atol=64 * np.finfo(dtype).eps * np.abs(wanted).max())
    assert affine_scan(np.ones((2, 1, 1), int), np.ones((2, 1), int)).tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("implementation", [None, "chunked:3", "pallas_interpret"])
def test_derivatives_are_those_of_a_loop(implementation, reverse):
    A, b, x0, starts = case(11, "dense")
    weights = np.random.default_rng(1).normal(size=b.shape)

    def ours(A, b, x0):
        return jnp.sin(affine_scan(A, b, x0, starts=starts, reverse=reverse, implementation=implementation) * weights).sum()

    def plain(A, b, x0):
        return jnp.sin(by_scan(A, b, x0, jnp.asarray(starts).at[0].set(True), reverse) * weights).sum()

    for got, wanted in zip(jax.grad(ours, (0, 1, 2))(A, b, x0), jax.grad(plain, (0, 1, 2))(A, b, x0), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_derivatives_of_second_order(structure):
    A, b, x0, starts = case(4, structure)
    check_grads(lambda *a: jnp.sin(affine_scan(*a, starts=starts, structure=structure)), (A, b, x0), order=2, rtol=1e-5)


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_derivatives_with_respect_to_one_argument(argument):
    """And the transpose of the linear map from b to x."""
    given = case(5, "diagonal")[:3]
    each = jax.grad(lambda *a: jnp.sin(affine_scan(*a)).sum(), (0, 1, 2))(*given)[argument]
    np.testing.assert_allclose(jax.grad(lambda *a: jnp.sin(affine_scan(*a)).sum(), argument)(*given), each, rtol=1e-12)
    A, b, _ = given
    (found,) = jax.linear_transpose(lambda b: affine_scan(A, b), b)(b)
    np.testing.assert_allclose(found, jax.vjp(lambda b: affine_scan(A, b), b)[1](b)[0], rtol=1e-12)


def test_complex_derivatives():
    A, b, x0, _ = case(6, "diagonal", dtype=np.complex128)

    def ours(A, b, x0):
        return jnp.abs(affine_scan(A, b, x0)).sum()

    def plain(A, b, x0):
        return jnp.abs(by_scan(A[..., None] * jnp.eye(3), b, x0, jnp.zeros(6, bool), False)).sum()

    for got, wanted in zip(jax.grad(ours, (0, 1, 2))(A, b, x0), jax.grad(plain, (0, 1, 2))(A, b, x0), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-10)


@pytest.mark.parametrize("implementation", [None, "chunked:3"])
def test_batches_and_vmap(implementation):
    """Leading axes, `vmap` and one sequence after the other agree, and so do their gradients."""
    A, b, x0, starts = case(13, "dense", 2, 3)

    def total(A, b, x0, starts):
        return jnp.sin(affine_scan(A, b, x0, starts=starts, implementation=implementation)).sum()

    batched = jax.grad(total, (0, 1, 2))(A, b, x0, starts)
    mapped = jax.vmap(jax.vmap(jax.grad(total, (0, 1, 2))))(A, b, x0, starts)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), batched, mapped)
    one = jax.jit(jax.grad(total, (0, 1, 2)))(A[1, 2], b[1, 2], x0[1, 2], starts[1, 2])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x[1, 2], y, rtol=1e-9, atol=1e-12), batched, one)
    shared = affine_scan(A[0, 0], b, x0[0, 0], starts=starts[0, 0], structure="dense")
    np.testing.assert_allclose(shared[1, 1], affine_scan(A[0, 0], b[1, 1], x0[0, 0], starts=starts[0, 0]), rtol=1e-12)


@pytest.mark.parametrize("which", range(4))
def test_one_argument_is_mapped(which):
    """And its gradient; of starts, too."""
    given = list(case(7, "dense"))
    many = [np.stack([given[which], np.roll(given[which], 1, 0)]) if k == which else x for k, x in enumerate(given)]
    axes = [0 if k == which else None for k in range(4)]

    def run(A, b, x0, starts):
        return jnp.sin(affine_scan(A, b, x0, starts=starts)).sum(-1)

    def slope(A, b, x0, starts):
        return jax.grad(lambda b: run(A, b, x0, starts).sum())(b)

    for f in (run, slope):
        found = jax.vmap(f, axes)(*many)
        for i in range(2):
            one = [x[i] if k == which else x for k, x in enumerate(many)]
            np.testing.assert_allclose(found[i], f(*one), rtol=1e-9, atol=1e-12)


def test_between_devices():
    """Under `shard_map`, with vectors that differ between devices and matrices that do not; and the gradient."""
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    parts = jax.sharding.PartitionSpec
    A, b, x0, _ = case(5, "dense")

    def run(A, b):
        return affine_scan(A, b[0], x0)[None]

    mapped = jax.shard_map(run, mesh=mesh, in_specs=(parts(), parts("i")), out_specs=parts("i"))
    np.testing.assert_allclose(mapped(A, b[None]), run(A, b[None]), rtol=1e-12)
    got, wanted = (jax.grad(lambda A, f=f: (f(A, b[None]) ** 2).sum())(A) for f in (mapped, run))
    np.testing.assert_allclose(got, wanted, rtol=1e-10)


@pytest.mark.parametrize("structure", ["diagonal", "blocks"])
def test_batches_of_vectors(structure):
    A, b, x0, starts = case(13, structure, 5)
    found = affine_scan(A, b, x0, starts=starts, structure=structure)
    for i in range(5):
        alone = by_loop(dense(A[i], structure), b[i], x0[i], starts[i] | (np.arange(13) == 0), False)
        np.testing.assert_allclose(found[i], alone, rtol=1e-10, atol=1e-12)


def test_large_matrices_and_many_steps():
    """Dense ones of a library's size, and diagonals longer than one function takes."""
    r = np.random.default_rng(0)
    A, b = r.normal(size=(40, 20, 20)) / 8, r.normal(size=(40, 20))
    np.testing.assert_allclose(affine_scan(A, b), by_loop(A, b, np.zeros(20), np.arange(40) == 0, False), rtol=1e-9, atol=1e-9)
    A, b = r.uniform(-1, 1, size=(2, 30, 2000))
    wanted = np.zeros_like(b)
    for t in range(30):
        wanted[t] = A[t] * wanted[t - 1] + b[t]
    np.testing.assert_allclose(affine_scan(A, b), wanted, rtol=1e-12, atol=1e-12)


def test_one_entry_is_read_either_way():
    assert affine_scan(np.full((1, 1), 3.0), np.ones((1, 1)), np.ones(1)).tolist() == [[4.0]]
    with pytest.raises(ValueError, match="dense or diagonal"):
        affine_scan(np.ones((5, 1, 1)), np.ones((5, 5, 1)))


def test_halves_are_refused_traced_or_not():
    a = jnp.ones((5, 3), "bfloat16")
    for call in (affine_scan, jax.jit(affine_scan)):
        with pytest.raises(TypeError, match="A: bfloat16"):
            call(a, a)


def test_no_steps():
    assert affine_scan(np.zeros((0, 2, 2)), np.zeros((0, 2))).shape == (0, 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"A": np.ones((5, 5)), "b": np.ones((5, 5))}, "dense or diagonal"),
        ({"A": np.ones((5, 3, 2))}, r"A: shape \(5, 3, 2\).*wanted.*\(5, 3, 3\)"),
        ({"b": np.ones(5)}, r"b: shape \(5,\).*\(\.\.\., T, D\)"),
        ({"x0": np.ones(2)}, r"x0: shape \(2,\).*\(3,\)"),
        ({"starts": np.ones(4, bool)}, r"starts: shape \(4,\).*\(5,\)"),
        ({"A": np.ones((5, 2, 2, 1)), "structure": "blocks"}, "an even D for blocks"),
        ({"b": np.ones((5, 0)), "A": np.ones((5, 0))}, "at least 1"),
        ({"structure": "sparse"}, "structure: 'sparse'.*dense, diagonal, blocks"),
        ({"implementation": "fast"}, "implementation: 'fast'"),
        ({"implementation": "pallas_interpret", "b": np.ones((5, 3), complex)}, "complex128"),
    ],
)
def test_bad_input(change, words):
    given = {"A": np.ones((5, 3, 3)), "b": np.ones((5, 3))} | change
    with pytest.raises(ValueError, match=words):
        affine_scan(**given)


def test_bad_kinds():
    with pytest.raises(TypeError, match="starts: int64"):
        affine_scan(np.ones((5, 3, 3)), np.ones((5, 3)), starts=np.ones(5, int))
    with pytest.raises(TypeError, match="A: None given"):
        affine_scan(None, np.ones((5, 3)))
    assert fastscan.affine_scan is affine_scan
