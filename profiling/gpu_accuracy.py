"""How accurate the implementations are on this device: against float64 on the CPU, at real sizes."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from fastscan.profiling.gpu_programs import Problem, Programs, reference
from fastscan.profiling.gpu_record import AccuracyRow, Record

BOUNDS = {"float32": 1e-3, "float64": 1e-9}
"""Errors above these are wrong; good ones are far below."""

MOMENTS = AccuracyRow._fields[AccuracyRow._fields.index("marginal_loglik") : AccuracyRow._fields.index("reference")]
_KERNELS, _CHUNKS, _XLA = ("pallas",), ("pallas", "chunked"), ("pallas", "chunked", "sequential", "associative")


class Case(NamedTuple):
    """A smoother's sizes, whether observations are missing, and who is to run it."""

    problem: Problem
    gaps: bool
    implementations: tuple[str, ...]


def cases(dry_run: bool) -> list[Case]:
    """What is run, most important first."""
    if dry_run:
        return [
            Case(Problem("smoother", 1, 1, 65), True, ("pallas_interpret", "chunked", "sequential")),
            Case(Problem("smoother", 1, 1, 6, B=3), True, ("pallas_interpret", "associative")),
            Case(Problem("smoother", 2, 1, 2), False, ("pallas_interpret", "chunked")),
            Case(Problem("smoother", 1, 1, 1), False, ("pallas_interpret", "chunked")),
            Case(Problem("smoother", 1, 1, 20, dtype="float64"), True, ("pallas_interpret",)),
        ]
    return [
        Case(Problem("smoother", 4, 2, 1_000), False, _XLA),
        Case(Problem("smoother", 4, 2, 1_000_000), True, _CHUNKS),
        Case(Problem("smoother", 4, 2, 1_000, B=1_024), True, _CHUNKS),
        Case(Problem("smoother", 2, 1, 99_991), True, _CHUNKS),
        Case(Problem("smoother", 4, 2, 20, B=100_000), True, _CHUNKS),
        Case(Problem("smoother", 4, 2, 10_000_000), False, _CHUNKS),
        Case(Problem("smoother", 1, 1, 99_991), False, _CHUNKS),
        Case(Problem("smoother", 4, 2, 99_991, dtype="float64"), True, _CHUNKS),
        Case(Problem("smoother", 2, 1, 1_000, B=3), True, _XLA),
        *(Case(Problem("smoother", 2, 1, T), False, _CHUNKS) for T in (1, 2, 31)),
        Case(Problem("smoother", 3, 2, 99_991), True, _CHUNKS),
        Case(Problem("smoother", 4, 2, 31), True, _KERNELS),
        Case(Problem("smoother", 6, 1, 99_991), True, _CHUNKS),
        Case(Problem("smoother", 6, 2, 1_000), True, _KERNELS),
    ]


def run_accuracy(record: Record, programs: Programs, until: float) -> None:
    """Runs the cases, those that are compiled first, until no more than the share ``until`` of the time is left."""
    pending = [(case, name) for case in cases(record.dry_run) for name in case.implementations]
    pending = [(case, name) for case, name in pending if not record.done(_name(case, name))]
    for case, name in pending:
        programs.ahead(case.problem, name)
    beside = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 8))
    references = {case: beside.submit(reference, case.problem, case.gaps) for case in dict.fromkeys(c for c, _ in pending)}
    try:
        while pending and record.left_until(until) > 0:
            item = next((x for x in pending if references[x[0]].done() and programs.ready(x[0].problem, x[1])), None)
            if item is None:
                time.sleep(0.02)
                continue
            pending.remove(item)
            _attempt(record, programs, *item, references[item[0]])
            if all(case != item[0] for case, _ in pending):
                del references[item[0]]
    finally:
        beside.shutdown(wait=False, cancel_futures=True)
    for case, name in pending:
        _skip(record, case, name, "not compiled in time")


def _attempt(record: Record, programs: Programs, case: Case, name: str, wanted: Future) -> None:
    def run() -> str:
        moments, how = wanted.result()
        program = programs.get(case.problem, name)
        data = case.problem.data(case.gaps)
        with jax.enable_x64(case.problem.dtype == "float64"):
            got = jax.tree.map(np.asarray, jax.block_until_ready(program.call(*jax.device_put(data))))
        row = _row(case, name, "ok")._replace(reference=how, **errors(got, moments))
        bad = row.nans or not row.worst <= BOUNDS[case.problem.dtype]
        record.write(row._replace(status="wrong" if bad else "ok"))
        return "wrong" if bad else "ok"

    record.attempt(_name(case, name), 5, run, lambda status, note: record.write(_row(case, name, status, note)))


def _skip(record: Record, case: Case, name: str, why: str) -> None:
    record.skip(_name(case, name), why, lambda status, note: record.write(_row(case, name, status, note)))


def errors(got: Any, wanted: Any) -> dict[str, Any]:
    """Of two posteriors as arrays: for every moment the largest error over the largest entry; the worst; and how many NaNs."""
    found: dict[str, Any] = {name: _error(getattr(got, name), getattr(wanted, name)) for name in MOMENTS}
    nans = sum(int(np.isnan(getattr(got, name)).sum()) for name in MOMENTS)
    return found | {"worst": float(np.max(list(found.values()))), "nans": nans}


def _error(got: np.ndarray, wanted: np.ndarray, rows: int = 1 << 20) -> float:
    """In pieces: the arrays are large."""
    if got.shape != wanted.shape:
        raise ValueError(f"Shape {got.shape} returned, wanted {wanted.shape}.")
    got, wanted = got.reshape(-1), wanted.reshape(-1)
    pieces: Sequence[slice] = [slice(i, i + rows) for i in range(0, len(got), rows)]
    scale = max((float(np.abs(wanted[p]).max()) for p in pieces), default=0.0)
    error = np.max([np.abs(got[p] - wanted[p]).max() for p in pieces], initial=0.0)
    return float(error) / (scale or 1.0)


def _name(case: Case, name: str) -> str:
    return f"accuracy {name} {case.problem}{' gaps' if case.gaps else ''}"


def _row(case: Case, name: str, status: str, note: str = "") -> AccuracyRow:
    problem = case.problem
    sizes = problem.D, problem.m, problem.T, max(problem.B, 1), problem.dtype
    return AccuracyRow(name, *sizes, case.gaps, status, note=note)
