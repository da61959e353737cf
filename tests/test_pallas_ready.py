"""The recurrences' bodies, unchanged, inside a Pallas kernel: interpreted, and lowered for a GPU that is not here."""

import contextlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pallas_triton
from test_recurrences import CASES

from fastscan.kernels.algebra import Lanes

WIDTH = 128


def body(name):
    """A kernel that enters a summary of three rows, and steps through them, for every lane."""
    recurrence, params, state, row = CASES[name](np.random.default_rng(0), 2, 1)
    tree = jax.tree.structure((state, [row() for _ in range(3)]))

    def compute(arrays):
        state, rows = jax.tree.unflatten(tree, [Lanes.from_array(a) for a in arrays])
        summary = recurrence.identity(state)
        for x in rows[:2]:
            summary = recurrence.append(params, summary, x)
        summary = recurrence.combine(summary, recurrence.append(params, recurrence.identity(state), rows[2]))
        stepped = state
        for x in rows:
            stepped, _ = recurrence.step(params, stepped, x)
        outs = (recurrence.enter(state, summary), stepped)
        lane = jnp.zeros_like(arrays[0][0, 0])
        return [x + lane for x in jax.tree.leaves(outs)]

    def kernel(*refs):
        ins, out = refs[:-1], refs[-1]
        arrays = [[[ref[i, j, :] for j in range(ref.shape[1])] for i in range(ref.shape[0])] for ref in ins]
        leaves = compute([Grid(a) for a in arrays])
        for i, x in enumerate(leaves):
            out[i, :] = x

    r = np.random.default_rng(1)
    lanes = [CASES[name](r, 2, 1) for _ in range(WIDTH)]
    columns = [jax.tree.leaves((state, [row() for _ in range(3)])) for _, _, state, row in lanes]
    arrays = [np.stack(xs, -1).astype(np.float32) for xs in zip(*columns, strict=True)]
    return kernel, compute, arrays


class Grid:
    """Entries that were loaded one lane vector at a time, indexed as an array is: a kernel has no strided slices."""

    def __init__(self, rows):
        self.rows, self.shape = rows, (len(rows), len(rows[0]), WIDTH)

    def __getitem__(self, index):
        return self.rows[index[0]][index[1]]


def call(kernel, arrays, outputs, **options):
    shape = jax.ShapeDtypeStruct((outputs, WIDTH), jnp.float32)
    return pl.pallas_call(kernel, out_shape=shape, **options)(*arrays)


@pytest.mark.parametrize("name", CASES)
def test_interpreted(name):
    kernel, compute, arrays = body(name)
    wanted = compute([jnp.asarray(a) for a in arrays])
    given = call(kernel, arrays, len(wanted), interpret=True)
    np.testing.assert_allclose(given, np.stack(wanted), rtol=2e-3, atol=2e-3)
    half = len(wanted) // 2
    np.testing.assert_allclose(given[:half], given[half:], rtol=2e-2, atol=2e-2)  # the two ways to the same state


@pytest.mark.parametrize("name", CASES)
def test_lowers_for_a_gpu(name):
    kernel, compute, arrays = body(name)
    outputs = len(jax.eval_shape(compute, [jnp.asarray(a) for a in arrays]))
    options = {"compiler_params": pallas_triton.CompilerParams(num_warps=4, num_stages=1), "name": f"{name}_body"}
    with pretend_gpu(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the Triton lowering's, from jax 0.11
        traced = jax.jit(lambda *xs: call(kernel, xs, outputs, **options)).trace(*arrays)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "__gpu$xla.gpu.triton" in text
    assert f"{name}_body" in text


def pretend_gpu():
    """Jax 0.11 asks which GPU is meant; 0.10 does not."""
    try:
        from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

        device = AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
        return use_abstract_mesh(AbstractMesh((), (), abstract_device=device))
    except (ImportError, TypeError):
        return contextlib.nullcontext()
