"""Constraints: there and back, and what volumes become on the way."""

import dynamax.utils.bijectors as dynamax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan.learn import (
    FROZEN,
    LGSSM,
    POSITIVE,
    POSITIVE_DEFINITE,
    REAL,
    SIMPLEX,
    freeze,
    from_unconstrained,
    log_det_jac_constrain,
    to_unconstrained,
)
from oracles.lgssm import cast, random_params

R = np.random.default_rng(0)
VALUES = [
    (REAL, R.normal(size=(2, 3))),
    (POSITIVE, R.uniform(0.1, 9, size=3)),
    (POSITIVE_DEFINITE, np.array([[2.0]])),
    (POSITIVE_DEFINITE, np.cov(R.normal(size=(4, 50)))),
    (POSITIVE_DEFINITE, np.stack([np.cov(R.normal(size=(2, 50))) for _ in range(3)])),
    (SIMPLEX, np.array([1.0])),
    (SIMPLEX, R.dirichlet(np.ones(4), size=2)),
]


@pytest.mark.parametrize(("constraint", "x"), VALUES, ids=lambda v: getattr(v, "name", str(np.shape(v))))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_there_and_back(constraint, x, dtype):
    x = jnp.asarray(x, dtype)

    @jax.jit
    def there_and_back(x):
        y = constraint.unconstrain(x)
        return y, constraint.log_det_jacobian(y), constraint.constrain(y)

    given = there_and_back(x)
    assert {a.dtype for a in given} == {x.dtype}
    np.testing.assert_allclose(given[-1], x, rtol=1e-5 if dtype == "float32" else 1e-12)


@pytest.mark.parametrize(("constraint", "x"), VALUES, ids=lambda v: getattr(v, "name", str(np.shape(v))))
def test_volumes(constraint, x):
    """Of free entries: of symmetric matrices the lower triangle, of probabilities all but the last."""

    def free(y):
        x = constraint.constrain(y)
        if constraint is POSITIVE_DEFINITE:
            return x[..., *np.tril_indices(x.shape[-1])].ravel()
        return x[..., :-1].ravel() if constraint is SIMPLEX else x.ravel()

    @jax.jit
    def volume(x):
        y = constraint.unconstrain(x)
        return constraint.log_det_jacobian(y), jax.jacfwd(free)(y).reshape(y.size, y.size)

    given, J = volume(x)
    np.testing.assert_allclose(given, np.linalg.slogdet(J)[1] if J.size else 0, rtol=1e-10, atol=1e-12)


def test_volumes_are_those_of_dynamax():

    @jax.jit
    def volumes(y):
        bijector = dynamax.RealToPSDBijector()
        wanted = bijector.forward_log_det_jacobian(bijector.inverse(POSITIVE_DEFINITE.constrain(y)))
        return POSITIVE_DEFINITE.log_det_jacobian(y), wanted

    np.testing.assert_allclose(*volumes(R.normal(size=6)), rtol=1e-10)


def test_frozen_parameters_have_no_numbers():
    params = cast(random_params(1, 2, 2), "float64")
    constraints = freeze(LGSSM.constraints(params), ["initial", "emissions.cov"])
    position = to_unconstrained(params, constraints)
    assert position.initial.mean is position.initial.cov is position.emissions.cov is None
    assert position.dynamics.cov.shape == (3,)
    moved = from_unconstrained(jax.tree.map(lambda x: x + 1, position), constraints, params)
    np.testing.assert_array_equal(moved.initial.cov, params.initial.cov)
    assert np.all(np.linalg.eigvalsh(moved.dynamics.cov) > 0)
    only = POSITIVE_DEFINITE.log_det_jacobian(position.dynamics.cov)
    np.testing.assert_allclose(log_det_jac_constrain(position, constraints), only)


def test_bad_input():
    params = random_params(1, 2, 2)
    constraints = LGSSM.constraints(params)
    with pytest.raises(ValueError, match=r"dynamics\.covs.* given, wanted some of initial\.mean"):
        freeze(constraints, ["dynamics.covs"])
    singular = params._replace(dynamics=params.dynamics._replace(cov=np.diag([1.0, 0.0])))
    with pytest.raises(ValueError, match="wanted positive definite"):
        to_unconstrained(singular, constraints)
    frozen = freeze(constraints, "dynamics.cov")
    assert frozen.dynamics.cov is FROZEN
    to_unconstrained(singular, frozen)
