"""Switching linear dynamical systems: structured mean field, and gradients through its fixed point.

A discrete state k_t says which of K pair potentials joins x_t and x_{t+1}. The posterior of both, given potentials of the x_t
(observations, or a network's recognition potentials), is approximated by q(x) q(k), each of which keeps its own chain:

* given q(k), q(x) is a linear dynamical system, whose pair potentials are the K ones averaged over q(k_t);
* given q(x), q(k) is a hidden Markov model, whose log-likelihoods are the K potentials' expected logarithms.

Block coordinate ascent takes them in turns until the objective, a lower bound of the log normaliser of both together, changes
no more. At the fixed point ``q = F(q, parameters)`` of these turns derivatives follow from one linear system, ``w = v + J'w``
with J the Jacobian of F, whatever the number of turns was (Bendekgey, Hope & Sudderth, NeurIPS 2023; Johnson & al. 2016).

Everything is a function of arrays: `jax.vmap` takes several sequences, of which those that have converged stop changing.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax

from fastscan.given import check_key, count
from fastscan.hmm import hmm_posterior_sample, hmm_smoother
from fastscan.kernels.ranges import ranged
from fastscan.lds import InitialPotential, LDSStatistics, NodePotential, PairPotential, lds_inference, lds_sample

Gradient = Literal["implicit", "unrolled", "none"]
Solver = Literal["krylov", "fixed_point"]


class SLDSParams(NamedTuple):
    """A switching linear dynamical system: logarithms of weights, and potentials as `fastscan.lds` has them.

    Averages over what is uncertain of parameters may stand here: weights need not sum to one, and pair potentials need be no
    conditional densities.

    Attributes:
        log_initial: of the first discrete state (K,).
        log_transition: from k_t to k_{t+1} (K, K).
        init: potential of x_1.
        pair: potentials of x_t and x_{t+1} under every k_t: h1, h2 (K, D), J11, J12, J22 (K, D, D).
        log_scale: what the logarithm of each pair potential has besides (K,): the density's, for conditional densities.
        init_log_scale: the same of the initial potential, ().
    """

    log_initial: Any
    log_transition: Any
    init: InitialPotential
    pair: PairPotential
    log_scale: Any
    init_log_scale: Any = 0.0


class SLDSPosterior(NamedTuple):
    """q(x) q(k), and how it was found.

    Attributes:
        statistics: of q(x).
        probs: of q(k) (T - 1, K).
        pair: the averaged potentials that q(x) is made with, (T - 1, ...).
        log_likelihoods: that q(k) is made with (T - 1, K).
        objective: a lower bound of the log normaliser of x and k together, (), after one turn more, which made all this.
        trace: the objective after every turn (max_iters,), without derivative; after the last one it repeats.
        iterations: how many turns were taken, but for that one.
        converged: whether the objective's relative change fell to ``tol``. Where it did not, implicit gradients are those of a
            fixed point that has not been reached: take more turns, or "unrolled".

    Where q(x) has no integral, the turns end, and all is NaN.
    """

    statistics: LDSStatistics
    probs: jax.Array
    pair: PairPotential
    log_likelihoods: jax.Array
    objective: jax.Array
    trace: jax.Array
    iterations: jax.Array
    converged: jax.Array


class _Settings(NamedTuple):
    """The static settings of a call."""

    max_iters: int
    tol: float
    solver: Solver
    solver_iters: int
    solver_tol: float | None
    implementation: str | None


@ranged
def hmm_to_lds_mf(probs: jax.Array, params: SLDSParams) -> PairPotential:
    """Computes the pair potentials of q(x), given q(k): averages of the K ones.

    Args:
        probs: of the discrete states (T - 1, K).
        params: of the system, in the same dtype.

    Returns:
        h1, h2 (T - 1, D), J11, J12, J22 (T - 1, D, D), as `lds_inference` takes them.
    """
    return PairPotential(*(jnp.einsum("tk,k...->t...", probs, x, precision="highest") for x in params.pair))


@ranged
def lds_to_hmm_mf(statistics: LDSStatistics, params: SLDSParams) -> jax.Array:
    """Computes the log-likelihoods of q(k), given q(x): expected logarithms of the K pair potentials.

    Args:
        statistics: of the x_t, as `lds_inference` returns them.
        params: of the system, in the same dtype.

    Returns:
        (T - 1, K), as `hmm_smoother` takes them.
    """
    x, xx, xx_next = statistics
    contract = functools.partial(jnp.einsum, precision="highest")
    h1, J11, J12, J22, h2 = params.pair
    linear = contract("td,kd->tk", x[1:], h2) - contract("td,kd->tk", x[:-1], h1)
    squares = contract("tij,kij->tk", xx[:-1], J11) + contract("tij,kij->tk", xx[1:], J22)
    return jnp.expand_dims(params.log_scale, 0) + linear + contract("tij,kij->tk", xx_next, J12) - squares / 2


@ranged
def slds_inference(
    recog_potentials: NodePotential,
    params: SLDSParams,
    *,
    key: jax.Array | None = None,
    initial_probs: jax.typing.ArrayLike | None = None,
    max_iters: int = 100,
    tol: float = 1e-5,
    gradient: Gradient = "implicit",
    solver: Solver = "krylov",
    solver_iters: int = 100,
    solver_tol: float | None = None,
    implementation: str | None = None,
) -> SLDSPosterior:
    """Finds q(x) q(k) by structured mean field, with block coordinate ascent.

    Args:
        recog_potentials: of x_1 to x_T: r (T, D), R (T, D, D); zeros where nothing is known. T is at least 2.
        params: of the system.
        key: draws the first q(k_t), uniformly of all distributions; give this or the next.
        initial_probs: the first q(k_t) (T - 1, K).
        max_iters: turns at most.
        tol: the relative change of the objective that ends them; 0 takes all turns.
        gradient: how derivatives pass the turns. "implicit": as at a fixed point, with memory for one turn; in reverse mode
            only, and none with respect to ``initial_probs``. "unrolled": through ``max_iters`` turns, which are all taken and
            kept, those after convergence without effect. "none": q(k) counts as constant. Once it has converged, that is right
            for the objective, which is largest there, and for nothing else.
        solver: of the implicit gradient's linear system: "krylov" is JAX's GMRES, "fixed_point" repeats the adjoint turn, and
            can't be differentiated again.
        solver_iters: products with the Jacobian, about, and at most. Nothing reports a gradient that would need more.
        solver_tol: relative residual that ends them; default the dtype's epsilon to the power 2/3.
        implementation: of the scans, as in `fastscan.lgssm`.

    Returns:
        `SLDSPosterior`.

    Raises:
        TypeError: potentials that are not floats, or of several dtypes; a key that is not a random key.
        ValueError: shapes that do not fit together, a setting out of range, neither ``key`` nor ``initial_probs``, or both.
        RuntimeError: ``implementation="pallas"`` where kernels can't run.
    """
    for name, value, wanted in (("gradient", gradient, get_args(Gradient)), ("solver", solver, get_args(Solver))):
        if value not in wanted:
            raise ValueError(f"{name}: {value!r} given, wanted one of {', '.join(wanted)}.")
    max_iters, solver_iters = count("max_iters", max_iters), count("solver_iters", solver_iters)
    for name, bound in (("tol", tol), ("solver_tol", solver_tol or 0.0)):
        if not bound >= 0:
            raise ValueError(f"{name}: {bound} given, wanted a number that is not negative.")
    if (key is None) == (initial_probs is None):
        raise ValueError("key, initial_probs: wanted one of the two.")
    node, params = _checked(recog_potentials, params)
    shape = len(node.r) - 1, len(params.log_initial)
    if key is not None:
        check_key(key)
        initial_probs = jax.random.dirichlet(key, jnp.ones(shape[1], node.r.dtype), shape[:1])
    initial_probs = jnp.asarray(initial_probs)
    if initial_probs.dtype != node.r.dtype:
        raise TypeError(f"initial_probs: {initial_probs.dtype} given, wanted {node.r.dtype}, which the potentials have.")
    if initial_probs.shape != shape:
        raise ValueError(f"initial_probs: shape {initial_probs.shape} given, wanted {shape}, as T = {shape[0] + 1}.")
    settings = _Settings(max_iters, tol, solver, solver_iters, solver_tol, implementation)
    return _inference(settings, gradient, initial_probs, node, params)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _inference(
    settings: _Settings, gradient: Gradient, probs: jax.Array, node: NodePotential, params: SLDSParams
) -> SLDSPosterior:
    run = {"implicit": _implicit, "unrolled": _unrolled, "none": _constant}[gradient]
    probs, trace, iterations, converged = run(settings, probs, (node, params))
    after, pair, statistics, log_likelihoods, objective = _turn(settings, probs, (node, params))
    trace = jnp.where(
        jnp.arange(settings.max_iters, dtype=iterations.dtype) < iterations, trace, trace[iterations - 1]
    )  # no NaN of healthy data
    return SLDSPosterior(statistics, after, pair, log_likelihoods, objective, trace, iterations, converged)


Theta = tuple[NodePotential, SLDSParams]


def _turn(settings: _Settings, probs: jax.Array, theta: Theta) -> tuple[Any, ...]:
    """Goes from q(k) to q(x) to q(k): the new probabilities, the potentials and statistics on the way, and the objective, of
    q(x) and the new q(k).
    """
    node, params = theta
    pair = hmm_to_lds_mf(probs, params)
    statistics, log_normalizer = lds_inference(node, params.init, pair, implementation=settings.implementation)
    log_likelihoods = lds_to_hmm_mf(statistics, params)
    hmm = hmm_smoother(
        params.log_initial,
        params.log_transition,
        log_likelihoods,
        compute_trans_probs=False,
        implementation=settings.implementation,
        log_weights=True,
    )
    entropy_less_energy = log_normalizer - (probs * (log_likelihoods - jnp.expand_dims(params.log_scale, 0))).sum()
    objective = hmm.marginal_loglik + entropy_less_energy + params.init_log_scale
    after = jnp.where(jnp.isnan(log_normalizer), jnp.nan, hmm.smoothed_probs)  # to an HMM, NaN is what was not observed
    return after, pair, statistics, log_likelihoods, objective


class _State(NamedTuple):
    """The state of the turns: q(k), the objective of the last one, all of them, how many there were, and whether they have
    converged.
    """

    probs: jax.Array
    objective: jax.Array
    trace: jax.Array
    iterations: jax.Array
    converged: jax.Array


def _begin(settings: _Settings, probs: jax.Array) -> _State:
    trace = jnp.full(settings.max_iters, jnp.nan, probs.dtype)
    return _State(probs, jnp.array(-jnp.inf, probs.dtype), trace, jnp.int32(0), jnp.bool_(False))


def _advance(settings: _Settings, theta: Theta, state: _State) -> _State:
    probs, *_, objective = _turn(settings, state.probs, theta)
    trace = state.trace.at[state.iterations].set(lax.stop_gradient(objective))
    converged = jnp.abs(objective - state.objective) <= settings.tol * jnp.abs(objective)
    return _State(probs, objective, trace, state.iterations + 1, converged & (settings.tol > 0))


def _constant(settings: _Settings, probs: jax.Array, theta: Theta) -> tuple[jax.Array, ...]:
    theta = lax.stop_gradient(theta)

    def goes_on(state: _State) -> jax.Array:
        return (state.iterations < settings.max_iters) & ~state.converged & ~jnp.isnan(state.objective)

    first = _begin(settings, lax.stop_gradient(probs))
    probs, _, *how = lax.while_loop(goes_on, functools.partial(_advance, settings, theta), first)
    return probs, *how


def _unrolled(settings: _Settings, probs: jax.Array, theta: Theta) -> tuple[jax.Array, ...]:
    def turn(state: _State, _: None) -> tuple[_State, None]:
        after = _advance(settings, theta, state)
        return jax.tree.map(lambda a, b: jnp.where(state.converged, a, b), state, after), None

    (probs, _, *how), _ = lax.scan(turn, _begin(settings, probs), None, settings.max_iters)
    return probs, *how


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _implicit(settings: _Settings, probs: jax.Array, theta: Theta) -> tuple[jax.Array, ...]:
    return _constant(settings, probs, theta)


def _implicit_forward(settings: _Settings, probs: jax.Array, theta: Theta) -> tuple[Any, Any]:
    out: Any = _implicit(settings, probs, theta)
    return out, (out[0], theta)


def _implicit_backward(settings: _Settings, kept: Any, cotangents: Any) -> tuple[jax.Array, Theta]:
    probs, theta = kept
    _, pull = jax.vjp(lambda probs, theta: _turn(settings, probs, theta)[0], probs, theta)
    w = _SOLVERS[settings.solver](settings, lambda w: pull(w)[0], cotangents[0])
    return jnp.zeros_like(probs), pull(w)[1]


_implicit.defvjp(_implicit_forward, _implicit_backward)


def _krylov(settings: _Settings, transposed: Callable, v: jax.Array) -> jax.Array:
    starts = -(-settings.solver_iters // 20)
    w, _ = jax.scipy.sparse.linalg.gmres(
        lambda w: w - transposed(w),
        v,
        tol=_solver_tol(settings, v),
        restart=-(-settings.solver_iters // starts),
        maxiter=starts,
        solve_method="incremental",
    )
    return w


def _solver_tol(settings: _Settings, v: jax.Array) -> float:
    return float(jnp.finfo(v.dtype).eps) ** (2 / 3) if settings.solver_tol is None else settings.solver_tol


def _fixed_point(settings: _Settings, transposed: Callable, v: jax.Array) -> jax.Array:
    def goes_on(state: tuple) -> jax.Array:
        n, _, change = state
        return (n < settings.solver_iters) & (change > _solver_tol(settings, v) * jnp.linalg.norm(v))

    def again(state: tuple) -> tuple:
        n, w, _ = state
        after = v + transposed(w)
        return n + 1, after, jnp.linalg.norm(after - w)

    _, w, _ = lax.while_loop(goes_on, again, (0, v, jnp.array(jnp.inf, v.dtype)))
    return w


_SOLVERS = {"krylov": _krylov, "fixed_point": _fixed_point}


@ranged
def slds_kl(recog_potentials: NodePotential, posterior: SLDSPosterior) -> jax.Array:
    """Computes KL(q(x) q(k) || p(x, k)), where p is the density of the parameters without potentials of the x_t.

    That is a divergence, and not negative, where weights sum to one and potentials are densities.

    Args:
        recog_potentials: those that the posterior was inferred with, as `slds_inference`.
        posterior: what `slds_inference` returned.

    Returns:
        A scalar.
    """
    r, R = recog_potentials
    x, xx, _ = posterior.statistics
    return (r * x).sum() - (R * xx).sum() / 2 - posterior.objective


@ranged
def slds_sample(
    key: jax.Array,
    recog_potentials: NodePotential,
    params: SLDSParams,
    posterior: SLDSPosterior,
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Draws from q(x) q(k): states x (T, D), and discrete states (T - 1,), int32. Arguments are those of `slds_inference`."""
    check_key(key, " The order is (key, recog_potentials, params, posterior).")
    of_x, of_k = jax.random.split(key)
    x = lds_sample(of_x, recog_potentials, params.init, posterior.pair, implementation=implementation)
    _, k = hmm_posterior_sample(
        of_k,
        params.log_initial,
        params.log_transition,
        posterior.log_likelihoods,
        implementation=implementation,
        log_weights=True,
    )
    return x, k


def _checked(node: Any, params: Any) -> Theta:
    """Returns arrays of one dtype, whose shapes agree; potentials themselves are checked by `lds_inference`."""
    node, params = NodePotential(*map(jnp.asarray, node)), SLDSParams(*params)
    dtype = node.r.dtype
    if node.r.ndim != 2 or len(node.r) < 2:
        raise ValueError(f"recog_potentials: r of shape {node.r.shape} given, wanted (T, D) with T at least 2.")
    D, K = node.r.shape[1], jnp.shape(params.log_initial)[0] if jnp.ndim(params.log_initial) == 1 else 0
    if K == 0:
        raise ValueError(f"log_initial: shape {jnp.shape(params.log_initial)} given, wanted (K,).")
    if dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"recog_potentials: {dtype} given, wanted float32 or float64.")
    init, pair = InitialPotential(*params.init), PairPotential(*params.pair)
    vector, matrix = (K, D), (K, D, D)
    wanted = {"log_initial": (K,), "log_transition": (K, K), "log_scale": (K,), "init_log_scale": ()}
    given = {name: getattr(params, name) for name in wanted}
    for name, part, shapes in (
        ("init", init, ((D,), (D, D))),
        ("pair", pair, (vector, matrix, matrix, matrix, vector)),
    ):
        given |= {f"{name}.{field}": x for field, x in part._asdict().items()}
        wanted |= {f"{name}.{field}": shape for field, shape in zip(part._fields, shapes, strict=True)}
    for name, x in given.items():
        if jnp.shape(x) != wanted[name]:
            raise ValueError(f"{name}: shape {jnp.shape(x)} given, wanted {wanted[name]}, as K = {K} and D = {D}.")
        if hasattr(x, "dtype") and x.dtype != dtype:
            raise TypeError(f"{name}: {x.dtype} given, wanted {dtype}, which the recognition potentials have.")
    every = params._replace(init=init, pair=pair)
    return node, jax.tree.map(lambda x: jnp.asarray(x, dtype), every)
