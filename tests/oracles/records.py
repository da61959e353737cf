"""Records that nobody measured, for tests of what is made of records."""

from typing import Any

from fastscan.profiling.measure.cases import Case
from fastscan.profiling.measure.rows import Row

ON: dict[str, Any] = {
    "device": "abacus",
    "machine": "wood",
    "cores": 2,
    "driver": "",
    "python": "3.11",
    "jax": "1",
    "jaxlib": "1",
}
ON |= {"triton": "", "dynamax": "1", "commit": "0123456789ab", "dirty": False, "date": "2026-01-01"}


def made_up(case: Case, implementation: str, p50: float, *, spread: float = 0.02, **fields: Any) -> Row:
    """A row of a case that took so many seconds, and a share more or less."""
    times = {"p20": p50 / (1 + spread), "p50": p50, "p80": p50 * (1 + spread)}
    blank = dict.fromkeys(Row._fields) | {"reference": "", "note": "", "default": False, "status": "ok"}
    return Row(**blank | case._asdict() | {"implementation": implementation} | times | ON | fields)
