"""The choice of an implementation: the one that was named, or the one that was measured to be fastest here.

The crossover table says which one is fastest (`dispatch.crossovers`). A device that is not in it gets `_RULE`, or, if it is an
NVIDIA GPU, kernels by `_KERNEL_RULE`. A device's entry may say how kernels are launched on it: "launch", fields of
`kernels.plan.Launch` that differ from the default.

Then a plan is made, which works around XLA in three ways. Each cause, with the place in XLA's source, stands in
`kernels.xla_hints`:

* XLA:CPU fuses an operation into each of those that use its result, and computes it again for each. So on a CPU matrices are
  "staged" arrays: results that are used more than once are units of their own. Not so an HMM's vectors in one chunk, where they
  are large, or where they are few and their loop is not one function: a unit would cost more than it saves.
* XLA:CPU's runtime starts a loop's operations one by one, which takes longer than to compute a few numbers. So loops over small
  matrices are compiled to one function, for at most so many lanes (`one_function_lanes`): XLA can't compile every larger
  operation in this way.
* Unrolled into `Lanes`, a program has no units: XLA fuses all of it into each of its results, which is slow to compile and to
  run. So `Lanes` are for Pallas kernels alone, where a lane holds a whole model in its registers. A larger one belongs to a
  whole program (`dispatch.launches`).

Where the hints to XLA are off, or the device is no CPU, arrays are not staged, and no loop is one function.
"""

import math
from typing import Any, NamedTuple

import jax

from fastscan.dispatch import crossovers, large, launches
from fastscan.kernels import xla_hints
from fastscan.kernels.algebra import UNROLLED_TERMS
from fastscan.kernels.gpu.lowerings import hindrance
from fastscan.kernels.plan import BLOCK, Launch, Plan

XLA_IMPLEMENTATIONS = ("sequential", "associative", "chunked")
KERNELS = ("pallas", "pallas_interpret")
IMPLEMENTATIONS = (*XLA_IMPLEMENTATIONS, *KERNELS)
FAMILIES = (*large.LGSSMS, *large.HMMS)
"""Families that are measured apart: linear-Gaussian models; those whose dynamics vary in time; an HMM's filters and smoothers,
its most likely path, its sampler."""

MEASURED_AS = {"lds": "lgssm", "lgssm_varying": "lgssm"}
"""Families that are run by another one's measurements, where they have none of their own: chains of potentials, too."""

WHOLE_VECTOR_ROWS = 64
"""The fewest rows of an HMM's chunk where it pays that chunks are whole vectors, though more rows are padding."""

FEWER_LANES = 2
"""A number of chunks between those that were measured is cut by up to so much where that makes loops one function."""

RELAY_ROWS, RELAY_CHUNKS, RELAY_STEPS = 60, 16, 600
"""The fewest rows of a chunk in a relay, which a model that forgets must forget in, and the most chunks, for longer series than
so many steps. The bundled table's chunks were measured with summaries, of which more and shorter ones paid."""

MOST_CHUNKS = 256
"""The most chunks of "chunked" on a CPU where nothing was measured."""

_KERNELS_ON = "NVIDIA"
_RULE = "a rule for devices that were not measured: chunks of 16 rows, one chunk below 64 rows or above 16,384 sequences"
_KERNEL_RULE = "kernels, by a rule for NVIDIA GPUs that were not measured: chunks enough to fill one, of 16 rows or more"


class Choice(NamedTuple):
    """An implementation, the plan that runs it, and in words why it was chosen."""

    implementation: str
    plan: Plan
    reason: str


class Problem(NamedTuple):
    """The arguments of `choose`, but for B; the fewest rows of a program for several lengths, None of one for one; and whether
    its loops are not marked to be one function: users' functions are called in them, of which nobody knows whether they fit, or
    they are so small that XLA makes one of them by itself, without the copies that a mark takes.
    """

    implementation: str | None
    T: int
    D: int
    m: int
    dtype: str
    family: str = "lgssm"
    shared: bool = False
    fewest: int | None = None
    unmarked: bool = False

    def plan(self, B: int) -> Plan:
        """Chooses the plan for B sequences."""
        given = self._asdict()
        fewest, unmarked = given.pop("fewest"), given.pop("unmarked")
        plan = choose(**given, B=B).plan
        plan = plan._replace(one_function=False) if unmarked else plan
        return plan if fewest is None else plan.from_fewest(fewest)


class How(NamedTuple):
    """How a problem is run.

    Attributes:
        plan: for the sequences there are.
        problem: what chooses a plan for more; None keeps this one.
        missing: whether entries are missing, None if that is seen only as the program runs.
    """

    plan: Plan
    problem: Problem | None = None
    missing: bool | None = None

    def of_states(self, D: int) -> "How":
        """Returns the same for so many states."""
        return self if self.problem is None else self._replace(problem=self.problem._replace(D=D))

    def of_batch(self, B: int) -> "How":
        """Returns the same for B sequences, whose matrices may differ."""
        return self if self.problem is None else self._replace(plan=self.problem._replace(shared=False).plan(B))


def choose(
    implementation: str | None,
    *,
    T: int,
    B: int,
    D: int,
    m: int = 0,
    dtype: Any,
    family: str = "lgssm",
    shared: bool = False,
    device: str | None = None,
) -> Choice:
    """Chooses how to run a series of T steps in B sequences.

    Args:
        implementation: a name in `IMPLEMENTATIONS`, which runs or is an error, or None for the fastest. "chunked:64" runs in
            about 64 chunks: none is empty, and on a CPU there may be some more for whole vectors of them.
        T: time steps.
        B: sequences.
        D: state dimensions; of an HMM its number of states, K.
        m: emission dimensions; of an HMM 0.
        dtype: float32 or float64.
        family: one of `FAMILIES`, or of `MEASURED_AS`.
        shared: whether all sequences have the same matrices, and only vectors are their own.
        device: its kind, as in `crossover.json`; default the one that JAX uses.

    Raises:
        ValueError: an unknown name; kernels, for a model that they are too small for.
        RuntimeError: kernels, on a device that is no NVIDIA GPU, or with a JAX that can't compile them.
    """
    name, chunks = _parse(implementation)
    device = device_kind() if device is None else device
    dtype = str(jax.numpy.dtype(dtype))
    slices = crossovers.slices_of(device, family, dtype)
    measured = family if slices else MEASURED_AS.get(family, family)
    slices = slices or crossovers.slices_of(device, measured, dtype)
    found = crossovers.expected(slices, D=D, T=T, B=B) if slices else {}
    reason = "named"
    if name is None:
        fits, whole = launches.in_threads(family, D, m, dtype), launches.taken_whole(family, T, B, D, m, dtype)
        why_not = _hindrance(device) if (fits or whole) and device.startswith(_KERNELS_ON) else ""
        able = {n: x for n, x in found.items() if n != "pallas" or (fits and not why_not)}
        if rule := large.rule(device, family, T, B, D, shared=shared):
            name, reason = "sequential", rule
        elif whole and _has_kernels(device):
            name, reason = "pallas", launches.WHOLE_RULE
        else:
            name, reason = _fastest(able, dtype, T, B, kernels=fits and _has_kernels(device))
            reason += f"; no kernels: {why_not}" if why_not else ""
            reason = f"{_where(slices, measured, family, device, D, T, B)}: {reason}" if found else reason
    elif name in KERNELS:
        launches.check_size(name, family, D, m, dtype)
        check_gpu(name, device)
    in_turn = large.in_turn(name, device, family, B, D, shared=shared)
    B = 1 if in_turn else B
    lanes = one_function_lanes(max(D, m), dtype, chunked=name == "chunked", shared=shared) if large.hinted(device) else 0
    hmm = family in large.HMMS
    if hmm and D == 1:  # all results for one state are known beforehand: nothing would read a function's arguments
        lanes = 0
    if hmm and large.vectors_in_one_function(D) and name == "sequential" and large.hinted(device):
        lanes = 1
    if chunks is None and "chunked" in found:
        chunks = found["chunked"].chunks or 2
        if lanes >= 2 * B and chunks * B <= lanes * FEWER_LANES:
            chunks = min(chunks, lanes // B)
        if _relayed(name, device, family) and T > RELAY_STEPS:
            chunks = min(chunks, (T - 1) // RELAY_ROWS, RELAY_CHUNKS)
    if name in KERNELS:
        fields = crossovers.of_device(device).get("launch", {})
        launch = launches.launched(family, D, m, dtype, fields, interpreted=name == "pallas_interpret")
        plan = Plan(T - 1, _fit(launches.chunks(launch, family, D, T - 1, B), T - 1), algebra=_algebra(device), launch=launch)
    else:
        plan = _plan(name, chunks, device, family, T - 1, B, D, lanes)
    one_function = name in ("sequential", "chunked") and T > 1 and plan.chunks * B <= lanes
    relay = plan.chunks > 1 and _relayed(name, device, family)
    checked = (relay or not hmm) and plan.chunks > 1
    settles = large.settles(name, device, family, T, B, D, shared=shared)
    vectors = max(min((T - 1) // BLOCK, large.VECTORS // B), 1) if settles else 0
    plan = plan._replace(one_function=one_function, relay=relay, checked=checked, vectors=vectors, in_turn=in_turn)
    return Choice(name, plan, reason)


def _relayed(name: str, device: str, family: str) -> bool:
    """Tells whether chunks are entered with guesses; chains of potentials are not."""
    return name == "chunked" and device == "cpu" and family not in ("lds", *large.SCANS)


def _parse(implementation: str | None) -> tuple[str | None, int | None]:
    """Splits an implementation into its name and the number of chunks, None where that is not given."""
    name, _, count = (implementation or "").partition(":")
    right = name in IMPLEMENTATIONS and (not count or (name == "chunked" and count.isdecimal() and int(count) > 0))
    if implementation is not None and (not right or implementation.endswith(":")):
        raise ValueError(
            f"implementation: {implementation!r} given, wanted None or one of {', '.join(IMPLEMENTATIONS)}, "
            "or 'chunked:N' for N chunks."
        )
    return name or None, int(count) if count else None


def _fastest(found: dict[str, crossovers.Expected], dtype: str, T: int, B: int, *, kernels: bool) -> tuple[str, str]:
    """Chooses an implementation, and says why."""
    if found:
        name = crossovers.winner(found)
        times = ", ".join(f"{n} {1e3 * x.seconds:.3g} ms" for n, x in sorted(found.items(), key=lambda x: x[1].seconds))
        return name, f"{dtype}, {times}"
    if kernels:
        return "pallas", _KERNEL_RULE
    return ("sequential" if T < 64 or B > 16384 else "chunked"), _RULE


def _where(slices: list[dict], measured: str, family: str, device: str, D: int, T: int, B: int) -> str:
    """Says how near measurements are to some sizes."""
    apart = []
    for letter, wanted, there in (
        ("D" if measured.startswith("lgssm") else "K", D, {s["D"] for s in slices}),
        ("T", T, {length for s in slices for length in s["T"]}),
        ("B", B, {s["B"] for s in slices}),
    ):
        if not min(there) <= wanted <= max(there):
            apart.append(f"extrapolated to {letter}={wanted:,} from {letter}={min(there, key=lambda x: abs(x - wanted)):,}")
        elif wanted not in there:
            apart.append(f"between measured values of {letter}")
    if measured != family:
        apart.append(f"of the family {measured!r}, as {family!r} was not measured")
    sizes = f"D={D}, T={T:,}, B={B:,}"
    return f"measured on {device} at {sizes}" if not apart else f"measured on {device}, but not at {sizes} ({'; '.join(apart)})"


def _plan(name: str, chunks: int | None, device: str, family: str, rows: int, B: int, D: int, lanes: int) -> Plan:
    algebra, hmm = _algebra(device), family in large.HMMS
    if name == "sequential":
        if hmm and D > UNROLLED_TERMS:
            return Plan(rows, 1, algebra="staged vectors" if lanes >= B else "stacked")
        if family in large.SCANS:
            algebra = "stacked" if family in large.AFFINE else algebra
            return Plan(rows, 1, algebra=f"{algebra} alone" if B == 1 else algebra)
        if algebra == "staged" and not hmm and B == 1 and D > UNROLLED_TERMS:
            return Plan(rows, 1, algebra="staged alone")
        return Plan(rows, 1, algebra="stacked" if hmm and lanes < B < xla_hints.STAGED_LANES else algebra)
    if name == "associative":
        return Plan(rows, max(rows, 1), "associative", algebra)
    most = MOST_CHUNKS if device == "cpu" else rows
    return chunked_plan(hmm, device, rows, chunks or max(min(rows // 16, most), 2), lanes // B)


def _algebra(device: str) -> str:
    return "staged" if large.hinted(device) else "stacked"


def one_function_lanes(size: int, dtype: Any, *, chunked: bool, shared: bool = False) -> int:
    """Counts the lanes, at most, whose loops are compiled to one function on a CPU, for matrices of up to ``size`` rows; 0 if
    none are.

    The limits are those of `kernels.xla_hints.ONE_FUNCTION_BYTES`, where XLA would hand parts of an operation to its threads or
    to a library, which one function can't. In chunks there are half as many lanes: where chunks have summaries, these are
    scanned from both sides at once, in twice as many lanes. (Relays have none; more lanes have not been tried for them.)
    """
    if size > UNROLLED_TERMS:
        return 0
    column = max(size, 1) * jax.numpy.dtype(dtype).itemsize
    if shared and not chunked:
        return xla_hints.ONE_FUNCTION_BYTES // column // xla_hints.VECTOR * xla_hints.VECTOR
    lanes = xla_hints.ONE_FUNCTION_BYTES // (column * max(size, 1))
    return lanes // 2 if chunked else lanes


def chunked_plan(hmm: bool, device: str, rows: int, chunks: int, few: int = 0) -> Plan:
    """Plans about as many chunks of rows, under XLA on a device, and not more than ``few`` if no more are asked for."""
    if device != "cpu":
        return Plan(rows, _fit(chunks, rows))
    most = few if chunks <= few else rows
    if rows < chunks * (WHOLE_VECTOR_ROWS if hmm else BLOCK):
        return Plan(rows, _fit(chunks, rows, most), algebra=_algebra(device))
    return Plan(rows, _fit_lanes(chunks, rows, most), algebra=_algebra(device))


def check_gpu(implementation: str, device: str) -> None:
    """Checks that kernels that were named can run: compiled, on an NVIDIA GPU, or interpreted.

    Raises:
        RuntimeError: "pallas", on another device, or with a JAX that can't compile them.
    """
    if implementation == "pallas" and not device.startswith(_KERNELS_ON):
        raise RuntimeError(
            f"implementation: 'pallas' given, which wants an NVIDIA GPU; JAX computes on {device!r} here. Take None, or, "
            "to run the same kernels slowly in Pallas's interpreter, 'pallas_interpret'."
        )
    if implementation == "pallas" and (why_not := _hindrance(device)):
        raise RuntimeError(f"implementation: 'pallas' given. {why_not}")


def compiled_implementations(device: str | None = None) -> tuple[str, ...]:
    """Lists the names that run compiled on a device, as `device_kind` has it; by default on the one that JAX uses."""
    device = device_kind() if device is None else device
    return (*XLA_IMPLEMENTATIONS, "pallas") if _has_kernels(device) else XLA_IMPLEMENTATIONS


def _has_kernels(device: str) -> bool:
    return device.startswith(_KERNELS_ON) and not _hindrance(device)


def _hindrance(device: str) -> str:
    """Says why kernels can't be compiled for an NVIDIA GPU; "" if they can."""
    return hindrance(crossovers.of_device(device).get("launch", {}).get("lowering", Launch().lowering))


def device_kind() -> str:
    """Returns the kind of the device that JAX computes on by default: "cpu", or an accelerator's name."""
    device = jax.config.jax_default_device or jax.devices()[0]  # pyright: ignore[reportAttributeAccessIssue]
    platform = getattr(device, "platform", device)
    return "cpu" if platform == "cpu" else getattr(device, "device_kind", str(device))


def _fit(chunks: int, rows: int, most: int | None = None) -> int:
    """Finds a number of chunks near the wanted one, without an empty chunk, and without a padded row if a near number has
    none.
    """
    chunks = max(1, min(chunks, rows))
    if chunks == 1:
        return 1
    near = range(max(2, math.ceil(chunks * 0.75)), min(rows, int(chunks * 1.25), most or rows) + 1)
    exact = [c for c in near if rows % c == 0]
    if exact:
        return min(exact, key=lambda c: abs(c - chunks))
    return -(-rows // -(-rows // chunks))


def _fit_lanes(chunks: int, rows: int, most: int) -> int:
    """Finds a number of chunks near the wanted one that fills whole vectors, or their halves where none does, and of these the
    number that pads fewest rows.
    """
    for vector in (xla_hints.VECTOR, xla_hints.VECTOR // 2):
        near = range(vector * math.ceil(chunks * 0.75 / vector), min(int(chunks * 1.25), most) + 1, vector)
        if near:
            return min(near, key=lambda c: (-rows % c // vector, abs(c - chunks)))
    return _fit(chunks, rows, most)
