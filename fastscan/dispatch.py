"""Which implementation runs: the one that was named, or the one that was measured to be fastest here.

`crossover.json` holds, per kind of device, for the D, dtype, B and T that ``python -m fastscan.profiling crossover``
measured, the number of chunks that ran fastest: 1 is the sequential recursion. Between its entries the nearest one decides,
in the logarithms of D, T and B. A device that is not in it gets `_RULE`.

Matrices are arrays under XLA at every D, staged on a CPU. Unrolled into `Lanes` they belong in a Pallas kernel: XLA fuses
the unrolled program into each of its results anew, which is slow to compile and slow to run.
"""

import functools
import importlib.resources
import json
import math
from typing import Any, NamedTuple

import jax

from fastscan.kernels.driver import Plan

IMPLEMENTATIONS = ("sequential", "associative", "chunked")

_RULE = "a rule for devices that were not measured: chunks of 16 rows, one chunk below 64 rows or above 16,384 sequences"


class Choice(NamedTuple):
    """What will run, and why."""

    implementation: str
    plan: Plan
    reason: str


def choose(implementation: str | None, *, T: int, B: int, D: int, dtype: Any, device: str | None = None) -> Choice:
    """What runs a series of T steps in B sequences.

    Args:
        implementation: a name in `IMPLEMENTATIONS`, which is taken at its word, or None for the fastest.
        T: time steps.
        B: sequences.
        D: state dimensions.
        dtype: float32 or float64.
        device: its kind, as in `crossover.json`; default the one that JAX uses.

    Raises:
        ValueError: an unknown name.
    """
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation: {implementation!r} given, wanted None or one of {', '.join(IMPLEMENTATIONS)}.")
    device = device_kind() if device is None else device
    rows = T - 1
    algebra = "staged" if device == "cpu" else "stacked"
    if implementation == "sequential":
        return Choice("sequential", Plan(rows, 1, algebra=algebra), "named")
    if implementation == "associative":
        return Choice("associative", Plan(rows, max(rows, 1), "associative", algebra), "named")
    chunks, reason = _measured_chunks(device, str(jax.numpy.dtype(dtype)), D, T, B)
    if implementation == "chunked":
        return Choice("chunked", Plan(rows, _fit(max(chunks, 2), rows), algebra=algebra), "named")
    name = "chunked" if chunks > 1 else "sequential"
    return Choice(name, Plan(rows, _fit(chunks, rows), algebra=algebra), reason)


def device_kind() -> str:
    """The kind of the device that JAX computes on by default: "cpu", or an accelerator's name."""
    device = jax.config.jax_default_device or jax.devices()[0]
    platform = getattr(device, "platform", device)
    return "cpu" if platform == "cpu" else getattr(device, "device_kind", str(device))


@functools.cache
def crossover_table() -> dict:
    """The committed table: see the module's text and `fastscan.profiling.crossover`."""
    return json.loads(importlib.resources.files("fastscan").joinpath("crossover.json").read_text())


def _measured_chunks(device: str, dtype: str, D: int, T: int, B: int) -> tuple[int, str]:
    cases = crossover_table()["devices"].get(device, {}).get("cases", ())
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
