"""Rules for a CPU that no table has to hold: large models, and recurrences of any kind, run row by row."""

from fastscan.kernels import xla_hints
from fastscan.kernels.algebra import UNROLLED_TERMS

LGSSMS, HMMS = ("lgssm", "lgssm_varying"), ("hmm", "hmm_mode", "hmm_sample")
AFFINE = ("affine_dense", "affine_diagonal", "affine_blocks")
SCANS = ("recurrence", *AFFINE)
"""Families that know no model: affine recurrences, and a user's own."""

SETTLING_SIZE, SETTLING_ROWS, VECTORS = 8, 64, 128
"""Larger models that do not vary in time, of so many rows or more, are looked at whether their covariances settle; then so many
means, of chunks and of sequences, move by one product of matrices. Smaller models gain less, and compile for longer."""

VECTOR_STATES = 512
"""The most states of an HMM whose loop over one sequence is one function, in which an operation may not be larger."""

MOST_IN_TURN = {"hmm": 8, "hmm_sample": 4}
"""The most sequences of such an HMM that run one after the other, each by one function; more fill a loop's vectors. Most likely
paths, whose products have no library, always do."""


def hinted(device: str) -> bool:
    """Tells whether programs for a device carry hints to XLA."""
    return device == "cpu" and xla_hints.hints_are_on()


def rule(device: str, family: str, T: int, B: int, D: int, *, shared: bool) -> str:
    """Says why a large model runs row by row, as `fastscan.dispatch.choice.choose` has its sizes; "" for others."""
    if settles("sequential", device, family, T, B, D, shared=shared):
        return f"a rule for D > {SETTLING_SIZE}: covariances are computed until they settle"
    if family in SCANS and device == "cpu":
        return "a rule for a CPU: row by row, nothing is computed twice"
    if D <= UNROLLED_TERMS or not hinted(device):
        return ""
    if family in HMMS:
        return f"a rule for K > {UNROLLED_TERMS}: a step's vectors are long enough"
    return f"a rule for D > {UNROLLED_TERMS}: one matrix is enough for a library" if family in LGSSMS else ""


def settles(name: str, device: str, family: str, T: int, B: int, D: int, *, shared: bool) -> bool:
    """Tells whether it is looked whether covariances settle: on a CPU, in the ordinary recursion, where there is one."""
    alone = family == "lgssm" and (B == 1 or shared)
    return name == "sequential" and device == "cpu" and alone and D > SETTLING_SIZE and T > SETTLING_ROWS


def in_turn(name: str, device: str, family: str, B: int, D: int, *, shared: bool) -> bool:
    """Tells whether sequences run one after the other: each has matrices of its own, whose rows fill whole vectors or which a
    library wants; or the vectors of an HMM, of which loops over one sequence are one function; or the dense matrices of an
    affine recurrence, whose copy in another order would take longer.
    """
    if not (name == "sequential" and B > 1 and hinted(device)):
        return False
    if family in SCANS:
        return family == "affine_dense"
    if family in HMMS:
        return vectors_in_one_function(D) and MOST_IN_TURN.get(family, B) >= B
    return family in LGSSMS and not shared and (D > UNROLLED_TERMS or D == xla_hints.VECTOR)


def width(name: str | None, device: str, family: str, D: int) -> int:
    """Returns of how many states matrices are made where every step computes its own covariances: for the recursion on a CPU,
    of as many as fill whole vectors.
    """
    narrow = family == "lgssm_varying" and xla_hints.VECTOR // 2 < D < xla_hints.VECTOR
    return xla_hints.VECTOR if narrow and name in (None, "sequential") and hinted(device) else D


def vectors_in_one_function(K: int) -> bool:
    """Tells whether an HMM's loop over one sequence is one function, in which vectors are multiplied."""
    return UNROLLED_TERMS < K <= VECTOR_STATES
