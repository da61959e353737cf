"""Measures, for grids of problems, how many chunks inference runs fastest with, and writes the table dispatch reads."""

import functools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from rich.progress import track

import fastscan
from fastscan import hmm_inference, lgssm_inference
from fastscan.dispatch import FAMILIES, How, choose, chunked_plan, device_kind
from fastscan.hmm_model import check_hmm
from fastscan.model import check_model
from fastscan.profiling.machine import describe
from fastscan.profiling.models import random_params
from fastscan.profiling.timing import medians

TABLE = Path(fastscan.__file__).parent / "crossover.json"

CANDIDATES = {10: (3,), 30: (3, 6), 100: (5, 10, 20), 300: (8, 16, 32), 1_000: (16, 32, 64)}
CANDIDATES |= {10_000: (32, 64, 128, 256), 100_000: (64, 128, 192, 256)}
BATCH_CANDIDATES = {10: (3,), 100: (2, 4, 8), 1_000: (2, 4, 8, 16)}
HMM_CANDIDATES = {100: (5, 10), 1_000: (16, 32, 64), 10_000: (64, 128, 256), 100_000: (128, 256, 384)}
HMM_BATCH_CANDIDATES = {100: (2, 4), 1_000: (2, 4, 8)}
DIMENSIONS = ((1, 1), (2, 1), (4, 2), (6, 1), (8, 4), (16, 8))
STATES = (2, 5, 16, 32)
HMM_WORK = 3e7
"""K^2 T B, at most: larger problems would take minutes each."""
BATCH = 64
MARGIN = 1.05
"""More chunks must be this much faster than fewer to be preferred."""


class Case(NamedTuple):
    """One problem: its family, state and emission dimensions, steps, sequences, and chunks to try beside 1."""

    family: str
    D: int
    m: int
    T: int
    B: int
    chunks: tuple[int, ...]


def cases(family: str) -> Iterator[Case]:
    """The grid of one of `dispatch.FAMILIES`; an HMM's D is its K."""
    if family == "lgssm":
        for D, m in DIMENSIONS:
            yield from (Case(family, D, m, T, 1, chunks) for T, chunks in CANDIDATES.items())
            yield from (Case(family, D, m, T, BATCH, chunks) for T, chunks in BATCH_CANDIDATES.items())
        return
    for K in STATES:
        for B, candidates in ((1, HMM_CANDIDATES), (BATCH, HMM_BATCH_CANDIDATES)):
            yield from (Case(family, K, 0, T, B, chunks) for T, chunks in candidates.items() if K**2 * T * B <= HMM_WORK)


def measure(case: Case, dtype: str = "float32") -> dict:
    """The fastest number of chunks, and how many times faster than one chunk it is."""
    run, arguments = _problem(case, dtype)
    plans = {1: choose("sequential", T=case.T, B=case.B, D=case.D, m=case.m, dtype=dtype, family=case.family).plan}
    plans |= {C: chunked_plan(case.family, device_kind(), case.T - 1, C) for C in case.chunks}
    repeats = int(np.clip(2e5 / (case.T * case.B), 5, 30))
    calls = [functools.partial(run, how=How(plan)) for plan in plans.values()]
    seconds = dict(zip(plans, medians(calls, *arguments, repeats=repeats), strict=True))
    best = 1
    for C in case.chunks:
        if seconds[C] * MARGIN < seconds[best]:
            best = C
    gain = round(max(seconds[1] / seconds[best], 1.0), 2)
    return {"D": case.D, "m": case.m, "T": case.T, "B": case.B, "dtype": dtype, "chunks": best, "gain": gain}


def write(path: Path = TABLE, families: Sequence[str] = FAMILIES) -> dict:
    """Measures grids on this device and puts them into the table, beside what is there of other devices and families."""
    table = json.loads(path.read_text()) if path.exists() else {"devices": {}}
    entry = table["devices"].setdefault(device_kind(), {"families": {}})["families"]
    for family in families:
        about = describe(f"python -m fastscan.profiling crossover --families {family}")
        rows = []
        for case in track(list(cases(family)), description=family):
            rows.append(measure(case))
            entry[family] = about | {"cases": rows}
            path.write_text(_text(table))
            jax.clear_caches()
    return table


def _problem(case: Case, dtype: str) -> tuple[Callable, tuple]:
    """What runs it, and the arguments but ``how``."""
    r = np.random.default_rng(0)
    if case.family == "lgssm":
        model, _ = check_model(random_params(case.D, case.m, dtype), case.T, case.B, np.dtype(dtype))
        emissions = jax.numpy.asarray(r.normal(size=(case.B, case.T, case.m)).astype(dtype))
        return functools.partial(lgssm_inference.smooth_states, per_step=True), (model, emissions)
    K = case.D
    arrays = r.dirichlet(np.ones(K)), r.dirichlet(np.ones(K), size=K), r.normal(size=(case.B, case.T, K))
    initial, A, log_likelihoods = (x.astype(dtype) for x in arrays)
    model, _ = check_hmm(initial, A, log_likelihoods)
    if case.family == "hmm":
        return functools.partial(hmm_inference.smooth_states, log_weights=False, counting=False), (model,)
    if case.family == "hmm_mode":
        return functools.partial(hmm_inference.most_likely_states, log_weights=False), (model,)
    uniform = jax.numpy.asarray(r.random((case.B, case.T, 1, 1)).astype(dtype))
    return functools.partial(hmm_inference.sample_states, log_weights=False), (model, uniform)


def _text(table: dict) -> str:
    """JSON with one case a line, so that a new measurement is a readable diff."""
    text = json.dumps(table, indent=2)
    return (
        re.sub(r"\{[^{}]*\}", lambda group: re.sub(r"\s*\n\s*", " ", group[0]).replace("{ ", "{").replace(" }", "}"), text)
        + "\n"
    )
