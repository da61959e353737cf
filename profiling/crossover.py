"""Measures, for a grid of problems, how many chunks the smoother runs fastest with, and writes the table dispatch reads."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from rich.progress import track

import fastscan
from fastscan import lgssm
from fastscan.dispatch import choose, device_kind
from fastscan.kernels.plan import Plan
from fastscan.model import check_model
from fastscan.profiling.machine import describe
from fastscan.profiling.models import random_params
from fastscan.profiling.timing import medians

TABLE = Path(fastscan.__file__).parent / "crossover.json"

CANDIDATES = {10: (3,), 30: (3, 6), 100: (5, 10, 20), 300: (8, 16, 32), 1_000: (16, 32, 64)}
CANDIDATES |= {10_000: (32, 64, 128, 256), 100_000: (64, 128, 192, 256)}
BATCH_CANDIDATES = {10: (3,), 100: (2, 4, 8), 1_000: (2, 4, 8, 16)}
DIMENSIONS = ((1, 1), (2, 1), (4, 2), (6, 1), (8, 4), (16, 8))
BATCH = 64
MARGIN = 1.05
"""More chunks must be this much faster than fewer to be preferred."""


class Case(NamedTuple):
    """One problem: state and emission dimensions, steps, sequences, and the numbers of chunks to try beside 1."""

    D: int
    m: int
    T: int
    B: int
    chunks: tuple[int, ...]


def cases() -> Iterator[Case]:
    """The grid."""
    for D, m in DIMENSIONS:
        yield from (Case(D, m, T, 1, chunks) for T, chunks in CANDIDATES.items())
        yield from (Case(D, m, T, BATCH, chunks) for T, chunks in BATCH_CANDIDATES.items())


def measure(case: Case, dtype: str = "float32") -> dict:
    """The fastest number of chunks, and how many times faster than one chunk it is."""
    params = random_params(case.D, case.m, dtype)
    y = np.random.default_rng(0).normal(size=(case.B, case.T, case.m)).astype(dtype)
    model, _ = check_model(params, case.T, case.B, np.dtype(dtype))
    algebra = choose("sequential", T=case.T, B=case.B, D=case.D, m=case.m, dtype=dtype).plan.algebra
    runs = {C: functools.partial(lgssm._smooth, plan=Plan(case.T - 1, C, algebra=algebra)) for C in (1, *case.chunks)}
    repeats = int(np.clip(2e5 / (case.T * case.B), 5, 30))
    seconds = dict(zip(runs, medians(list(runs.values()), model, jax.numpy.asarray(y), repeats=repeats), strict=True))
    best = 1
    for C in case.chunks:
        if seconds[C] * MARGIN < seconds[best]:
            best = C
    gain = round(max(seconds[1] / seconds[best], 1.0), 2)
    return {"D": case.D, "m": case.m, "T": case.T, "B": case.B, "dtype": dtype, "chunks": best, "gain": gain}


def write(path: Path = TABLE) -> dict:
    """Measures the grid on this device and puts it into the table, beside what is there of other devices."""
    table = json.loads(path.read_text()) if path.exists() else {"devices": {}}
    about = describe("python -m fastscan.profiling crossover")
    rows = []
    for case in track(list(cases()), description="cases"):
        rows.append(measure(case))
        table["devices"][device_kind()] = about | {"cases": rows}
        path.write_text(_text(table))
        jax.clear_caches()
    return table


def _text(table: dict) -> str:
    """JSON with one case a line, so that a new measurement is a readable diff."""
    parts = []
    for device, record in sorted(table["devices"].items()):
        about = [f"      {json.dumps(k)}: {json.dumps(v)}" for k, v in record.items() if k != "cases"]
        lines = ",\n".join(f"        {json.dumps(c)}" for c in record["cases"])
        parts.append(
            f"    {json.dumps(device)}: {{\n" + ",\n".join([*about, f'      "cases": [\n{lines}\n      ]']) + "\n    }"
        )
    return '{\n  "devices": {\n' + ",\n".join(parts) + "\n  }\n}\n"
