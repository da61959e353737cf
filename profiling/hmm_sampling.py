"""The seed's figure: what it takes to draw an HMM's path, one step after the other and in parallel, against its length.

The seed (dynamax's pull request 342) timed calls that compiled; here the first call is told apart from the warm ones.
"""

import csv
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

import fastscan
from fastscan.dispatch import compiled_implementations
from fastscan.profiling.figures import draw_sampling
from fastscan.profiling.machine import describe
from fastscan.profiling.timing import first_call_seconds, in_subprocess, median_seconds

STATES = (2, 5)
LENGTHS = tuple(10**n for n in range(7))
LONGEST_ASSOCIATIVE, LONGEST_PARALLEL = 1_000, 100_000
"""Time steps; past these our associative and dynamax's parallel sampler compile for minutes."""
PARALLEL_LIMIT = 120.0
"""Seconds that dynamax's parallel sampler gets for compiling and all its calls."""


class Row(NamedTuple):
    """One sampler at one length; seconds are None where it was not run, or did not end within its limit."""

    sampler: str
    K: int
    T: int
    first_call: float | None
    warm: float | None


def random_hmm(K: int, T: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Initial distribution (K,), transition matrix (K, K) and log-likelihoods (T, K), float32."""
    r = np.random.default_rng(seed)
    arrays = r.dirichlet(np.ones(K)), r.dirichlet(np.ones(K), size=K), r.normal(size=(T, K))
    initial, A, log_likelihoods = (x.astype("float32") for x in arrays)
    return initial, A, log_likelihoods


def measure(K: int, T: int) -> Iterator[Row]:
    """Ours and dynamax's, at one length."""
    for name in compiled_implementations():
        if name == "associative" and T > LONGEST_ASSOCIATIVE:
            continue
        sampler = functools.partial(fastscan.hmm_posterior_sample, implementation=name)
        yield Row(f"fastscan {name}", K, T, *_time(sampler, K, T))
    from dynamax.hidden_markov_model import hmm_posterior_sample

    yield Row("dynamax serial", K, T, *_time(hmm_posterior_sample, K, T))
    seconds = in_subprocess(_PARALLEL.format(K=K, T=T), PARALLEL_LIMIT) if T <= LONGEST_PARALLEL else None
    yield Row("dynamax parallel", K, T, *(seconds or (None, None)))


def run_sampling(out: Path, lengths: Sequence[int] = LENGTHS) -> list[Row]:
    """Measures every length, prints as it goes, writes ``hmm_sampling.csv``, ``.json`` (what it ran on) and ``.png``."""
    out.mkdir(parents=True, exist_ok=True)
    about = describe("python -m fastscan.profiling hmm-sampling")
    (out / "hmm_sampling.json").write_text(json.dumps(about, indent=2) + "\n")
    console, rows = Console(width=120), []
    with (out / "hmm_sampling.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        for K in STATES:
            for T in lengths:
                for row in measure(K, T):
                    rows.append(row)
                    writer.writerow(row)
                    file.flush()
                    console.print(
                        f"K = {K}, T = {T:>9,}, {row.sampler:22} first {_text(row.first_call)}, warm {_text(row.warm)}"
                    )
                jax.clear_caches()
    draw_sampling(out / "hmm_sampling.png", [row._asdict() for row in rows])
    return rows


_PARALLEL = """
import jax
from dynamax.hidden_markov_model import parallel_hmm_posterior_sample
from fastscan.profiling.hmm_sampling import _time
print(*_time(parallel_hmm_posterior_sample, {K}, {T}))
"""


def _time(sampler: Callable[..., Any], K: int, T: int) -> tuple[float, float]:
    """Seconds of a first call, which traces and compiles, and of a warm one, all arguments being on the device."""
    arguments = jax.device_put((jax.random.PRNGKey(0), *random_hmm(K, T)))
    run = jax.jit(sampler)
    first = first_call_seconds(run, *arguments)
    return first, median_seconds(run, *arguments)


def _text(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:,.2f} ms"
