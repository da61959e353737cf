"""Parameters and posteriors of nonlinear models, with dynamax 1.0.3's names and fields."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class ParamsNLGSSM(NamedTuple):
    """A nonlinear Gaussian model: z_t = f(z_{t-1}, u_t) + w_t, w_t ~ N(0, Q_t); y_t = h(z_t, u_t) + v_t, v_t ~ N(0, R_t).

    Without inputs the functions take the state alone. They may close over arrays, with respect to which results have
    derivatives. Any object with these fields is accepted in its place, dynamax's among them.

    Attributes:
        initial_mean: of the first state (D,).
        initial_covariance: likewise (D, D).
        dynamics_function: f, from (D,) and an input to (D,).
        dynamics_covariance: Q, (D, D) or (T, D, D). Entry t belongs to the transition into t; entry 0 is not read.
        emission_function: h, from (D,) and an input to (m,).
        emission_covariance: R, (m, m) or (T, m, m).
    """

    initial_mean: Any
    initial_covariance: Any
    dynamics_function: Callable[..., Any]
    dynamics_covariance: Any
    emission_function: Callable[..., Any]
    emission_covariance: Any


class ParamsGGSSM(NamedTuple):
    """A model whose emissions have any density with a mean and a covariance, which are functions of the state.

    Inference takes these two for the curvature of the density's logarithm, which they are for an exponential family of which
    the mean is a function of the natural parameter: Poisson counts, for one. Any object with these fields is accepted in its
    place, dynamax's among them.

    Attributes:
        initial_mean, initial_covariance, dynamics_function, dynamics_covariance: as in `ParamsNLGSSM`.
        emission_mean_function: from (D,) and an input to E[y_t | z_t], (m,).
        emission_cov_function: likewise to Cov[y_t | z_t], (m, m), or variances (m,).
        emission_dist: from a mean and a covariance, as those two return them, to an object with ``log_prob(y)``: of all
            entries together, or of each. `Poisson` is one.
    """

    initial_mean: Any
    initial_covariance: Any
    dynamics_function: Callable[..., Any]
    dynamics_covariance: Any
    emission_mean_function: Callable[..., Any]
    emission_cov_function: Callable[..., Any]
    emission_dist: Callable[[Any, Any], Any]


class Poisson(NamedTuple):
    """Independent counts, of which mean and variance are the same (m,)."""

    mean: Any
    cov: Any

    def log_prob(self, y: jax.Array) -> jax.Array:
        """Computes the log probability of every count."""
        return jax.scipy.stats.poisson.logpmf(y, self.mean)


class Bernoulli(NamedTuple):
    """Independent events, whose probabilities are their means (m,)."""

    mean: Any
    cov: Any

    def log_prob(self, y: jax.Array) -> jax.Array:
        """Computes the log probability of every event."""
        return jax.scipy.special.xlogy(y, self.mean) + jax.scipy.special.xlog1py(1 - y, -self.mean)


class UKFHyperParams(NamedTuple):
    """Where the sigma points of the unscented transform lie, and what they weigh (Särkkä 2013, section 5.5).

    Attributes:
        alpha: how far they spread.
        beta: what the centre weighs more in covariances: 2 for Gaussians.
        kappa: likewise; lambda is alpha² (D + kappa) - D.
    """

    alpha: Any = math.sqrt(3)
    beta: Any = 2
    kappa: Any = 1


class PosteriorIterated(NamedTuple):
    """Moments of a posterior that is Gaussian around a path, and how that path was found.

    The path is the posterior mode's for extended smoothers; for unscented ones it is the mean that the model has, linearised
    around the posterior itself.

    Attributes:
        marginal_loglik: Laplace's approximation of log p(y_1..T), a scalar; for unscented smoothers that of the last linearised
            model.
        filtered_means, filtered_covariances: of the last linearised model, (T, D) and (T, D, D).
        smoothed_means, smoothed_covariances: (T, D) and (T, D, D).
        smoothed_cross_covariances: the second moments E[z_t z_{t+1}'], (T - 1, D, D); dynamax's name, and not a covariance.
        objective: minus the log density of path and emissions, but for constants, at the start and after every step,
            (num_iter,); after the last step it repeats.
        iterations: how often the model was linearised and smoothed, ().
        converged: whether the last change of the path was within the tolerance, ().
    """

    marginal_loglik: jax.Array
    filtered_means: jax.Array
    filtered_covariances: jax.Array
    smoothed_means: jax.Array
    smoothed_covariances: jax.Array
    smoothed_cross_covariances: jax.Array
    objective: jax.Array
    iterations: jax.Array
    converged: jax.Array


def poisson_params(
    initial_mean: Any,
    initial_covariance: Any,
    dynamics_function: Callable[..., Any],
    dynamics_covariance: Any,
    log_rate_function: Callable[..., Any],
) -> ParamsGGSSM:
    """Makes the `ParamsGGSSM` of Poisson counts, from the function that gives the logarithms of their rates (m,)."""

    def rate(*given: Any) -> jax.Array:
        return jnp.exp(log_rate_function(*given))

    return ParamsGGSSM(initial_mean, initial_covariance, dynamics_function, dynamics_covariance, rate, rate, Poisson)
