"""The laws that make a recurrence parallel, as properties."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastscan.kernels.affine.maps import AFFINE_MAPS, AffineMap, adjoint_maps, affine_maps
from fastscan.kernels.affine.structures import BLOCKS, DENSE, DIAGONAL
from fastscan.kernels.algebra import Lanes, Stacked
from fastscan.kernels.lgssm.gaussian import Gaussian, Transition
from fastscan.kernels.lgssm.kalman import KALMAN_FILTER, FilterInputs
from fastscan.kernels.lgssm.smoothing import RTS_SMOOTHER, SmootherInputs
from fastscan.kernels.plan import Plan
from fastscan.kernels.scan.driver import phases, run

SHAPES = {
    "filter": [(1, 1), (3, 2), (2, 3)],
    "smoother": [(1, 1), (3, 1)],
    "affine": [(1, 1), (3, 1)],
    "diagonal": [(3, 1)],
    "blocks": [(2, 1)],
    "adjoints": [(3, 1)],
    "adjoints of blocks": [(2, 1)],
}


def psd(r, n, rank):
    a = r.normal(size=(n, max(rank, 1)))
    return a @ a.T if rank else np.zeros((n, n))


def filter_case(r, D, m):
    """Singular covariances, exact observations and missing ones among the rest."""
    state = Gaussian(r.normal(size=(D, 1)), psd(r, D, r.integers(D + 1)))

    def row():
        weight = (r.random((m, 1)) < 0.8).astype(float)
        y = r.normal(size=(m, 1)) * weight
        noise = r.random((m, 1)) + 0.05
        return FilterInputs(
            r.normal(size=(D, D)) * 0.7,
            r.normal(size=(D, 1)),
            psd(r, D, r.integers(D + 1)),
            r.normal(size=(m, D)),
            noise,
            y,
            weight,
        )

    return KALMAN_FILTER, FilterInputs(), state, row


def smoother_case(r, D, _):
    state = Gaussian(r.normal(size=(D, 1)), psd(r, D, r.integers(D + 1)))

    def row():
        transition = Transition(r.normal(size=(D, D)), r.normal(size=(D, 1)), psd(r, D, r.integers(D + 1)))
        return SmootherInputs(Gaussian(r.normal(size=(D, 1)), psd(r, D, D)), transition)

    return RTS_SMOOTHER, Transition(None, None, None), state, row


def affine_case(r, D, _):
    return AFFINE_MAPS, AffineMap(), r.normal(size=(D, 1)), lambda: AffineMap(r.normal(size=(D, D)), r.normal(size=(D, 1)))


def structured_case(structure, make, r, D, _):
    """Where sequences begin at some rows, with a vector of their own."""
    matrix, vector = {"affine": ((D, D), (D, 1)), "diagonal_affine": ((D, 1), (D, 1)), "blocks_affine": ((4, D), (2, D))}[
        structure.name
    ]

    def row():
        return AffineMap(r.normal(size=matrix), r.normal(size=vector), (r.random((1, 1)) < 0.3).astype("int32"))

    params = AffineMap(fresh=r.normal(size=vector)) if make is affine_maps else AffineMap()
    return make(structure), params, r.normal(size=vector), row


CASES = {
    "filter": filter_case,
    "smoother": smoother_case,
    "affine": affine_case,
    "diagonal": functools.partial(structured_case, DIAGONAL, affine_maps),
    "blocks": functools.partial(structured_case, BLOCKS, affine_maps),
    "adjoints": functools.partial(structured_case, DENSE, adjoint_maps),
    "adjoints of blocks": functools.partial(structured_case, BLOCKS, adjoint_maps),
}


@functools.cache
def laws(name: str, D: int, m: int, kind: type):
    """A function of a case's numbers, returning the two sides of every law.

    Unrolled into lanes it is left to run operation by operation: XLA would take minutes to fuse it.
    """
    recurrence = CASES[name](np.random.default_rng(0), D, m)[0]

    def sides(params, state, xs):
        params, state, *xs = jax.tree.map(lambda a: kind.from_array(a[:, :, None, None]), (params, state, *xs))
        _, identity, append, combine, enter, step, *_ = recurrence
        empty = identity(state)
        one = [append(params, empty, x) for x in xs]
        two = append(params, one[0], xs[1])
        three = append(params, two, xs[2])
        stepped = state
        for x in xs:
            stepped, _ = step(params, stepped, x)
        pairs = {
            "associative": (combine(combine(one[0], one[1]), one[2]), combine(one[0], combine(one[1], one[2]))),
            "left identity": (combine(empty, three), three),
            "right identity": (combine(three, empty), three),
            "append combines with one step": (combine(two, one[2]), three),
            "enter an empty stretch": (enter(state, empty), state),
            "enter is step by step": (enter(state, three), stepped),
        }
        return jax.tree.map(lambda m: m.to_array(), pairs, is_leaf=lambda m: isinstance(m, kind))

    return jax.jit(sides) if kind is Stacked else sides


@pytest.mark.parametrize(
    ("name", "D", "m", "kind"),
    [(name, *shape, Stacked) for name in CASES for shape in SHAPES[name]] + [(name, 2, 1, Lanes) for name in CASES],
)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_laws(name, D, m, kind, seed):
    _, params, state, row = CASES[name](np.random.default_rng(seed), D, m)
    for law, (left, right) in laws(name, D, m, kind)(params, state, [row() for _ in range(3)]).items():
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
            scale = max(1.0, float(jnp.max(jnp.abs(b))))
            np.testing.assert_allclose(*np.broadcast_arrays(a, b), atol=2e-8 * scale, err_msg=law)


@functools.partial(jax.jit, static_argnums=0)
def both_ways(plan, state, maps):
    """The series run backward, and the reversed series run forward: last states and outputs."""

    def joined(maps, reverse):
        end, out = run(plan, AFFINE_MAPS, AffineMap(), state, maps, reverse=reverse)
        return end, phases(plan).join(out)

    return joined(maps, True), joined(jax.tree.map(lambda x: x[:, ::-1], maps), False)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), chunks=st.sampled_from([1, 2, 3, 7]))
def test_reversed_time(seed, chunks):
    """A recurrence run backward over a series is the recurrence run forward over the reversed series."""
    r = np.random.default_rng(seed)
    maps = AffineMap(r.normal(size=(1, 7, 2, 2)), r.normal(size=(1, 7, 2, 1)))
    state = r.normal(size=(2, 1, 1, 1))
    (backward, out), (forward, mirrored) = both_ways(Plan(7, chunks), state, maps)
    np.testing.assert_allclose(backward, forward, rtol=1e-9)
    np.testing.assert_allclose(out, mirrored[:, ::-1], rtol=1e-9)
    z, wanted = state[..., 0, 0], []
    for t in range(7):
        z = maps.E[0, 6 - t] @ z + maps.e[0, 6 - t]
        wanted.append(z)
    np.testing.assert_allclose(mirrored[0], wanted, rtol=1e-7, atol=1e-9)
