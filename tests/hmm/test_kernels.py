"""The CheckedHMM's GPU kernels: what is lowered is they, and what they compile to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan.dispatch.choice import How, choose
from fastscan.hmm import inference as hmm_inference
from fastscan.hmm.check import CheckedHMM
from fastscan.profiling.compiled.kernel_report import report
from fastscan.profiling.compiled.machine_code import lower_for_gpu

FILTER = {"hmm_first_observation", "hmm_filter_summarise", "hmm_filter_summaries_summarise", "hmm_filter_summaries_sweep"}
SMOOTHER = FILTER | {
    "hmm_filter_sweep",
    "hmm_filter_hindsight_sweep",
    "hmm_smoother_with_counts_begin",
    "hmm_smoother_with_counts_sweep",
}
SUMMARIES = ("summarise", "summaries_summarise", "summaries_sweep")
SAMPLER = {f"hmm_sampler_{phase}" for phase in (*SUMMARIES, "in_chunks_begin", "in_chunks_sweep")}
SAMPLER |= {"hmm_first_observation", "last_state"}
PATHS = {f"paths_of_5_{phase}" for phase in ("summaries_summarise", "summaries_sweep", "sweep")}
MODE = {f"viterbi_{phase}" for phase in (*SUMMARIES, "in_chunks_begin", "in_chunks_sweep")} | {"first_state"}


def test_lowered_programs():
    """The public functions' programs for a GPU that is not here: kernels by their names, and no loop outside of them."""
    T, K = 3_001, 5
    shapes = (1, K), (1, 1, K, K), (1, T, K)
    model = CheckedHMM(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    uniform = jax.ShapeDtypeStruct((1, T, 1, 1), jnp.float32)

    def plan(family):
        choice = choose(None, T=T, B=1, D=K, dtype=np.float32, family=family, device="NVIDIA H200")
        assert choice.implementation == "pallas"
        return choice.plan

    programs = {
        "smoother": (SMOOTHER, lambda model: hmm_inference.smooth_states(model, How(plan("hmm")), False, True), (model,)),
        "gradient": (
            SMOOTHER,
            jax.value_and_grad(lambda model: hmm_inference.loglik(model, How(plan("hmm")), False).sum()),
            (model,),
        ),
        "mode": (MODE | PATHS, lambda model: hmm_inference.most_likely_states(model, How(plan("hmm_mode")), False), (model,)),
        "sampler": (
            SAMPLER | PATHS,
            lambda model, u: hmm_inference.sample_states(model, u, How(plan("hmm_sample")), False),
            (model, uniform),
        ),
    }
    for kernels, function, arguments in programs.values():
        text = lower_for_gpu(function, *arguments).as_text()
        assert all(f'name = "{name}"' in text for name in kernels), kernels
        assert "stablehlo.while" not in text


@pytest.mark.parametrize(("family", "K", "capability"), [("hmm_smoother", 5, 80), ("hmm_mode", 5, 90), ("hmm_sampler", 4, 90)])
def test_no_kernel_spills(family, K, capability):
    """The largest K is in the kernel report's record."""
    pytest.importorskip("triton", reason="Triton's compiler, which pip has for Linux only")
    rows = list(report(family, K, 0, capabilities=[capability]))
    assert sum(row.per_step > 0 for row in rows) >= 3
    for row in rows:
        assert row.spilled_bytes == 0, row
        assert 0 < row.registers <= 255, row
