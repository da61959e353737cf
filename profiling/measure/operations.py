"""The operations that cases run: their data, ours, dynamax's, and a float64 reference.

`OPERATIONS` has a line for each. Functions take the arguments that the case's data are, and return what is compared.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

import fastscan
from fastscan import lds
from fastscan.dispatch.choice import How
from fastscan.hmm import inference as hmm_inference
from fastscan.hmm.check import check_hmm
from fastscan.learn import LGSSM, from_unconstrained, log_det_jac_constrain, to_unconstrained
from fastscan.lgssm import inference as lgssm_inference
from fastscan.lgssm.check import check_model
from fastscan.profiling.measure import chains
from fastscan.profiling.measure.cases import Case
from fastscan.profiling.measure.models import random_params

SEQUENTIAL, PARALLEL, PUBLIC = "dynamax sequential", "dynamax parallel", "public call"
LEAPFROGS, STEP_SIZE = 5, 1e-3
_KEY = np.array([0, 1], np.uint32)

Function = Callable[..., Any]


class Operation(NamedTuple):
    """One line of `OPERATIONS`.

    Attributes:
        data: of a case: the arguments as NumPy arrays.
        ours: of a case and an implementation's name: the function.
        dynamax: of a case and whether in parallel: the function, without a batch axis; None if dynamax has none.
        mapped: for a batch, along which axes of the arguments `jax.vmap` maps dynamax's.
        reference: of a case: a function of the same arguments in float64, where dynamax's can't be one (it draws other
            samples).
        about: in words, what that reference is.
        bound: errors above it are wrong; default what the dtype allows.
    """

    data: Callable[[Case], tuple]
    ours: Callable[[Case, str | None], Function]
    dynamax: Callable[[Case, bool], Function | None]
    mapped: tuple[int | None, ...]
    reference: Callable[[Case], Function] | None = None
    about: str = "our sequential code, given the same noise, float64"
    bound: float | None = None


def _lgssm_data(case: Case, gaps: bool = False) -> tuple:
    r = np.random.default_rng(0)
    y = 2 * r.standard_normal((case.B, case.T, case.m), "float32").astype(case.dtype)
    if gaps:
        y[r.random(y.shape[:2]) < 0.1] = np.nan
        y[r.random(y.shape) < 0.05] = np.nan
        y[:, case.T // 3 : case.T // 3 + min(50, case.T // 4)] = np.nan
    params = jax.tree.map(lambda x: np.asarray(x, case.dtype), random_params(case.D, case.m))
    return params, y if case.B > 1 else y[0]


def _varying_data(case: Case) -> tuple:
    """Dynamics that differ at every step, as irregular times or regimes make them."""
    params, y = _lgssm_data(case)
    dynamics = params.dynamics
    by = (1 - 0.1 * np.random.default_rng(1).random((case.T, 1, 1), "float32")).astype(case.dtype)
    return params._replace(dynamics=dynamics._replace(weights=by * dynamics.weights, cov=by * dynamics.cov)), y


def _remembering_data(case: Case) -> tuple:
    """Coefficients that stay as they are, but for the first, which wanders: a regression, which never forgets."""
    params, y = _lgssm_data(case)
    noise = np.diag([0.1, *[0.0] * (case.D - 1)]).astype(case.dtype)
    dynamics = params.dynamics._replace(weights=np.eye(case.D, dtype=case.dtype), cov=noise)
    return params._replace(dynamics=dynamics), y


def _hmm_data(case: Case) -> tuple:
    r = np.random.default_rng(0)
    K = case.D
    arrays = r.dirichlet(np.ones(K)), r.dirichlet(np.ones(K), size=K), r.standard_normal((case.B, case.T, K), "float32")
    initial, A, log_likelihoods = (x.astype("float32").astype(case.dtype) for x in arrays)
    return initial, A, log_likelihoods if case.B > 1 else log_likelihoods[0]


def _keyed(data: Callable[[Case], tuple]) -> Callable[[Case], tuple]:
    return lambda case: (_KEY, *data(case))


def _named(name: str, **options: Any) -> Callable[[Case, str | None], Function]:
    """Returns one of our public functions."""
    return lambda _, implementation: functools.partial(getattr(fastscan, name), implementation=implementation, **options)


def _complete(name: str) -> Callable[[Case, str | None], Function]:
    """Returns one of our functions for emissions without gaps. A call outside `jit` finds that out; under `jit` it has to be
    said.
    """
    return _named(name, missing=False)


def _dynamax(module: str, name: str, *, parallel: bool = True) -> Callable[[Case, bool], Function | None]:
    """Returns one of dynamax's functions; ``parallel``: there is a parallel one, too."""

    def function(case: Case, wanted: bool) -> Function | None:  # noqa: ARG001
        if wanted and not parallel:
            return None
        return getattr(importlib.import_module(f"dynamax.{module}"), f"parallel_{name}" if wanted else name)

    return function


def _nothing(*_: Any) -> None:
    """Returns None: dynamax has no such function."""


def _key(_: Case) -> tuple:
    return (_KEY,)


_LGSSM, _HMM = "linear_gaussian_ssm", "hidden_markov_model"


def _lgssm_sample_reference(case: Case) -> Function:
    def sample(key: jax.Array, params: Any, y: jax.Array) -> jax.Array:
        y = y.reshape(case.B, case.T, case.m)
        model, _ = check_model(params, case.T, case.B if case.B > 1 else None, y.dtype)
        noise = jax.random.normal(key, (case.B, case.T, case.D), case.dtype).astype(y.dtype)
        states = lgssm_inference.sample_states(model, y, noise, jnp.zeros((), y.dtype), _reference_how(case))
        return states.reshape(*y.shape[:2], case.D) if case.B > 1 else states[0, ..., 0]

    return sample


def _hmm_sample_reference(case: Case) -> Function:
    def sample(key: jax.Array, *hmm: jax.Array) -> tuple[jax.Array, jax.Array]:
        initial, A, log_likelihoods = hmm
        model, batched = check_hmm(initial, A, log_likelihoods)
        uniform = jax.random.uniform(key, (case.B, case.T, 1, 1), case.dtype).astype(log_likelihoods.dtype)
        out = hmm_inference.sample_states(model, uniform, _reference_how(case), log_weights=False)
        return out if batched else jax.tree.map(lambda x: x[0], out)

    return sample


def _reference_how(case: Case) -> How:
    return How(case.choice("sequential", dtype="float64").plan)


def _symmetric(gradients: Any) -> Any:
    """Makes an LGSSM's gradients of covariances symmetric: how an entry shares with its mirror image is a convention."""

    def mirrored(part: Any) -> Any:
        return part._replace(cov=(part.cov + part.cov.T) / 2)

    return gradients._replace(**{name: mirrored(getattr(gradients, name)) for name in ("initial", "dynamics", "emissions")})


def _lgssm_loglik_gradient(loglik: Function) -> Function:
    """Makes the function of the log-likelihood, and its gradient with respect to the parameters."""

    def run(params: Any, y: jax.Array) -> tuple[jax.Array, Any]:
        value, gradients = jax.value_and_grad(loglik)(params, y)
        return value, _symmetric(gradients)

    return run


def _lgssm_loglik_gradient_dynamax(case: Case, parallel: bool) -> Function | None:
    loglik = _loglik_of_filter(case, parallel)
    return loglik and _lgssm_loglik_gradient(loglik)


def _hmm_loglik_gradient(_: Case, implementation: str | None) -> Function:
    return jax.value_and_grad(functools.partial(fastscan.hmm_marginal_loglik, implementation=implementation), (0, 1, 2))


def _hmm_loglik_gradient_dynamax(case: Case, parallel: bool) -> Function | None:
    filter_ = _dynamax(_HMM, "hmm_filter")(case, parallel)
    return filter_ and jax.value_and_grad(lambda *hmm: filter_(*hmm).marginal_loglik, (0, 1, 2))


def _mean_gradient(case: Case, smoother: Function | None) -> Function | None:
    """Makes the gradient of a smoothed mean in the middle, with respect to the parameters."""
    gradient = smoother and jax.grad(lambda params, y: smoother(params, y).smoothed_means[case.T // 2].sum())
    return gradient and (lambda params, y: _symmetric(gradient(params, y)))


def _loglik_of_filter(case: Case, parallel: bool) -> Function | None:
    filter_ = _dynamax(_LGSSM, "lgssm_filter")(case, parallel)
    return filter_ and (lambda params, y: filter_(params, y).marginal_loglik)


def _leapfrogs(case: Case, loglik: Callable[[Any, jax.Array], jax.Array]) -> Function:
    """Makes Hamiltonian steps of every chain, all parameters free, by blackjax; all chains begin alike but for their
    momenta.
    """
    from blackjax.mcmc import integrators, metrics, trajectory

    def run(params: Any, y: jax.Array, momenta: jax.Array) -> tuple[Any, jax.Array]:
        constraints = LGSSM.constraints(params)

        def log_density(position: Any) -> jax.Array:
            return loglik(from_unconstrained(position, constraints, params), y) + log_det_jac_constrain(position, constraints)

        position = to_unconstrained(params, constraints)
        flat, unravel = jax.flatten_util.ravel_pytree(position)
        metric = metrics.gaussian_euclidean(jnp.ones_like(flat))
        move = trajectory.static_integration(integrators.velocity_verlet(log_density, metric.kinetic_energy))

        def chain(momentum: jax.Array) -> tuple[Any, jax.Array]:
            state = integrators.new_integrator_state(log_density, position, unravel(momentum[: flat.size]))
            end = move(state, STEP_SIZE, LEAPFROGS)
            return end.position, end.logdensity

        return jax.vmap(chain)(momenta) if case.B > 1 else chain(momenta[0])

    return run


def _leapfrog_data(case: Case) -> tuple:
    momenta = np.random.default_rng(1).standard_normal((case.B, 4 * (case.D + case.m) ** 2), "float32")
    return *_lgssm_data(case._replace(B=1)), momenta.astype(case.dtype)


def _leapfrogs_dynamax(case: Case, parallel: bool) -> Function | None:
    loglik = _loglik_of_filter(case, parallel)
    return loglik and _leapfrogs(case, loglik)


def _leapfrogs_ours(case: Case, implementation: str | None) -> Function:
    return _leapfrogs(case, _complete("lgssm_marginal_loglik")(case, implementation))


_LGSSM_AXES, _HMM_AXES = (None, 0), (None, None, 0)
_SMOOTHER = Operation(_lgssm_data, _complete("lgssm_smoother"), _dynamax(_LGSSM, "lgssm_smoother"), _LGSSM_AXES)

OPERATIONS: dict[str, Operation] = {
    "lgssm_smoother": _SMOOTHER,
    "lgssm_smoother_with_gaps": _SMOOTHER._replace(
        data=functools.partial(_lgssm_data, gaps=True),
        ours=_named("lgssm_smoother", missing=True),
        dynamax=_nothing,
    ),
    "lgssm_smoother_remembering": _SMOOTHER._replace(data=_remembering_data),
    "lgssm_smoother_varying": _SMOOTHER._replace(data=_varying_data),
    "lgssm_filter": _SMOOTHER._replace(ours=_complete("lgssm_filter"), dynamax=_dynamax(_LGSSM, "lgssm_filter")),
    "lgssm_marginal_loglik": _SMOOTHER._replace(ours=_complete("lgssm_marginal_loglik"), dynamax=_loglik_of_filter),
    "lgssm_posterior_sample": Operation(
        _keyed(_lgssm_data),
        _complete("lgssm_posterior_sample"),
        _dynamax(_LGSSM, "lgssm_posterior_sample"),
        (None, *_LGSSM_AXES),
        _lgssm_sample_reference,
    ),
    "lgssm_loglik_gradient": _SMOOTHER._replace(
        ours=lambda case, name: _lgssm_loglik_gradient(_complete("lgssm_marginal_loglik")(case, name)),
        dynamax=_lgssm_loglik_gradient_dynamax,
    ),
    "lgssm_mean_gradient": _SMOOTHER._replace(
        ours=lambda case, name: _mean_gradient(case, _complete("lgssm_smoother")(case, name)),
        dynamax=lambda case, parallel: _mean_gradient(case, _dynamax(_LGSSM, "lgssm_smoother")(case, parallel)),
    ),
    "lgssm_leapfrogs": Operation(_leapfrog_data, _leapfrogs_ours, _leapfrogs_dynamax, ()),
    "hmm_filter": Operation(_hmm_data, _named("hmm_filter"), _dynamax(_HMM, "hmm_filter"), _HMM_AXES),
    "hmm_smoother": Operation(_hmm_data, _named("hmm_smoother"), _dynamax(_HMM, "hmm_smoother"), _HMM_AXES),
    "hmm_posterior_mode": Operation(
        _hmm_data, _named("hmm_posterior_mode"), _dynamax(_HMM, "hmm_posterior_mode", parallel=False), _HMM_AXES
    ),
    "hmm_posterior_sample": Operation(
        _keyed(_hmm_data),
        _named("hmm_posterior_sample"),
        _dynamax(_HMM, "hmm_posterior_sample"),
        (None, *_HMM_AXES),
        _hmm_sample_reference,
    ),
    "hmm_loglik_gradient": Operation(_hmm_data, _hmm_loglik_gradient, _hmm_loglik_gradient_dynamax, _HMM_AXES),
    "lds_inference": Operation(
        chains.potentials, lambda _, name: functools.partial(lds.lds_inference, implementation=name), _nothing, ()
    ),
    "metropolis_moments": Operation(
        _key, chains.moments, _nothing, (), chains.moments_reference, "the mixture's own moments", chains.MOMENTS_BOUND
    ),
    "metropolis_positions": Operation(
        _key, chains.positions, _nothing, (), chains.positions_reference, "XLA on the CPU, float32", chains.DECISIONS_BOUND
    ),
}


@functools.lru_cache(maxsize=1)
def data(case: Case) -> tuple:
    """Makes the case's arguments."""
    return OPERATIONS[case.operation].data(case)


def function(case: Case, implementation: str) -> Function | None:
    """Makes the function that runs a case, to be jitted but for `PUBLIC`; None if dynamax has no such function.

    Args:
        case: the case.
        implementation: one of fastscan's names, "default", or one of the three of this module.
    """
    operation = OPERATIONS[case.operation]
    if implementation in (SEQUENTIAL, PARALLEL):
        theirs = operation.dynamax(case, implementation == PARALLEL)
        return jax.vmap(theirs, operation.mapped) if theirs and case.B > 1 and operation.mapped else theirs
    return operation.ours(case, None if implementation in ("default", PUBLIC) else implementation)


def as_users_write(case: Case) -> Function:
    """Makes the function of a case with no options given, and so without word whether emissions are missing."""
    if case.operation == "lgssm_loglik_gradient":
        return _lgssm_loglik_gradient(fastscan.lgssm_marginal_loglik)
    return getattr(fastscan, case.operation)


def reference(case: Case, dynamax: bool) -> tuple[list[np.ndarray], str]:
    """Computes the case's results in float64 on the CPU, from the same numbers; and says in words how.

    dynamax's sequential code is asked where it is at hand and done in seconds, else our own, in chunks where that takes long.
    For float64 it is no reference: it adds 1e-9 to variances.
    """
    steps, operation = case.T * case.B, OPERATIONS[case.operation]
    trusted = dynamax and steps <= 20_000 and (case.dtype == "float32" or case.operation.startswith("hmm"))
    name = SEQUENTIAL if trusted else "sequential" if steps <= 100_000 else "chunked"
    run = operation.reference(case) if operation.reference else function(case, name)
    if run is None:
        name = "sequential"
        run = operation.ours(case, name)
    how = operation.about if operation.reference else f"{name}, float64"
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        double = jax.tree.map(lambda x: x.astype("float64") if x.dtype.kind == "f" else x, data(case))
        return results(jax.jit(run)(*double)), how


def results(out: Any) -> list[np.ndarray]:
    """Lists the arrays to compare."""
    return [np.asarray(x) for x in jax.tree.leaves(out)]


def error(got: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """Computes the largest error of any array, over that array's largest entry; of states, which are integers, the share that
    differs.

    NaN if a NaN is among them that is not in the reference. Arrays that only ours return (a posterior's optional fields come
    last) are not looked at.
    """
    return float(np.max([_error(g, w) for g, w in zip(got, wanted, strict=False)]))


def _error(got: np.ndarray, wanted: np.ndarray, rows: int = 1 << 20) -> float:
    """Computes it in pieces: arrays may be large."""
    if got.shape != wanted.shape:
        raise ValueError(f"Shape {got.shape} returned, wanted {wanted.shape}.")
    if got.dtype.kind in "iu":
        return float((got != wanted).mean())
    got, wanted = got.reshape(-1), wanted.reshape(-1)
    pieces = [slice(i, i + rows) for i in range(0, len(got), rows)]
    scale = max((float(np.abs(wanted[p]).max()) for p in pieces), default=0.0)
    worst = np.max([np.abs(got[p] - wanted[p]).max() for p in pieces], initial=0.0)
    return float(worst) / (scale or 1.0)
