"""JAX's own switches: every public function, of healthy data, under each of them."""

import contextlib

import jax
import numpy as np
import pytest

from programs.public_functions import FUNCTIONS, without

ALL = {
    "jax_debug_nans": True,
    "jax_debug_infs": True,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
}
SWITCHES = {"all that warn or raise": ALL, "interpreted": {"jax_disable_jit": True}, "leaks": {"jax_check_tracer_leaks": True}}
SWITCHES |= {name: {name: value} for name, value in ALL.items()}
NOT_YET = {
    "jax_numpy_dtype_promotion": {"fit_sgd", "fit_hmc"},  # optax and blackjax promote
    "jax_numpy_rank_promotion": {"fit_em", "fit_em of states"},
}
NOT_YET["all that warn or raise"] = set().union(*NOT_YET.values())


@contextlib.contextmanager
def switched(values):
    before = {name: getattr(jax.config, name) for name in values}
    try:
        for name, value in values.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in NOT_YET["all that warn or raise"]])
def test_all_that_warn_or_raise(name):
    with switched(ALL):
        out = jax.block_until_ready(FUNCTIONS[name](jax.random.key(0)))
    assert jax.tree.leaves(out)


CASES = [(switch, name) for switch in SWITCHES for name in FUNCTIONS if name not in NOT_YET.get(switch, ())]


@pytest.mark.slow
@pytest.mark.parametrize(("switch", "name"), CASES)
def test_switches(switch, name):
    """One by one, with the results that there are without."""
    wanted = without(name)
    with switched(SWITCHES[switch]):
        given = jax.block_until_ready(FUNCTIONS[name](jax.random.key(0)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), given, wanted)


DRAWN = [name for name in FUNCTIONS if "sample" in name or name in ("slds_inference", "rw_metropolis", "fit_sgd", "fit_hmc")]
KEYS = {
    "uint32": lambda: jax.random.PRNGKey(0),
    "rbg": lambda: jax.random.key(0, impl="rbg"),
    "unsafe_rbg": lambda: jax.random.key(0, impl="unsafe_rbg"),
    "uint32 of rbg": lambda: jax.random.PRNGKey(0, impl="rbg"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("kind", KEYS)
def test_kinds_of_keys(kind, name):
    key = KEYS[kind]()
    rbg = jax.default_prng_impl("rbg") if kind == "uint32 of rbg" else contextlib.nullcontext()
    with rbg:
        given = jax.tree.leaves(FUNCTIONS[name](key))
    for x, wanted in zip(given, jax.tree.leaves(without(name)), strict=True):
        assert x.shape == wanted.shape
        if kind == "uint32" and "sample" in name:
            np.testing.assert_allclose(x, wanted)
