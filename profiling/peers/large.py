"""Large models beside the best of what a user would run instead, in one process, and their errors beside dynamax's."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import fastscan
from fastscan.profiling.measure.machine import describe, version
from fastscan.profiling.measure.timing import clock
from fastscan.profiling.peers import packages

REPEATS = 5


class Work(NamedTuple):
    """Something to be done: a name, our call, others' calls by name, and what we return, in float64 from the same numbers."""

    name: str
    ours: Callable[[], Any]
    others: dict[str, Callable[[], Any] | None]


def model(D: int, m: int, T: int, *, varying: bool = False) -> tuple[Any, np.ndarray]:
    """Makes a model whose states turn and fade, and data: float32. Where it varies, every step has F and Q of its own."""
    r = np.random.default_rng(0)
    turn = np.linalg.qr(r.standard_normal((D, D)))[0]
    noise = r.standard_normal((D, D)) / np.sqrt(D)
    F, Q = 0.95 * turn, 0.1 * (noise @ noise.T + np.eye(D))
    if varying:
        fading = 1 - 0.1 * r.random((T, 1, 1))
        F, Q = F * fading, Q * fading
    H = r.standard_normal((m, D)) / np.sqrt(D)
    arrays = np.zeros(D), np.eye(D), F, Q, H, 0.5 * np.eye(m)
    params = fastscan.make_lgssm_params(*(np.asarray(x, np.float32) for x in arrays))
    return params, r.standard_normal((T, m)).astype(np.float32)


def states(K: int, T: int) -> tuple[np.ndarray, ...]:
    """Makes a hidden Markov model of K states and log-likelihoods: float32."""
    r = np.random.default_rng(0)
    arrays = np.full(K, 1 / K), r.dirichlet(np.ones(K), K), 2 * r.standard_normal((T, K))
    return tuple(x.astype(np.float32) for x in arrays)


def smoothing(D: int, m: int, T: int, varying: bool = False) -> Work:
    """Smoothing one series."""
    params, y = model(D, m, T, varying=varying)
    others = packages.smoothers(params, y)
    given = jax.device_put((params, y))
    others["our plain recursion"] = None if varying else lambda: fastscan.lgssm_smoother(*given, implementation="chunked")
    name = f"smoother, D={D}, m={m}, T={T:,}" + (", F and Q vary" if varying else "")
    return Work(name, lambda: fastscan.lgssm_smoother(*given), others)


def learning(D: int, m: int, T: int) -> Work:
    """The log-likelihood of a series and its gradient."""
    params, y = model(D, m, T)
    given = jax.device_put((params, y))
    ours = jax.jit(jax.value_and_grad(functools.partial(fastscan.lgssm_marginal_loglik, missing=False)))
    others = {"dynamax": packages.log_likelihood_gradient(*given)}
    return Work(f"log-likelihood and gradient, D={D}, m={m}, T={T:,}", lambda: ours(*given), others)


def decoding(what: str, K: int, T: int) -> Work:
    """An HMM's function."""
    given = states(K, T)
    key = (jax.random.key(0),) if what == "posterior_sample" else ()
    ours, here = getattr(fastscan, f"hmm_{what}"), jax.device_put(given)
    return Work(f"hmm_{what}, K={K}, T={T:,}", lambda: ours(*key, *here), packages.hidden_markov(what, *given))


WORKS: tuple[Callable[[], Work], ...] = (
    *(functools.partial(smoothing, *sizes) for sizes in ((16, 8, 10_000), (32, 16, 2_000), (64, 32, 1_000))),
    *(functools.partial(smoothing, *sizes, varying=True) for sizes in ((32, 16, 2_000), (64, 32, 1_000))),
    functools.partial(learning, 30, 16, 10_000),
    *(
        functools.partial(decoding, what, K, T)
        for what in ("posterior_mode", "smoother", "posterior_sample")
        for K, T in ((32, 10_000), (64, 10_000), (100, 10_000), (128, 2_000))
    ),
)


def run_large(only: str = "", works: tuple[Callable[[], Work], ...] = WORKS) -> list[dict[str, float]]:
    """Times all work whose name holds a text, and prints a table: milliseconds, medians of calls in turns.

    Returns:
        For each work the seconds of ours and of others, by their names.
    """
    console, rows = Console(), []
    table = Table("work", "ours, ms", "others, ms", "the best of them over ours", title=_title())
    for make in works:
        work = make()
        if only not in work.name:
            continue
        calls = {"ours": work.ours} | {name: call for name, call in work.others.items() if call is not None}
        for call in calls.values():
            jax.block_until_ready(call())
        seconds = {str(name): float(np.median(x.waited)) for name, x in clock(calls, repeats=REPEATS).items()}
        theirs = {name: s for name, s in seconds.items() if name not in ("ours", "our plain recursion")}
        told = ", ".join(f"{name} {1e3 * s:.3g}" for name, s in seconds.items() if name != "ours")
        ratio = f"{min(theirs.values()) / seconds['ours']:.1f}" if theirs else "-"
        table.add_row(work.name, f"{1e3 * seconds['ours']:.3g}", told, ratio)
        rows.append(seconds)
    console.print(table)
    return rows


def _title() -> str:
    on = describe("python -m fastscan.profiling large")
    versions = {**on["versions"], **{name: version(name) for name in ("numba", "statsmodels", "hmmlearn", "dynamax")}}
    told = ", ".join(f"{name} {number}" for name, number in versions.items() if number)
    return f"{on['machine']}, commit {on['commit']}, {told}"


def memory(D: int = 97, T: int = 34_751) -> int:
    """Returns the bytes of temporary memory of a structural model's log-likelihood: a level and a season of D - 1."""
    F = np.eye(D, k=-1)
    F[:2], F[1, 1:] = 0, -1
    F[0, 0] = 1
    Q, H = np.zeros((D, D)), np.zeros((1, D))
    Q[0, 0], Q[1, 1], H[0, :2] = 1e-2, 1e-3, 1
    arrays = np.zeros(D), 10 * np.eye(D), F, Q, H, np.eye(1)
    params = fastscan.make_lgssm_params(*(jnp.asarray(x, jnp.float32) for x in arrays))
    call = jax.jit(fastscan.lgssm_marginal_loglik).lower(params, jnp.zeros((T, 1), jnp.float32))
    return call.compile().memory_analysis().temp_size_in_bytes
