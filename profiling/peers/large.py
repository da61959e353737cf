"""Large models beside what a user would run instead, in one process."""

import functools
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import fastscan
from fastscan.dispatch.choice import How, choose
from fastscan.learn import LGSSM
from fastscan.lgssm import inference
from fastscan.lgssm.check import check_model
from fastscan.profiling.measure.machine import describe, version
from fastscan.profiling.measure.rows import write_record
from fastscan.profiling.measure.timing import clock
from fastscan.profiling.peers import packages

REPEATS = 5
OURS, PLAIN = "fastscan", "fastscan, nothing settles"


class Work(NamedTuple):
    """Something to be done: its name, our call, and others' calls by name."""

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
    """Makes the work of smoothing one series."""
    params, y = model(D, m, T, varying=varying)
    others = packages.smoothers(params, y)
    given = jax.device_put((params, y))
    others[PLAIN] = None if varying else lambda: _plain(*given)
    name = f"smoother, D={D}, m={m}, T={T:,}" + (", F and Q vary" if varying else "")
    return Work(name, lambda: fastscan.lgssm_smoother(*given), others)


@jax.jit
def _plain(params: Any, y: jax.Array) -> Any:
    """Smooths by our recursion where nobody looks whether covariances settle."""
    model, sizes = check_model(params, len(y), None, y.dtype)
    plan = choose("sequential", T=sizes.T, B=1, D=sizes.D, m=sizes.m, dtype=y.dtype).plan._replace(vectors=0)
    return inference.smooth_states(model, y[None], How(plan, None, False), False)


def learning(D: int, m: int, T: int) -> Work:
    """Makes that of a log-likelihood and its gradient."""
    params, y = model(D, m, T)
    given = jax.device_put((params, y))
    ours = jax.jit(jax.value_and_grad(functools.partial(fastscan.lgssm_marginal_loglik, missing=False)))
    others = {"dynamax": packages.log_likelihood_gradient(*given)}
    return Work(f"log-likelihood and gradient, D={D}, m={m}, T={T:,}", lambda: ours(*given), others)


def decoding(what: str, K: int, T: int) -> Work:
    """Makes that of an HMM's function."""
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


def run_large(folder: Path, only: str = "", works: tuple[Callable[[], Work], ...] = WORKS) -> list[tuple[str, str, float]]:
    """Times all work whose name holds a text, calls in turns, and prints a table.

    Args:
        folder: for the record, ``DATE-TIME-large.csv`` and a json of its name.
        only: of work whose name holds this.
        works: what makes it.

    Returns:
        Work, who did it, and the median seconds.
    """
    about = describe("python -m fastscan.profiling large")
    peers = {name: v for name in ("numba", "statsmodels", "hmmlearn", "dynamax") if (v := version(name))}
    about |= {"versions": about["versions"] | peers, "repeats": REPEATS, "memory": memory()}
    console, rows = Console(width=130), []
    for make in works:
        work = make()
        if only not in work.name:
            continue
        calls: dict[Hashable, Callable[[], Any]] = {OURS: work.ours}
        calls |= {name: call for name, call in work.others.items() if call is not None}
        for call in calls.values():
            jax.block_until_ready(call())
        rows += [(work.name, str(name), float(np.median(x.waited))) for name, x in clock(calls, repeats=REPEATS).items()]
    path = folder / time.strftime("%Y-%m-%d-%H%M-large.csv")
    write_record(path, about, ("work", "who", "seconds"), rows)
    table = Table("work", "who", "ms", title="Large models, medians of calls in turns")
    for name, who, seconds in rows:
        table.add_row(name if who == OURS else "", who, f"{1e3 * seconds:.3g}")
    console.print(table)
    for what, size in about["memory"].items():
        print(f"temporary memory of {what}, D=97, T=34,751: {size / 1e6:.1f} MB")
    print(f"record: {path}")
    return rows


def memory(D: int = 97, T: int = 34_751) -> dict[str, int]:
    """Returns the bytes of temporary memory of functions of a structural model, a level and a season of D - 1."""
    F = np.eye(D, k=-1)
    F[:2], F[1, 1:] = 0, -1
    F[0, 0] = 1
    Q, H = np.zeros((D, D)), np.zeros((1, D))
    Q[0, 0], Q[1, 1], H[0, :2] = 1e-2, 1e-3, 1
    arrays = np.zeros(D), 10 * np.eye(D), F, Q, H, np.eye(1)
    params = fastscan.make_lgssm_params(*(jnp.asarray(x, jnp.float32) for x in arrays))
    functions = {
        "lgssm_marginal_loglik": lambda params, y: fastscan.lgssm_marginal_loglik(params, y, missing=False),
        "its gradient": jax.grad(lambda params, y: fastscan.lgssm_marginal_loglik(params, y, missing=False)),
        "the E-step of fit_em": lambda params, y: LGSSM.expect(params, y[None], None, False, None),
    }
    sizes = {}
    for name, function in functions.items():
        found = jax.jit(function).lower(params, jnp.zeros((T, 1), jnp.float32)).compile().memory_analysis()
        assert found is not None, "XLA says what memory a program for a CPU takes"
        sizes[name] = found.temp_size_in_bytes
    return sizes
