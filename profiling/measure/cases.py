"""The cases that tests, measurements, the crossover table and the report share.

Every case is one call on one set of sizes. The groups are in the order of their importance: a measurement that ends early
has the first ones.
"""

from typing import NamedTuple

from fastscan.dispatch.choice import Choice, choose


class Case(NamedTuple):
    """One piece of work.

    Attributes:
        operation: a key of `fastscan.profiling.measure.operations.OPERATIONS`.
        D: state dimensions; of an HMM its number of states, K; of Metropolis coordinates.
        m: emission dimensions; of what has no emissions 0.
        T: time steps.
        B: sequences; 1 means no batch axis. Of "lgssm_leapfrogs" and of Metropolis, chains.
        dtype: "float32" or "float64".
    """

    operation: str
    D: int
    m: int
    T: int
    B: int = 1
    dtype: str = "float32"

    @property
    def family(self) -> str:
        """The one of `fastscan.dispatch.choice.FAMILIES` that the function belongs to."""
        return family_of(self.operation)

    def choice(self, implementation: str | None, *, device: str | None = None, dtype: str | None = None) -> Choice:
        """Asks dispatch what an implementation's name, or None, stands for; with another dtype if that is given.

        Its plan is for sequences that may differ in all; those of a case have the same parameters, so more of its loops are one
        function.
        """
        dtype = dtype or self.dtype
        return choose(implementation, T=self.T, B=self.B, D=self.D, m=self.m, dtype=dtype, family=self.family, device=device)

    def __str__(self) -> str:
        sizes = f"K={self.D}" if self.operation.startswith("hmm") else f"D={self.D} m={self.m}"
        batch = f" B={self.B:,}" if self.B > 1 else ""
        return f"{self.operation} {sizes} T={self.T:,}{batch} {self.dtype}"


LGSSM_SIZES = ((4, 2), (1, 1), (16, 8), (2, 1), (8, 4))
"""D and m of linear-Gaussian models."""

STATES = (5, 2, 16, 32)
"""K of hidden Markov models."""

BATCH = 64
METROPOLIS = "metropolis"
"""A family that `fastscan.dispatch` knows nothing of: it runs as "xla" or as "pallas"."""
MEASURED_BY = {
    "lgssm": "lgssm_smoother",
    "lgssm_varying": "lgssm_smoother_varying",
    "hmm": "hmm_smoother",
    "hmm_mode": "hmm_posterior_mode",
    "hmm_sample": "hmm_posterior_sample",
}
"""The operation by which each of `fastscan.dispatch.choice.FAMILIES` is measured for the crossover table."""


def family_of(operation: str) -> str:
    """Returns the one of `fastscan.dispatch.choice.FAMILIES` that a function's name belongs to: its own, or that of its kind of
    model.
    """
    own = (family for family, name in MEASURED_BY.items() if name == operation)
    return next(own, operation.split("_")[0])


def grid() -> list[Case]:
    """Lists the cases that the crossover table is fitted to: every second length first, models of middle size before the
    others.
    """
    cases = []
    for sizes in _GRID:
        for place in range(len(LGSSM_SIZES)):
            both = sizes + _MORE_BATCHES if sizes is _GRID[1] and place in _MORE_BATCHES_AT else sizes
            cases += [Case("lgssm_smoother", *LGSSM_SIZES[place], T, B) for T, B in both]
            if place in _VARYING_AT:
                cases += [Case("lgssm_smoother_varying", *LGSSM_SIZES[place], T, B) for T, B in sizes]
            if place < len(STATES):
                cases += [Case(name, STATES[place], 0, T, B) for name in _HMM_OPERATIONS for T, B in both]
    return cases


_GRID = (
    ((1_000, 1), (100, 1), (10_000, 1), (10, 1), (1_000, BATCH), (100, BATCH), (10, BATCH)),
    ((300, 1), (100_000, 1)),
)
"""T and B of every size of model, in two rounds."""
_MORE_BATCHES = ((1_000, 8), (100, 8), (10, 8), (100, 512), (30, 512), (10, 512))
_MORE_BATCHES_AT = (0, 2)
"""The sizes that are measured with more batches: models of middle and of large size only."""
_VARYING_AT = (0, 2, 3)
"""The sizes that are measured with varying dynamics: models of middle, of large and of small size only."""
_HMM_OPERATIONS = tuple(MEASURED_BY[family] for family in ("hmm", "hmm_sample", "hmm_mode"))


def held_out() -> list[Case]:
    """Sizes between the grid's, by which the choices that its table makes are judged."""
    return [
        *(Case("lgssm_smoother", 3, 1, T, B) for T, B in ((50, 1), (200, 1), (2_000, 1), (30_000, 1), (200, 4), (500, 256))),
        *(Case("lgssm_smoother", 6, 2, T, B) for T, B in ((50, 1), (2_000, 1), (500, 16))),
        *(Case("lgssm_smoother", 12, 4, T, 1) for T in (200, 5_000)),
        *(Case("hmm_smoother", 3, 0, T, B) for T, B in ((500, 1), (5_000, 1), (50_000, 1), (500, 16))),
        *(Case("hmm_smoother", 10, 0, T, B) for T, B in ((500, 1), (30_000, 1), (200, 128))),
        *(Case("hmm_posterior_sample", 3, 0, T, B) for T, B in ((500, 1), (5_000, 1), (50_000, 1), (500, 16))),
        *(Case("hmm_posterior_mode", 10, 0, T, B) for T, B in ((500, 1), (5_000, 1), (30_000, 1), (200, 128))),
    ]


def others() -> list[Case]:
    """Lists functions and sizes that the table is not fitted to: those that the READMEs show, and those of the report's
    curves.
    """
    return [
        *(Case("lgssm_smoother", 4, 2, T) for T in (100, 1_000, 10_000, 100_000, 1_000_000)),
        *(Case("lgssm_smoother_remembering", 4, 2, T) for T in (1_000, 10_000)),
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


def large() -> list[Case]:
    """Lists models that no thread of a GPU holds, as large as the field has them."""
    return [
        Case("lgssm_smoother", 20, 4, 1_000),
        Case("lgssm_posterior_sample", 30, 16, 10_000, 32),
        Case("hmm_posterior_sample", 100, 0, 10_000, 32),
        Case("lgssm_smoother", 12, 6, 1_000, 64),
        Case("hmm_smoother", 32, 0, 10_000, 32),
        Case("lgssm_filter", 64, 32, 1_000, 32),
    ]


def long_or_many() -> list[Case]:
    """Lists large models with one long sequence, which is cut into chunks or not, or with many short ones; those that may take
    all memory of a GPU last.
    """
    return [
        Case("hmm_posterior_sample", 32, 0, 100_000),
        Case("hmm_smoother", 32, 0, 100_000),
        Case("hmm_posterior_mode", 32, 0, 100_000),
        Case("lgssm_smoother", 12, 6, 100, 4_096),
        Case("lgssm_smoother", 20, 4, 100_000),
        Case("hmm_smoother", 100, 0, 100_000),
    ]


def on_a_gpu() -> list[Case]:
    """Lists the cases for minutes on a scarce machine."""
    return [
        Case("lgssm_smoother", 4, 2, 1_000),
        Case("lgssm_smoother", 4, 2, 100_000),
        Case("lgssm_smoother", 4, 2, 1_000_000),
        Case("hmm_smoother", 5, 0, 1_000_000),
        Case("hmm_posterior_sample", 5, 0, 1_000_000),
        Case("lgssm_smoother", 4, 2, 1_000, 1_024),
        *large(),
        Case("lgssm_smoother", 4, 2, 10_000),
        Case("hmm_posterior_mode", 5, 0, 1_000_000),
        Case("metropolis_positions", 1, 0, 200, 1_000),
        Case("metropolis_moments", 1, 0, 10_000, 1_000),
        Case("lds_inference", 4, 0, 100_000),
        Case("lgssm_loglik_gradient", 4, 2, 100_000),
        Case("hmm_loglik_gradient", 5, 0, 100_000),
        Case("lgssm_smoother_with_gaps", 4, 2, 1_000_000),
        Case("lgssm_smoother_with_gaps", 2, 1, 1_000, 3),
        Case("metropolis_moments", 1, 0, 1_000_000, 1_000),
        *(Case(name, 5, 0, T) for T in (10_000, 100_000) for name in _HMM_OPERATIONS),
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
        *long_or_many(),
    ]


def toy() -> list[Case]:
    """Lists every operation that a GPU runs, in seconds on a CPU."""
    return [
        Case("lgssm_smoother", 1, 1, 65),
        Case("lgssm_smoother_with_gaps", 1, 1, 6, 3),
        Case("lgssm_smoother_varying", 1, 1, 6),
        Case("lgssm_marginal_loglik", 1, 1, 6),
        Case("lgssm_loglik_gradient", 1, 1, 6),
        Case("lgssm_posterior_sample", 1, 1, 6),
        Case("lgssm_filter", 1, 1, 1),
        Case("hmm_smoother", 2, 0, 40, dtype="float64"),
        Case("hmm_posterior_sample", 2, 0, 6),
        Case("hmm_posterior_mode", 2, 0, 6),
        Case("hmm_loglik_gradient", 2, 0, 6),
        Case("lds_inference", 1, 0, 6),
        Case("metropolis_positions", 1, 0, 20, 64),
        Case("metropolis_moments", 1, 0, 2_000, 512),
    ]


GROUPS = {"grid": grid, "held-out": held_out, "others": others, "gpu": on_a_gpu, "toy": toy}
"""The groups that ``--cases`` takes."""


def cases(*groups: str) -> list[Case]:
    """Lists the cases of some groups in order, each once."""
    return list(dict.fromkeys(case for group in groups for case in GROUPS[group]()))
