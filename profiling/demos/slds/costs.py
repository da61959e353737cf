"""Costs of mean field in the notebook's problem: gradients over the number of turns, and a long series against other ways.

The problem has the sizes of the notebook on implicit gradients that belongs to Bendekgey, Hope & Sudderth (NeurIPS 2023, arXiv
2306.08230), T = 100, D = 5, K = 4 and 20 emissions, and is simulated: slow rotations that take turns, so much alike that noisy
emissions leave in doubt which one it is.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastscan.lds import InitialPotential, NodePotential, PairPotential
from fastscan.profiling.demos.slds import by_scan as textbook
from fastscan.profiling.measure.timing import clock
from fastscan.slds import SLDSParams, slds_inference, slds_kl

T, D, K, N = 100, 5, 4, 20
TURNS = (10, 20, 50, 100, 200)
LONG, LONG_TURNS = 1_000, 100
"""Time steps and turns of the comparison on a long series."""
GRADIENTS = "implicit", "unrolled"

Theta = tuple[NodePotential, SLDSParams]


class Dynamics(NamedTuple):
    """Under every discrete state, x' = A x + b + w, w ~ N(0, diag(exp(log_q))): A (K, D, D), the others (K, D)."""

    A: Any
    b: Any
    log_q: Any


class Cost(NamedTuple):
    """The cost of a gradient after some turns: seconds, and bytes that XLA allocates."""

    seconds: float
    bytes: int


class GradientCosts(NamedTuple):
    """A cost of each of `GRADIENTS` for every number of turns; and how far the two are apart, relative to the unrolled one.

    That is the largest norm of a difference over blocks of parameters.
    """

    costs: dict[str, list[Cost]]
    apart: list[float]


class Speed(NamedTuple):
    """Seconds of what is ours and of the other way, and how far their results are apart, as in `GradientCosts`."""

    ours: float
    other: float
    apart: float


def conditional(dynamics: Dynamics) -> tuple[PairPotential, jax.Array]:
    """Makes pair potentials of conditional densities, and the logarithms of their scales."""
    A, b, log_q = dynamics
    P = jnp.exp(-log_q)
    AP = A.mT * P[:, None, :]
    h1, h2 = (AP @ b[..., None])[..., 0], P * b
    J22 = P[..., None] * jnp.eye(P.shape[-1], dtype=P.dtype)
    scale = -0.5 * ((b * h2).sum(-1) + log_q.sum(-1) + P.shape[-1] * np.log(2 * np.pi))
    return PairPotential(h1, AP @ A, AP, J22, h2), scale


def notebook_problem(T: int = T, seed: int = 0) -> tuple[NodePotential, SLDSParams, jax.Array]:
    """Makes the problem: what emissions of a simulated series say, the parameters, and first probabilities of the discrete
    states.
    """
    r = np.random.default_rng(seed)
    skew = r.standard_normal((K, D, D))
    A = (
        jax.vmap(jax.scipy.linalg.expm)(0.02 * jnp.arange(1, K + 1)[:, None, None] * (skew - skew.transpose(0, 2, 1)) / 2)
        * 0.98
    )
    b, log_q = 0.02 * r.standard_normal((K, D)), np.log(r.uniform(0.05, 0.06, (K, D)))
    pair, scale = conditional(Dynamics(A, jnp.asarray(b), jnp.asarray(log_q)))
    transition = 0.95 * np.eye(K) + 0.05 / K
    H, noise = r.standard_normal((N, D)), r.uniform(5, 20, N)
    x, k, said = r.standard_normal(D), 0, []
    for _ in range(T):
        said.append(H.T @ ((H @ x) / noise + r.standard_normal(N) / np.sqrt(noise)))
        k = r.choice(K, p=transition[k] / transition[k].sum())
        x = np.asarray(A[k]) @ x + b[k] + np.exp(log_q[k] / 2) * r.standard_normal(D)
    node = NodePotential(np.array(said), np.broadcast_to(H.T / noise @ H, (T, D, D)))
    init = InitialPotential(np.zeros(D), np.eye(D))
    params = SLDSParams(np.full(K, -np.log(K)), np.log(transition), init, pair, scale, -D / 2 * np.log(2 * np.pi))
    first = r.dirichlet(np.ones(K), T - 1)
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(float)), (node, params, first))


def loss(theta: Theta, first: jax.Array, gradient: Any, turns: int) -> jax.Array:
    """Computes the divergence from the prior and a function of the states, as a structured VAE's loss is."""
    posterior = slds_inference(*theta, initial_probs=first, max_iters=turns, tol=0, gradient=gradient)
    return slds_kl(theta[0], posterior) + jnp.tanh(posterior.statistics.x).sum()


def gradient_costs(turns: tuple[int, ...] = TURNS, T: int = T, begin: Callable[[str], None] = lambda _: None) -> GradientCosts:
    """Measures loss and gradient after so many turns.

    Args:
        turns: how many, one after another.
        T: time steps.
        begin: called with words as each of these begins.
    """
    node, params, first = notebook_problem(T)
    found = GradientCosts({name: [] for name in GRADIENTS}, [])
    for n in turns:
        begin(f"gradients after {n} turns, by two ways")
        programs = {name: _gradient((node, params), first, name, n) for name in GRADIENTS}
        seconds, apart = _compare(programs, (node, params))
        found.apart.append(apart)
        for name, program in programs.items():
            found.costs[name].append(Cost(seconds[name], program.memory_analysis().temp_size_in_bytes))
    return found


def speeds(T: int = LONG, turns: int = LONG_TURNS, begin: Callable[[str], None] = lambda _: None) -> dict[str, Speed]:
    """Compares inference in a long series with `lax.scan` over time, and implicit gradients with unrolled ones.

    Args:
        T: time steps.
        turns: of the mean field.
        begin: called with words as each of the two comparisons begins.
    """
    node, params, first = notebook_problem(T)
    theta = node, params

    def ours(theta: Theta) -> tuple:
        posterior = slds_inference(*theta, initial_probs=first, max_iters=turns, tol=0, gradient="none")
        return posterior.statistics, posterior.probs, posterior.objective

    def scans(theta: Theta) -> tuple:
        return textbook.slds(*theta, first, turns)

    pairs: dict[str, Callable[[], list[Any]]] = {
        "inference": lambda: [jax.jit(function).lower(theta).compile() for function in (ours, scans)],
        "loss and gradient": lambda: [_gradient(theta, first, name, turns) for name in GRADIENTS],
    }
    found = {}
    for what, compiled in pairs.items():
        begin(f"{what} of {T:,} steps, by two ways")
        programs = compiled()
        seconds, apart = _compare(dict(enumerate(programs)), theta)
        found[what] = Speed(seconds[0], seconds[1], apart)
    return found


def _gradient(theta: Theta, first: jax.Array, name: str, turns: int) -> Any:
    """Compiles the loss and its gradient."""
    return jax.jit(jax.value_and_grad(functools.partial(loss, first=first, gradient=name, turns=turns))).lower(theta).compile()


def _compare(programs: dict[Any, Callable], theta: Theta) -> tuple[dict[Any, float], float]:
    """Measures median seconds of programs, and how far the first one's result is from the second one's."""
    mine, other = (jax.block_until_ready(program(theta)) for program in programs.values())
    times = clock({name: functools.partial(program, theta) for name, program in programs.items()}, repeats=9)
    seconds = {name: float(np.median(time.waited)) for name, time in times.items()}
    return seconds, max(jax.tree.leaves(jax.tree.map(_apart, mine, other)))


def _apart(got: jax.Array, wanted: jax.Array) -> float:
    return float(jnp.linalg.norm(jnp.ravel(got - wanted)) / jnp.linalg.norm(jnp.ravel(wanted)))
