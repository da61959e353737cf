"""Which implementation runs: the one that was named, or the one that was measured to be fastest here.

`crossover.json` holds, per kind of device and family, for the D, dtype, B and T that ``python -m fastscan.profiling crossover``
measured, the number of chunks that ran fastest: 1 is the sequential recursion. Between its entries the nearest one decides,
in the logarithms of D, T and B. A device that is not in it gets `_RULE`, and kernels are launched by `_KERNEL_RULE`.

Matrices are arrays under XLA at every D, staged on a CPU; but the few vectors of an HMM's filter in one chunk are not worth
a stage. Unrolled into `Lanes` they belong in a Pallas kernel: XLA fuses
the unrolled program into each of its results anew, which is slow to compile and slow to run. A kernel's lane holds a whole
model in its registers, so kernels are for small ones (`KERNEL_SIZES`).

A device's entry may say how kernels are launched on it: "launch", fields of `kernels.plan.Launch` that differ from the default.
"""

import functools
import importlib.resources
import json
import math
from typing import Any, NamedTuple

import jax

from fastscan.kernels.plan import Launch, Plan

XLA_IMPLEMENTATIONS = ("sequential", "associative", "chunked")
IMPLEMENTATIONS = (*XLA_IMPLEMENTATIONS, "pallas", "pallas_interpret")
FAMILIES = ("lgssm", "hmm", "hmm_mode", "hmm_sample")
"""What is measured apart: linear-Gaussian models; an HMM's filters and smoothers, its most likely path, its sampler."""
_LGSSM_SIZES = {"float32": {1: 9, 2: 9, 3: 9, 4: 9, 5: 9, 6: 6}, "float64": {1: 4, 2: 4, 3: 4, 4: 4}}
_HMM_SIZES = {"float32": dict.fromkeys(range(1, 9), 0), "float64": dict.fromkeys(range(1, 5), 0)}
KERNEL_SIZES = {family: _LGSSM_SIZES if family == "lgssm" else _HMM_SIZES for family in FAMILIES}
"""For every D that GPU kernels of a family take, the largest m. At (4, 9), (5, 9), (6, 6), and (4, 4) in float64, the kernel
that needs most registers as m grows, summarise, was compiled for sm_90 and spills none to memory. An HMM's D is its K."""
INTERPRETED_SIZES = {"lgssm": dict.fromkeys(range(1, 7), 9)} | dict.fromkeys(FAMILIES[1:], dict.fromkeys(range(1, 9), 0))
"""The same in the interpreter, which has no registers."""

FORGETTING_ROWS = 64
"""Of a chunk, at least, where it may pay to find out when an HMM has forgotten its beginning."""

VECTOR = 16
"""Numbers in a CPU's widest vector: loops over a multiple of them have no rest."""

MOST_CHUNKS = 256
"""Of "chunked" where one chunk is faster, which is no reason to run it badly."""

_RULE = "a rule for devices that were not measured: chunks of 16 rows, one chunk below 64 rows or above 16,384 sequences"
_KERNEL_RULE = "kernels, by a rule for NVIDIA GPUs that were not measured: chunks enough to fill one, of 16 rows or more"


class Choice(NamedTuple):
    """What will run, and why."""

    implementation: str
    plan: Plan
    reason: str


class Problem(NamedTuple):
    """What `choose` asks, but for B."""

    implementation: str | None
    T: int
    D: int
    m: int
    dtype: str
    family: str = "lgssm"

    def plan(self, B: int) -> Plan:
        """What runs B sequences."""
        return choose(**self._asdict(), B=B).plan


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

    def of_batch(self, B: int) -> "How":
        """The same for B sequences."""
        return self if self.problem is None else self._replace(plan=self.problem.plan(B))


def choose(
    implementation: str | None,
    *,
    T: int,
    B: int,
    D: int,
    m: int = 0,
    dtype: Any,
    family: str = "lgssm",
    device: str | None = None,
) -> Choice:
    """What runs a series of T steps in B sequences.

    Args:
        implementation: a name in `IMPLEMENTATIONS`, which is taken at its word, or None for the fastest.
        T: time steps.
        B: sequences.
        D: state dimensions; of an HMM its number of states, K.
        m: emission dimensions; of an HMM 0.
        dtype: float32 or float64.
        family: one of `FAMILIES`.
        device: its kind, as in `crossover.json`; default the one that JAX uses.

    Raises:
        ValueError: an unknown name; kernels, for a model that they are too small for.
        RuntimeError: kernels, on a device that is no NVIDIA GPU.
    """
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation: {implementation!r} given, wanted None or one of {', '.join(IMPLEMENTATIONS)}.")
    device = device_kind() if device is None else device
    rows = T - 1
    algebra = "staged" if device == "cpu" else "stacked"
    one_chunk = Plan(rows, 1, algebra="stacked" if family == "hmm" else algebra)
    if implementation == "sequential":
        return Choice("sequential", one_chunk, "named")
    if implementation == "associative":
        return Choice("associative", Plan(rows, max(rows, 1), "associative", algebra), "named")
    if implementation in ("pallas", "pallas_interpret"):
        _check_kernels(implementation, device, family, D, m, dtype)
        return Choice(implementation, _kernel_plan(implementation, device, algebra, rows, B), "named")
    if implementation is None and _has_kernels(device) and m <= _kernel_sizes(family, dtype).get(D, -1):
        return Choice("pallas", _kernel_plan("pallas", device, algebra, rows, B), _KERNEL_RULE)
    chunks, reason = _measured_chunks(device, family, str(jax.numpy.dtype(dtype)), D, T, B)
    if implementation == "chunked":
        chunks = chunks if chunks > 1 else max(min(rows // 16, MOST_CHUNKS), 2)
        return Choice("chunked", chunked_plan(family, device, rows, chunks), "named")
    if chunks == 1:
        return Choice("sequential", one_chunk, reason)
    return Choice("chunked", chunked_plan(family, device, rows, chunks), reason)


def chunked_plan(family: str, device: str, rows: int, chunks: int) -> Plan:
    """About as many chunks of rows, under XLA on a device; arguments as `choose` has them."""
    if device != "cpu":
        return Plan(rows, _fit(chunks, rows))
    if family == "lgssm" or rows < chunks * FORGETTING_ROWS:
        return Plan(rows, _fit(chunks, rows), algebra="staged")
    return Plan(rows, _fit_lanes(chunks, rows), algebra="staged", forgetting=True)


def _check_kernels(implementation: str, device: str, family: str, D: int, m: int, dtype: Any) -> None:
    sizes = INTERPRETED_SIZES[family] if implementation == "pallas_interpret" else _kernel_sizes(family, dtype)
    if m > sizes.get(D, -1):
        given, most = f"D = {D}, m = {m}", "m up to " + ", ".join(f"{most_m} for D = {d}" for d, most_m in sizes.items())
        if family != "lgssm":
            given, most = f"K = {D}", f"K up to {max(sizes)}"
        raise ValueError(
            f"implementation: {implementation!r} given for {given}, {jax.numpy.dtype(dtype)}; a thread's registers "
            f"hold {most}. Take 'chunked', or None, which chooses for you."
        )
    if implementation == "pallas" and not _has_kernels(device):
        raise RuntimeError(
            f"implementation: 'pallas' given, which wants an NVIDIA GPU; JAX computes on {device!r} here. Take None, or, "
            "to run the same kernels slowly in Pallas's interpreter, 'pallas_interpret'."
        )


def _kernel_sizes(family: str, dtype: Any) -> dict[int, int]:
    return KERNEL_SIZES[family][str(jax.numpy.dtype(dtype))]


def _kernel_plan(implementation: str, device: str, algebra: str, rows: int, B: int) -> Plan:
    """Lanes enough to fill a GPU; one chunk a sequence where sequences are many or short."""
    fields = crossover_table()["devices"].get(device, {}).get("launch", {})
    launch = Launch(interpret=implementation == "pallas_interpret")._replace(**fields)
    chunks = 1 if rows < 4 * launch.rows else min(launch.fill // B, rows // launch.rows)
    return Plan(rows, _fit(chunks, rows), algebra=algebra, launch=launch)


def compiled_implementations(device: str | None = None) -> tuple[str, ...]:
    """The names that run compiled on a device, as `device_kind` has it: by default on the one that JAX uses."""
    device = device_kind() if device is None else device
    return (*XLA_IMPLEMENTATIONS, "pallas") if _has_kernels(device) else XLA_IMPLEMENTATIONS


def _has_kernels(device: str) -> bool:
    return device.startswith("NVIDIA")


def device_kind() -> str:
    """The kind of the device that JAX computes on by default: "cpu", or an accelerator's name."""
    device = jax.config.jax_default_device or jax.devices()[0]
    platform = getattr(device, "platform", device)
    return "cpu" if platform == "cpu" else getattr(device, "device_kind", str(device))


@functools.cache
def crossover_table() -> dict:
    """The committed table: see the module's text and `fastscan.profiling.crossover`."""
    return json.loads(importlib.resources.files("fastscan").joinpath("crossover.json").read_text())


def _measured_chunks(device: str, family: str, dtype: str, D: int, T: int, B: int) -> tuple[int, str]:
    cases = crossover_table()["devices"].get(device, {}).get("families", {}).get(family, {}).get("cases", ())
    cases = [c for c in cases if c["dtype"] == dtype] or cases
    if not cases:
        chunks = 1 if T < 64 or B > 16384 else T // 16
        return chunks, _RULE

    def distance(case: dict) -> float:
        return sum(abs(math.log(case[k] / v)) for k, v in (("D", D), ("T", T), ("B", B)))

    nearest = min(cases, key=distance)
    reason = (
        f"fastest on {device} at D={nearest['D']}, T={nearest['T']}, B={nearest['B']}, {nearest['dtype']}: "
        f"{nearest['chunks']} chunks, {nearest['gain']:.1f} times one chunk's speed"
    )
    if nearest["chunks"] == 1:
        reason = f"one chunk is fastest on {device} at D={nearest['D']}, T={nearest['T']}, B={nearest['B']}, {nearest['dtype']}"
    return nearest["chunks"], reason


def _fit(chunks: int, rows: int) -> int:
    """About as many chunks, without an empty one, and with no padded row if a near number has none."""
    chunks = max(1, min(chunks, rows))
    if chunks == 1:
        return 1
    near = range(max(2, math.ceil(chunks * 0.75)), min(rows, int(chunks * 1.25)) + 1)
    exact = [c for c in near if rows % c == 0]
    if exact:
        return min(exact, key=lambda c: abs(c - chunks))
    return -(-rows // -(-rows // chunks))


def _fit_lanes(chunks: int, rows: int) -> int:
    """About as many chunks, whole vectors of them, and of these the number that pads fewest rows."""
    near = range(VECTOR * math.ceil(chunks * 0.75 / VECTOR), int(chunks * 1.25) + 1, VECTOR)
    return min(near, key=lambda c: (-rows % c // VECTOR, abs(c - chunks)), default=_fit(chunks, rows))
