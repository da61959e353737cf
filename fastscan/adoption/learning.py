"""dynamax's `fit_em` with compiled steps that are kept: as it is, every call of it compiles all of its text again."""

import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Hashable
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastscan.given import known

_PARAMETERS = ("self", "params", "props", "emissions", "inputs", "num_iters", "verbose", "print_every")
MOST_KEPT = 32
"""How many models' steps are kept, those that were used last."""

MOST_ENTRIES = 10_000
"""The most entries of an array in a model, such as a prior's, whose values are compared; larger ones are told by identity."""


def fits(ssm: type) -> bool:
    """Tells whether a class's `fit_em` has the arguments that ours has, or all but the last, which dynamax 1.0.3 brought."""
    given = tuple(inspect.signature(ssm.fit_em).parameters)  # pyright: ignore[reportAttributeAccessIssue]
    return given in (_PARAMETERS, _PARAMETERS[:-1])


def answer_fit_em(original: Callable) -> Callable:
    """Makes a `fit_em` of a class, from its own."""
    given = inspect.getmodule(original)
    with_batch, progress_bar = given.ensure_array_has_batch_dim, given.progress_bar  # pyright: ignore
    kept: OrderedDict[Hashable, tuple[Any, Callable]] = OrderedDict()

    def steps_of(model: Any, props: Any) -> Callable:
        """Returns the compiled steps of a model, those of an equal model if there were any."""
        alive: list[Any] = []
        key = _state(model, alive), _state(props, alive)
        if key not in kept:
            kept[key] = alive, _steps(model, props)
        kept.move_to_end(key)
        if len(kept) > MOST_KEPT:
            kept.popitem(last=False)
        return kept[key][1]

    def fit_em(self, params, props, emissions, inputs=None, num_iters=50, verbose=True, print_every=1):
        if num_iters <= 0:
            return params, jnp.array([])
        if verbose and (not isinstance(print_every, Integral) or print_every < 1):
            raise ValueError(f"print_every must be a positive integer, got {print_every!r}")
        data = with_batch(emissions, self.emission_shape), with_batch(inputs, self.inputs_shape)
        carry = params, self.initialize_m_step_state(params, props)
        run = steps_of(self, props)
        if not verbose:
            (params, _), log_probs = run(carry, data, num_iters)
            return params, log_probs
        log_probs, bar = [], progress_bar(range(num_iters))
        bar.update(0)
        for start in range(0, num_iters, int(print_every)):
            count = min(int(print_every), num_iters - start)
            carry, of_steps = run(carry, data, count)
            log_probs.append(of_steps)
            bar.update(start + count)
        return carry[0], jnp.concatenate(log_probs)

    return fit_em


def _steps(model: Any, props: Any) -> Callable:
    """Makes ``(carry, data, count) -> carry, log probabilities``, of so many steps of EM."""

    @functools.partial(jax.jit, static_argnums=2)
    def run(carry: Any, data: Any, count: int) -> Any:
        emissions, inputs = data

        def step(carry: Any, _: Any) -> Any:
            params, m_step_state = carry
            stats, logliks = jax.vmap(functools.partial(model.e_step, params))(emissions, inputs)
            log_prob = model.log_prior(params) + logliks.sum()
            return model.m_step(params, props, stats, m_step_state), log_prob

        return lax.scan(step, carry, None, length=count)

    return run


def _state(x: Any, alive: list[Any]) -> Hashable:
    """Returns what tells whether an object computes what it did: attributes by value where they are plain, else by identity.

    Args:
        x: a model, or what one is made of.
        alive: gets the objects that are told by identity, which is theirs only as long as they live.
    """
    if x is None or isinstance(x, bool | int | float | str | bytes | type):
        return type(x), x
    if isinstance(x, tuple | list):
        return type(x), tuple(_state(one, alive) for one in x)
    if isinstance(x, dict):
        return dict, tuple((name, _state(one, alive)) for name, one in x.items())
    if known(type(x)) and x.size <= MOST_ENTRIES:
        return type(x), x.shape, str(x.dtype), np.asarray(x).tobytes()
    packages = {base.__module__.partition(".")[0] for base in type(x).__mro__}
    if "tensorflow_probability" in packages and isinstance(getattr(x, "parameters", None), dict):
        return type(x), _state(x.parameters, alive)
    if "dynamax" in packages and hasattr(x, "__dict__"):
        return type(x), _state(vars(x), alive)
    alive.append(x)
    return type(x), id(x)
