"""What kernels compile to for GPUs that are not here. The full table is `python -m fastscan.profiling kernels`."""

import jax
import pytest

from fastscan.profiling.compiled.kernel_report import STEPS, program, report, step_bytes
from fastscan.profiling.compiled.machine_code import compile_kernel, lower_for_gpu, on_abstract_gpu, triton_kernels
from oracles.lgssm import SMOOTHER_KERNELS

pytest.importorskip("triton", reason="Triton's compiler, which pip has for Linux only")

STEPPING = {"kalman_filter_summarise", "kalman_filter_sweep", "rts_smoother_sweep"}
PER_STEP = 1_700
"""What the three kernels that go through a D = 4, m = 2 series may take in all, in instructions of a warp a step, of which some
150 change entries among lanes, for stores of whole sectors."""


def test_no_kernel_spills():
    rows = list(report("smoother", 4, 4, capabilities=[80]))
    assert {(row.kernel, row.sm) for row in rows} == {(name, 80) for name in SMOOTHER_KERNELS}
    for row in rows:
        assert row.spilled_bytes == 0, row
        assert 0 < row.registers <= 255, row
    assert {row.kernel for row in rows if row.per_step} == STEPPING


def test_instructions_of_a_step():
    rows = list(report("smoother", 4, 2, capabilities=[90]))
    assert all(row.spilled_bytes == 0 for row in rows)
    assert sum(row.per_step for row in rows) <= PER_STEP
    sweep = next(row for row in rows if row.kernel == "kalman_filter_sweep")
    assert '"fma": 2' in sweep.kinds  # some 280: multiply-adds are single instructions
    assert sweep.bytes_per_step == pytest.approx(4 * (2 + 4 + 16 + 1), rel=1e-3)  # y; mean, covariance, log density


SCORING = STEPPING - {"rts_smoother_sweep"} | {"kalman_score_sweep"}


def test_the_report_has_the_kernels_of_derivatives():
    function, arguments = program("score", 2, 2)
    kernels = {kernel.name for kernel in triton_kernels(lower_for_gpu(function, *arguments))}
    assert kernels >= SCORING | {"kalman_score_begin", "first_score", "decorrelate_back"}
    moved = step_bytes(function, *arguments)
    assert {name for name in kernels if moved[name]} == SCORING
    # mean, covariance, y; and the derivative with respect to y: all others are added up in registers
    assert moved["kalman_score_sweep"] == pytest.approx(4 * (2 + 4 + 2 + 2), rel=1e-3)


@pytest.mark.parametrize(
    ("D", "m", "dtype", "most"),
    [(2, 2, "float32", 0), (4, 4, "float32", 0), (5, 1, "float32", 0), (3, 3, "float64", 0), (4, 2, "float64", 200)],
)
def test_derivatives_are_added_up_in_registers(D, m, dtype, most):
    """In float64 at D = 4 a dozen numbers are spilled, which costs a dozen of a thousand instructions a step."""
    kernels = triton_kernels(lower_for_gpu(*flat(program("score", D, m, dtype))))
    cost = compile_kernel(next(kernel for kernel in kernels if kernel.name == "kalman_score_sweep"), 80)
    assert cost.spilled_bytes <= most
    assert cost.loop_kinds.get("local", 0) <= 0.02 * cost.loop_instructions


def flat(function_and_arguments):
    function, arguments = function_and_arguments
    return function, *arguments


def test_the_report_reads_the_kernel_that_it_names():
    function, arguments = program("likelihood", 1, 1)
    kernels = {kernel.name: kernel for kernel in triton_kernels(lower_for_gpu(function, *arguments))}
    moved = step_bytes(function, *arguments)
    assert kernels.keys() == moved.keys()
    assert {"kalman_likelihood_sweep", "kalman_likelihood_summarise"} == {name for name, b in moved.items() if b}
    for name, kernel in kernels.items():
        assert f"@{name}(" in kernel.ttir
    cost = compile_kernel(kernels["kalman_likelihood_sweep"], 90)
    assert cost.loop_instructions > 20
    assert STEPS % cost.loop_step_ratio == 0


@pytest.mark.parametrize("family", ["likelihood", "hmm_mode", "metropolis"])
def test_lowering_warns_of_nothing_that_these_tests_make_an_error(family):
    """JAX 0.11.2 and later warn that the Triton backend is deprecated: on a GPU, every test would end with that."""
    function, arguments = program(family, 1, 0 if family.startswith("hmm") else 1)
    with on_abstract_gpu():
        jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
