"""Arrays of more entries than 32 bits can number: kernels find their places, as far as there are places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emulator.launches import compile_to_ptx
from emulator.machine import run
from emulator.memory import Array, Memory
from fastscan.kernels.algebra import Lanes
from fastscan.kernels.gpu.launch import launch
from fastscan.kernels.gpu.matrix_arrays import MOST_ROWS
from fastscan.kernels.lgssm import passes
from fastscan.kernels.plan import Launch, Plan
from fastscan.lgssm.check import check_model
from fastscan.lgssm.layout import series
from fastscan.profiling.compiled.machine_code import lower_for_gpu, pallas_calls, triton_kernels
from oracles.lgssm import random_params

LANES, ROWS = 32, 16
"""Of a program, and of a chunk."""
D, m = 4, 1
LARGE, SMALL = 300_000 * LANES, LANES
"""Chunks: of 153.6 million rows, whose covariances have more than 2^31 entries; and of one program."""


def kernels_of(chunks):
    """The smoother's kernels that go through rows, by name, and their calls' arrays."""
    rows = chunks * ROWS
    plan = Plan(rows, chunks, launch=Launch())
    model, _ = check_model(random_params(0, D, m, "float32"), rows + 1, None, np.dtype("float32"))

    def smooth(model, y):
        return passes.smooth(plan, series(plan, model, y, missing=False))

    arguments = model, jax.ShapeDtypeStruct((1, rows + 1, m), "float32")
    calls = {}
    for equation in pallas_calls(jax.make_jaxpr(smooth)(*arguments).jaxpr):
        calls.setdefault(equation.params["name"], equation)
    found = {}
    for kernel in triton_kernels(lower_for_gpu(smooth, *arguments)):
        if kernel.name not in found and kernel.grid[0] == chunks // LANES:
            call = calls[kernel.name]
            found[kernel.name] = kernel, *([v.aval for v in side] for side in (call.invars, call.outvars))
    return found


@pytest.mark.slow
def test_more_than_two_to_the_31_entries():
    """The last program of many does what the only one of few does with the same numbers, to the bit."""
    pytest.importorskip("triton", reason="Triton's compiler, which pip has for Linux only")
    r = np.random.default_rng(0)
    few, many = kernels_of(SMALL), kernels_of(LARGE)
    assert many.keys() >= {"kalman_filter_summarise", "kalman_filter_sweep", "rts_smoother_sweep"}
    for name, (large_kernel, *large) in many.items():
        kernel, *small = few[name]
        inputs = [(0.1 * r.standard_normal(a.shape) + 1).astype(a.dtype) for a in small[0]]
        results = []
        for one, avals, programs in ((kernel, small, np.arange(1)), (large_kernel, large, np.array([LARGE // LANES - 1]))):
            outputs = [np.full(a.shape, np.nan, a.dtype) for a in small[1]]
            sizes = [a.size * a.dtype.itemsize for a in (*avals[0], *avals[1])]
            held = [(x, False) for x in inputs] + [(x, True) for x in outputs]
            arrays = [
                Array(f"array {k}", x, written=w, size=size) for k, ((x, w), size) in enumerate(zip(held, sizes, strict=True))
            ]
            compiled = compile_to_ptx(one, 90)
            addresses = [int(Memory.address(k)) for k in range(len(arrays))]
            run(compiled.kernel, one.grid, addresses, Memory(arrays), shared_bytes=compiled.shared_bytes, programs=programs)
            results.append(outputs)
        jax.tree.map(np.testing.assert_array_equal, *results)
    assert max(a.size for _, _, outputs in many.values() for a in outputs) > 2**31


def test_rows_that_32_bits_can_not_number_are_refused():
    """Before anything is allocated."""
    rows = MOST_ROWS // 3 + 1

    def kernel(program):
        program.loop(lambda carry, x: (carry, x), Lanes([[np.float32(0)]]), 0, 0, False)

    def copied(x):
        form = Lanes([[jax.ShapeDtypeStruct((), x.dtype)]])
        return launch(Plan(rows, 1, launch=Launch()), "copy", kernel, [("step", x)], [("step", form, False)])

    jax.eval_shape(copied, jax.ShapeDtypeStruct((2, rows, 1, 1), jnp.float32))
    with pytest.raises(ValueError, match=r"3 sequences of 715,827,883 rows given.*2,147,483,647.*Take fewer"):
        jax.eval_shape(copied, jax.ShapeDtypeStruct((3, rows, 1, 1), jnp.float32))
