"""Where the CO2 model's variances come from."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from fastscan import lgssm_marginal_loglik
from fastscan.profiling.demos.models import CO2Variances, co2_params, load_co2

_START = np.array(CO2Variances(observation=0.1, level=0.1, slope=1e-6, seasonal=1e-3))


def fit_co2_variances(begin: Callable[[str], None] = lambda _: None) -> tuple[CO2Variances, float]:
    """Finds the most likely values of the CO2 model's four variances, by L-BFGS on their logarithms, in float64.

    Switches JAX to 64 bits for the whole process: this is for a command of its own.

    Args:
        begin: called with words as each evaluation of the likelihood and its gradient begins.

    Returns:
        The variances, and the log-likelihood that they reach.

    Raises:
        RuntimeError: the optimiser did not converge.
    """
    jax.config.update("jax_enable_x64", True)
    emissions = jnp.asarray(load_co2()[1])

    @jax.jit
    @jax.value_and_grad
    def loss(log_variances: jax.Array) -> jax.Array:
        return -lgssm_marginal_loglik(co2_params("float64", CO2Variances(*jnp.exp(log_variances))), emissions)

    said = ""

    def evaluate(x: np.ndarray) -> tuple[np.ndarray, ...]:
        nonlocal said
        begin(f"likelihood and gradient{said}")
        value, gradient = map(np.asarray, loss(x))
        said = f", log-likelihood {-value:.3f}"
        return value, gradient

    found = minimize(evaluate, np.log(_START), jac=True, method="L-BFGS-B")
    if not found.success:
        raise RuntimeError(f"No most likely variances found: {found.message}")
    return CO2Variances(*map(float, np.exp(found.x))), -float(found.fun)
