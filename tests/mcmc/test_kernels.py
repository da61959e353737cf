"""The Metropolis kernel: it is what is lowered, for both ways to a GPU, and it holds its chains in registers."""

import jax
import jax.numpy as jnp
import pytest

from fastscan.kernels.mcmc.metropolis import Schedule
from fastscan.kernels.plan import Launch
from fastscan.mcmc import inference
from fastscan.mcmc.target import Form
from fastscan.profiling.compiled.kernel_report import program, report
from fastscan.profiling.compiled.machine_code import lower_for_gpu
from oracles.mcmc import mixture

LOWERINGS = {"triton": Launch(), "mosaic": Launch("mosaic", lanes=128, warps=4)}


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize(("keep", "thin", "records", "loops"), [("samples", 1, 500, 0), ("moments", 3, 5_000, 1)])
def test_lowered_programs(lowering, keep, thin, records, loops):
    """One launch; of moments, one for every block of records and one for what remains."""
    form = Form(jax.tree.structure(0), ((1,),), "float32")
    task = inference.Task(mixture, form, LOWERINGS[lowering])
    row, count = jax.ShapeDtypeStruct((200,), jnp.float32), jax.ShapeDtypeStruct((200,), jnp.uint32)
    walkers = inference.Walkers(jax.ShapeDtypeStruct((1, 200), jnp.float32), row, row, count, count)

    def run(words, factor, walkers):
        return inference.run(task, Schedule(thin, keep), records, words, factor, walkers)

    text = lower_for_gpu(run, count.update(shape=(2,)), row.update(shape=(1, 1)), walkers).as_text()
    if lowering == "triton":
        assert text.count('name = "metropolis"') == 1 + loops
    else:
        assert "mosaic_gpu" in text
        assert "__gpu$xla.gpu.triton" not in text
    assert text.count("stablehlo.while") == loops


@pytest.mark.parametrize(
    ("D", "dtype", "capability"),
    [
        (1, "float32", 80),
        (1, "float32", 90),
        (1, "float64", 90),
        (10, "float32", 80),
        (10, "float32", 90),
        pytest.param(16, "float32", 90, marks=pytest.mark.slow),
    ],
)
def test_no_kernel_spills(D, dtype, capability):
    pytest.importorskip("triton", reason="Triton's compiler, which pip has for Linux only")
    (row,) = report("metropolis", D, 0, dtype=dtype, capabilities=[capability])
    assert row.kernel == "metropolis"
    assert row.spilled_bytes == 0, row
    assert 0 < row.registers <= 255, row
    assert row.per_step > 0


def test_streams_in_a_lane():
    """Twice as many chains in a warp: twice the instructions at most, which hide one another's latency."""
    pytest.importorskip("triton", reason="Triton's compiler, which pip has for Linux only")
    function, arguments = program("metropolis", 1, 0, how=Launch(lanes=64))
    assert arguments[-1].position.shape == (1, 64)
    assert 'name = "metropolis"' in lower_for_gpu(function, *arguments).as_text()
