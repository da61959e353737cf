"""What is run: the cases that tests, measurements, the crossover table and the report share.

Every case is one call on one set of sizes. The groups are in the order of their importance: a measurement that ends early
has the first ones.
"""

from typing import NamedTuple


class Case(NamedTuple):
    """One piece of work.

    Attributes:
        operation: a key of `fastscan.profiling.operations.OPERATIONS`.
        D: state dimensions; of an HMM its number of states, K.
        m: emission dimensions; of an HMM 0.
        T: time steps.
        B: sequences; 1 means no batch axis. Of "lgssm_leapfrogs", chains.
        dtype: "float32" or "float64".
    """

    operation: str
    D: int
    m: int
    T: int
    B: int = 1
    dtype: str = "float32"

    def __str__(self) -> str:
        sizes = f"K={self.D}" if self.operation.startswith("hmm") else f"D={self.D} m={self.m}"
        batch = f" B={self.B:,}" if self.B > 1 else ""
        return f"{self.operation} {sizes} T={self.T:,}{batch} {self.dtype}"


LGSSM_SIZES = ((4, 2), (1, 1), (16, 8), (2, 1), (8, 4))
"""D and m of linear-Gaussian models."""

STATES = (5, 2, 16, 32)
"""K of hidden Markov models."""

BATCH = 64
MEASURED_BY = {
    "lgssm": "lgssm_smoother",
    "hmm": "hmm_smoother",
    "hmm_mode": "hmm_posterior_mode",
    "hmm_sample": "hmm_posterior_sample",
}
"""The operation by which each of `fastscan.dispatch.FAMILIES` is measured for the crossover table."""


def grid() -> list[Case]:
    """What the crossover table is fitted to: every second length first, models of middle size before the others."""
    cases = []
    for lengths, batched in (((1_000, 100, 10_000, 10), (1_000, 100, 10)), ((300, 100_000), ())):
        sizes = [(length, 1) for length in lengths] + [(length, BATCH) for length in batched]
        for place in range(len(LGSSM_SIZES)):
            cases += [Case("lgssm_smoother", *LGSSM_SIZES[place], T, B) for T, B in sizes]
            if place < len(STATES):
                cases += [Case(name, STATES[place], 0, T, B) for name in _HMM_OPERATIONS for T, B in sizes]
    return cases


_HMM_OPERATIONS = tuple(MEASURED_BY[family] for family in ("hmm", "hmm_sample", "hmm_mode"))


def held_out() -> list[Case]:
    """Sizes between the grid's, by which the choices that its table makes are judged."""
    return [
        *(Case("lgssm_smoother", 3, 1, T, B) for T, B in ((50, 1), (200, 1), (2_000, 1), (30_000, 1), (200, 8), (500, 256))),
        *(Case("lgssm_smoother", 6, 2, T, B) for T, B in ((50, 1), (2_000, 1), (500, 16))),
        *(Case("lgssm_smoother", 12, 4, T, 1) for T in (200, 5_000)),
        *(Case("hmm_smoother", 3, 0, T, B) for T, B in ((500, 1), (5_000, 1), (50_000, 1), (500, 16))),
        *(Case("hmm_smoother", 10, 0, T, B) for T, B in ((500, 1), (30_000, 1), (200, 128))),
        *(Case("hmm_posterior_sample", 3, 0, T, B) for T, B in ((500, 1), (5_000, 1), (50_000, 1), (500, 16))),
        *(Case("hmm_posterior_mode", 10, 0, T, B) for T, B in ((500, 1), (5_000, 1), (30_000, 1), (200, 128))),
    ]


def others() -> list[Case]:
    """Functions and sizes that the table is not fitted to: what the README tells, and the seeds' curves."""
    return [
        *(Case("lgssm_smoother", 4, 2, T) for T in (100, 1_000, 10_000, 100_000, 1_000_000)),
        *(Case("lgssm_posterior_sample", 4, 2, T) for T in (10_000, 100)),
        *(Case("lgssm_filter", 4, 2, T) for T in (10, 1_000, 10_000)),
        *(Case("hmm_filter", 5, 0, T) for T in (10, 1_000, 100_000)),
        Case("lgssm_loglik_gradient", 4, 2, 10_000),
        Case("hmm_loglik_gradient", 5, 0, 100_000),
        Case("lgssm_mean_gradient", 4, 2, 10_000),
        *(Case("lgssm_leapfrogs", 2, 10, 100, chains) for chains in (1, 64)),
        Case("lgssm_smoother", 4, 2, 10_000, dtype="float64"),
        Case("hmm_smoother", 5, 0, 100_000, dtype="float64"),
        *(Case("hmm_smoother", 5, 0, T) for T in (1_000, 10_000)),
        *(Case("hmm_posterior_sample", K, 0, T) for K in (5, 2) for T in (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)),
    ]


def on_a_gpu() -> list[Case]:
    """The cases for minutes on a scarce machine."""
    return [
        Case("lgssm_smoother", 4, 2, 1_000),
        Case("lgssm_smoother", 4, 2, 100_000),
        Case("lgssm_smoother", 4, 2, 1_000_000),
        Case("hmm_smoother", 5, 0, 1_000_000),
        Case("hmm_posterior_sample", 5, 0, 1_000_000),
        Case("lgssm_smoother", 4, 2, 1_000, 1_024),
        Case("lgssm_smoother", 4, 2, 10_000),
        Case("hmm_posterior_mode", 5, 0, 1_000_000),
        Case("lgssm_smoother_with_gaps", 4, 2, 1_000_000),
        Case("lgssm_smoother_with_gaps", 2, 1, 1_000, 3),
        Case("lgssm_smoother", 2, 1, 99_991),
        *(Case("lgssm_smoother", 2, 1, T) for T in (1, 2, 31)),
        Case("lgssm_smoother", 4, 2, 10_000_000),
        Case("lgssm_marginal_loglik", 4, 2, 1_000_000),
        Case("lgssm_posterior_sample", 4, 2, 1_000_000),
        Case("lgssm_smoother", 1, 1, 1_000_000),
        Case("lgssm_filter", 4, 2, 1_000_000),
        Case("hmm_smoother", 5, 0, 1_000, 1_024),
        Case("hmm_smoother", 2, 0, 1_000_000),
        Case("lgssm_smoother", 4, 2, 20, 100_000),
        Case("lgssm_smoother", 6, 1, 100_000),
        Case("lgssm_smoother_with_gaps", 6, 2, 1_000),
        Case("lgssm_smoother", 4, 2, 99_991, dtype="float64"),
        Case("hmm_smoother", 4, 0, 99_991, dtype="float64"),
    ]


def toy() -> list[Case]:
    """Every operation that a GPU runs, in seconds on a CPU."""
    return [
        Case("lgssm_smoother", 1, 1, 65),
        Case("lgssm_smoother_with_gaps", 1, 1, 6, 3),
        Case("lgssm_marginal_loglik", 1, 1, 6),
        Case("lgssm_posterior_sample", 1, 1, 6),
        Case("lgssm_filter", 1, 1, 1),
        Case("hmm_smoother", 2, 0, 40, dtype="float64"),
        Case("hmm_posterior_sample", 2, 0, 6),
        Case("hmm_posterior_mode", 2, 0, 6),
    ]


GROUPS = {"grid": grid, "held-out": held_out, "others": others, "gpu": on_a_gpu, "toy": toy}
"""What ``--cases`` takes."""


def cases(*groups: str) -> list[Case]:
    """The cases of some groups in order, each once."""
    return list(dict.fromkeys(case for group in groups for case in GROUPS[group]()))
