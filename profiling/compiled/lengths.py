"""Series of several lengths, one after the other: what each one's first call takes, and its calls after that."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import fastscan
from fastscan.profiling.measure import operations
from fastscan.profiling.measure.cases import Case
from fastscan.profiling.measure.timing import clock

LENGTHS = 1_000, 1_010, 1_300, 2_000


def run_lengths(name: str, D: int, m: int, lengths: Sequence[int] = LENGTHS) -> list[tuple[float, ...]]:
    """Calls an operation with every length, alone and by programs that lengths share (`fastscan.use_shared_programs`).

    Args:
        name: of the operation, a public function of series.
        D: state dimensions, or an HMM's number of states.
        m: emission dimensions, 0 of an HMM.
        lengths: in the order of the calls.

    Returns:
        For every length: the seconds of its first call and of others, alone; and the same where programs are shared.
    """
    cases = [Case(name, D, m, T) for T in lengths]
    calls = {}
    for case in cases:
        function, data = operations.as_users_write(case), jax.device_put(operations.data(case))
        for shared in (False, True):
            calls[case.T, shared] = _call(function, data, shared)
    firsts = {}
    for (T, shared), call in calls.items():
        began = time.perf_counter()
        jax.block_until_ready(call())
        firsts[T, shared] = time.perf_counter() - began
    warm = {key: float(np.median(x.waited)) for key, x in clock(calls).items()}
    rows = [(T, *(x for shared in (False, True) for x in (firsts[T, shared], warm[T, shared]))) for T in lengths]
    table = Table(
        *("T", "first call, s", "warm, us", "shared: first call, s", "warm, us", "ratio of warm"), title=str(cases[0])
    )
    for T, first, then, shared_first, shared_then in rows:
        ratio = f"{shared_then / then:.2f}"
        table.add_row(f"{T:,}", f"{first:.2f}", f"{1e6 * then:.0f}", f"{shared_first:.2f}", f"{1e6 * shared_then:.0f}", ratio)
    Console().print(table)
    return rows


def _call(function: Callable, data: Any, shared: bool) -> Callable[[], Any]:
    def call() -> Any:
        with fastscan.use_shared_programs(shared):
            return function(*data)

    return call
