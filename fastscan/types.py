"""Parameters and posteriors, with dynamax 1.0.3's names and fields."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Varying = Any | Callable[[Any], Any]
"""An array, with a leading time axis where it varies, or a function of the time index, or `Regimes`."""


class Regimes(NamedTuple):
    """A parameter of few regimes, of which every step says the number of its own: at t it is ``values[index[t]]``.

    It stands for the array (T, ...) of these values, with that array's conventions; as a hidden Markov model's transition
    matrix, for (T - 1, K, K). No such array of matrices is made: rows look their matrices up. Where the emissions' noise is
    correlated, H and R are prepared for every regime, if one of them does not vary, or if both have the same index: the same
    object, made within the function if that is jitted. Otherwise, and where entries are missing, the two are looked up for all
    steps at once.

    Attributes:
        values: (R, ...), of R regimes.
        index: integers from 0 to R - 1, (T,), or (B, T) in a batch; of transitions one fewer. Others are an error, or where
            they are not seen NaN.
    """

    values: Any
    index: Any


class ParamsLGSSMInitial(NamedTuple):
    """The first state is N(mean, cov): mean (D,) and cov (D, D), or a leading batch axis on either."""

    mean: Any
    cov: Any


class ParamsLGSSMDynamics(NamedTuple):
    """z_t = weights z_{t-1} + bias + input_weights u_t + w_t, w_t ~ N(0, cov).

    Each is static, or has a leading time axis of length T, or is a function of t, or `Regimes`. Entry t belongs to the
    transition from t - 1 to t; entry 0 is not read.

    Attributes:
        weights: (D, D).
        bias: (D,), or None for zeros.
        input_weights: (D, U), or None for zeros.
        cov: (D, D); may be singular.
    """

    weights: Varying
    bias: Varying
    input_weights: Varying
    cov: Varying


class ParamsLGSSMEmissions(NamedTuple):
    """y_t = weights z_t + bias + input_weights u_t + v_t, v_t ~ N(0, cov). Static or varying as the dynamics are.

    Attributes:
        weights: (N, D).
        bias: (N,), or None for zeros.
        input_weights: (N, U), or None for zeros.
        cov: (N, N), (T, N, N), or a diagonal: (N,), (T, N). Where T == N, a square matrix is a static covariance.
    """

    weights: Varying
    bias: Varying
    input_weights: Varying
    cov: Any


class ParamsLGSSM(NamedTuple):
    """A linear-Gaussian state-space model. Any object with these fields is accepted in its place, dynamax's among them."""

    initial: ParamsLGSSMInitial
    dynamics: ParamsLGSSMDynamics
    emissions: ParamsLGSSMEmissions


class GaussianState(NamedTuple):
    """Moments of a state from which a filter can go on: mean (D,) and cov (D, D), or with a leading batch axis."""

    mean: Any
    cov: Any


class PosteriorGSSMFiltered(NamedTuple):
    """Filtered moments; all with a leading batch axis where the emissions have one.

    Attributes:
        marginal_loglik: log p(y_1..T), a scalar; or every step's log p(y_t | y_1..t-1), (T,), where asked for.
        filtered_means: (T, D).
        filtered_covariances: (T, D, D).
        predicted_means, predicted_covariances: None, as in dynamax's `lgssm_filter`.
    """

    marginal_loglik: jax.Array
    filtered_means: jax.Array | None = None
    filtered_covariances: jax.Array | None = None
    predicted_means: jax.Array | None = None
    predicted_covariances: jax.Array | None = None

    @property
    def final_state(self) -> GaussianState:
        """The last state's filtered moments, for ``initial_state`` of the piece that follows."""
        assert self.filtered_means is not None
        assert self.filtered_covariances is not None
        return GaussianState(self.filtered_means[..., -1, :], self.filtered_covariances[..., -1, :, :])


class PosteriorGSSMSmoothed(NamedTuple):
    """Filtered and smoothed moments; all with a leading batch axis where the emissions have one.

    Attributes:
        marginal_loglik: log p(y_1..T), a scalar; or every step's log p(y_t | y_1..t-1), (T,), where asked for.
        filtered_means: (T, D).
        filtered_covariances: (T, D, D).
        smoothed_means: (T, D).
        smoothed_covariances: (T, D, D).
        smoothed_cross_covariances: the second moments E[z_t z_{t+1}'], (T - 1, D, D); dynamax's name, and not a covariance.
    """

    marginal_loglik: jax.Array
    filtered_means: jax.Array
    filtered_covariances: jax.Array
    smoothed_means: jax.Array
    smoothed_covariances: jax.Array
    smoothed_cross_covariances: jax.Array | None = None

    @property
    def final_state(self) -> GaussianState:
        """The last state's filtered moments, for ``initial_state`` of the piece that follows."""
        return GaussianState(self.filtered_means[..., -1, :], self.filtered_covariances[..., -1, :, :])


class HMMPosteriorFiltered(NamedTuple):
    """Filtered probabilities; all with a leading batch axis where the log-likelihoods have one.

    Attributes:
        marginal_loglik: log p(y_1..T), a scalar; the logarithm of the sum over all paths where weights are not normalised.
        filtered_probs: p(z_t | y_1..t), (T, K); zeros from where on the data are impossible.
        predicted_probs: p(z_t | y_1..t-1), (T, K): the initial distribution, then filtered_probs[t - 1] @ A.
    """

    marginal_loglik: jax.Array
    filtered_probs: jax.Array
    predicted_probs: jax.Array

    @property
    def final_state(self) -> jax.Array:
        """The last state's probabilities (K,), for ``initial_state`` of the piece that follows."""
        return self.filtered_probs[..., -1, :]


class HMMPosterior(NamedTuple):
    """Filtered and smoothed probabilities; all with a leading batch axis where the log-likelihoods have one.

    Attributes:
        marginal_loglik, filtered_probs, predicted_probs: as in `HMMPosteriorFiltered`.
        smoothed_probs: p(z_t | y_1..T), (T, K); zeros if the data are impossible.
        initial_probs: smoothed_probs[0], (K,).
        trans_probs: p(z_t, z_{t+1} | y_1..T), summed over t (K, K) or for every t (T - 1, K, K), or None.
    """

    marginal_loglik: jax.Array
    filtered_probs: jax.Array
    predicted_probs: jax.Array
    smoothed_probs: jax.Array
    initial_probs: jax.Array
    trans_probs: jax.Array | None = None

    @property
    def final_state(self) -> jax.Array:
        """The last state's filtered probabilities (K,), for ``initial_state`` of the piece that follows."""
        return self.filtered_probs[..., -1, :]


def make_lgssm_params(
    initial_mean,
    initial_cov,
    dynamics_weights,
    dynamics_cov,
    emissions_weights,
    emissions_cov,
    dynamics_bias=None,
    dynamics_input_weights=None,
    emissions_bias=None,
    emissions_input_weights=None,
) -> ParamsLGSSM:
    """Makes a `ParamsLGSSM` from its arrays; what is None becomes zeros, in the initial mean's dtype."""
    D, N = len(initial_mean), jnp.shape(emissions_cov)[-1]
    U = max((jnp.shape(w)[-1] for w in (dynamics_input_weights, emissions_input_weights) if w is not None), default=0)
    dtype = jnp.asarray(initial_mean).dtype

    def or_zeros(x, *shape: int):
        return jnp.zeros(shape, dtype) if x is None else x

    return ParamsLGSSM(
        ParamsLGSSMInitial(initial_mean, initial_cov),
        ParamsLGSSMDynamics(dynamics_weights, or_zeros(dynamics_bias, D), or_zeros(dynamics_input_weights, D, U), dynamics_cov),
        ParamsLGSSMEmissions(
            emissions_weights, or_zeros(emissions_bias, N), or_zeros(emissions_input_weights, N, U), emissions_cov
        ),
    )
