"""The models that GPU kernels take, and how kernels are launched: a model in a thread's registers, or in a whole program's."""

from typing import Any

from fastscan.dispatch import large
from fastscan.kernels.algebra.tile import padded
from fastscan.kernels.plan import Launch

_LGSSM_SIZES = {"float32": {1: 9, 2: 9, 3: 9, 4: 9, 5: 9, 6: 6}, "float64": {1: 4, 2: 4, 3: 4, 4: 4}}
_HMM_SIZES = {"float32": dict.fromkeys(range(1, 9), 0), "float64": dict.fromkeys(range(1, 5), 0)}
_LDS_SIZES = {"float32": dict.fromkeys(range(1, 5), 0), "float64": dict.fromkeys(range(1, 3), 0)}
_DENSE_SIZES = {"float32": dict.fromkeys(range(1, 8), 0), "float64": dict.fromkeys(range(1, 5), 0)}
_DIAGONAL_SIZES = {"float32": dict.fromkeys(range(1, 17), 0), "float64": dict.fromkeys(range(1, 9), 0)}
_BLOCKS_SIZES = {"float32": dict.fromkeys(range(2, 9, 2), 0), "float64": dict.fromkeys(range(2, 5, 2), 0)}
_SCORE_SIZES = {"float32": {1: 9, 2: 9, 3: 9, 4: 9, 5: 4, 6: 1}, "float64": {1: 4, 2: 4, 3: 4, 4: 4}}
KERNEL_SIZES: dict[str, dict] = {
    **dict.fromkeys(large.HMMS, _HMM_SIZES),
    **dict.fromkeys(large.LGSSMS, _LGSSM_SIZES),
    "lds": _LDS_SIZES,
    "recurrence": {"float32": dict.fromkeys(range(1, 7), 0), "float64": dict.fromkeys(range(1, 5), 0)},
    "affine_dense": _DENSE_SIZES,
    "affine_diagonal": _DIAGONAL_SIZES,
    "affine_blocks": _BLOCKS_SIZES,
    "lgssm_score": _SCORE_SIZES,
}
"""For every D that a thread's registers hold, of a family, the largest m. At (4, 9), (5, 9), (6, 6), and (4, 4) in float64, the
kernel that needs most registers as m grows, summarise, was compiled for sm_90 and spills none to memory. An HMM's D is its K;
its m and that of a chain of potentials is 0.

"lgssm_score" is the pass back of a log-likelihood's derivatives, which adds them up in registers. No implementation is named
after it, so no size is an error: XLA runs it where kernels do not. By its code for sm_80 it spills nothing but a few numbers
at (4, 9), and in float64 from (4, 2) on: at (4, 4) one instruction in twenty moves them."""
INTERPRETED_SIZES: dict[str, dict] = {
    **dict.fromkeys(large.LGSSMS, dict.fromkeys(range(1, 7), 9)),
    **dict.fromkeys((*large.HMMS, "lds", "recurrence", "affine_dense"), dict.fromkeys(range(1, 9), 0)),
    **dict.fromkeys(("affine_diagonal", "affine_blocks"), dict.fromkeys(range(1, 17), 0)),
}
"""The same in the interpreter, which has no registers."""

MOST_STATES = {
    **dict.fromkeys(large.LGSSMS, 64),
    **dict.fromkeys(large.HMMS, 128),
    "affine_dense": 64,
    "affine_diagonal": 1024,
}
"""The largest D and m, or K, that a whole program holds, of float32."""

MOST_STATES_IN_CHUNKS = 64
"""The largest K of an HMM whose time is cut into chunks there: a chunk's summary is a product of K x K matrices a row."""

MOST_ROWS_IN_TURN = 10_000
"""The most rows of one sequence that None has a program go through in turn, where time is not cut: XLA cuts it. With so many
sequences more, so many more. On an H100 a path of 32 states takes a program 1 us a row, and XLA's chunks some 10 ms in all."""

WHOLE_RULE = "a rule for large models on NVIDIA GPUs: kernels whose programs hold one"

_WARPS = {False: {16: 1, 32: 2, 64: 4}, True: {16: 1, 32: 1, 64: 4, 128: 8}}
"""The warps of a program, of an HMM or not, by the side of its matrices: the fewest whose registers hold them, or nearly so."""

_WARPS_OF_SUMMARIES = {32: 4, 64: 8}
"""The same of a linear-Gaussian model's programs that scan summaries, where they differ. These are few and wait for one
another: what counts is how many instructions a warp has, not all of them together."""

_GROUP = 2
"""The summaries that a program takes there: a pair is combined without a loop, which would hold addresses in registers."""

_WARPS_TO_FILL = 8 * 132
"""The warps that a GPU of 132 multiprocessors runs at once, of kernels that use most of a thread's registers."""


def in_threads(family: str, D: int, m: int, dtype: str, *, interpreted: bool = False) -> bool:
    """Tells whether a thread's registers hold a model."""
    return m <= _sizes(family, dtype, interpreted).get(D, -1)


def in_programs(family: str, D: int, m: int, dtype: str, *, interpreted: bool = False) -> bool:
    """Tells whether a program holds a model that no thread does."""
    fits = max(D, m) <= MOST_STATES.get(family, 0) and (dtype == "float32" or (interpreted and dtype == "float64"))
    return fits and not in_threads(family, D, m, dtype, interpreted=interpreted)


def taken_whole(family: str, T: int, B: int, D: int, m: int, dtype: str) -> bool:
    """Tells whether None takes a program's kernels for a model on a GPU that can run them."""
    in_time = not _in_turn(family, D) or T <= MOST_ROWS_IN_TURN * B
    return in_time and in_programs(family, D, m, dtype)


def check_size(implementation: str, family: str, D: int, m: int, dtype: str) -> None:
    """Refuses a model that no kernel takes.

    Raises:
        ValueError: such a model.
    """
    interpreted = implementation == "pallas_interpret"
    if any(fits(family, D, m, dtype, interpreted=interpreted) for fits in (in_threads, in_programs)):
        return
    letters = "K" if family in large.HMMS else "D and m" if family in large.LGSSMS else "D"
    sizes = _sizes(family, dtype, interpreted)
    if not sizes:
        raise ValueError(f"implementation: {implementation!r} given for {dtype}; kernels take float32 and float64.")
    if family in MOST_STATES and (dtype == "float32" or interpreted):
        wanted = f"{letters} up to {MOST_STATES[family]}"
    else:
        wanted = ", ".join(f"m up to {n} for D = {d}" for d, n in sizes.items()) if m else f"{letters} up to {max(sizes)}"
    given = f"{letters[0]} = {D}" + (f", m = {m}" if m else "")
    raise ValueError(
        f"implementation: {implementation!r} given for {given}, {dtype}; kernels hold {wanted}. Take 'chunked', or None, which "
        "chooses for you."
    )


def launched(family: str, D: int, m: int, dtype: str, fields: dict[str, Any], *, interpreted: bool) -> Launch:
    """Says how a model's kernels are launched.

    Args:
        family: of the problem.
        D: states.
        m: emissions.
        dtype: of the numbers.
        fields: of `Launch` that differ on the device, for kernels of threads.
        interpreted: run by Pallas's interpreter.
    """
    if not in_programs(family, D, m, dtype, interpreted=interpreted):
        return Launch(interpret=interpreted)._replace(**fields)
    of_hmm, side = family in large.HMMS, padded(max(D, m))
    warps = 1 if family == "affine_diagonal" else _WARPS[of_hmm][side]
    return Launch(
        lanes=1,
        warps=warps,
        warps_of_summaries=0 if of_hmm else _WARPS_OF_SUMMARIES.get(side, 0),
        group=_GROUP,
        fill=_WARPS_TO_FILL // warps,
        interpret=interpreted,
        whole=True,
    )


def chunks(launch: Launch, family: str, D: int, rows: int, B: int) -> int:
    """Counts the chunks of a sequence: enough to fill a GPU, but one where sequences are many or short, or where a path of a
    program's many states is chosen.
    """
    if (launch.whole and _in_turn(family, D)) or rows < 4 * launch.rows:
        return 1
    return min(launch.fill // B, rows // launch.rows)


def _in_turn(family: str, D: int) -> bool:
    """Tells whether a program goes through a sequence's rows in turn."""
    return family in large.HMMS and (family != "hmm" or D > MOST_STATES_IN_CHUNKS)


def _sizes(family: str, dtype: str, interpreted: bool) -> dict[int, int]:
    sizes = KERNEL_SIZES[family].get(dtype, {})
    return INTERPRETED_SIZES[family] if interpreted and sizes else sizes
