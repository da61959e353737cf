"""dynamax's models as they are, and under `fastscan.adopt`: first calls and warm ones, in one process."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import fastscan
from fastscan.adoption import dynamax
from fastscan.profiling.measure.machine import describe, version
from fastscan.profiling.measure.rows import write_record
from fastscan.profiling.measure.timing import first_and_warm

REPEATS = 5


class Call(NamedTuple):
    """A call of dynamax: its name, and what makes it."""

    name: str
    make: Callable[[], Callable[[], Any]]


class Timed(NamedTuple):
    """Seconds of a call: the first one, which compiles, and the median of some others; by dynamax and by us."""

    name: str
    dynamax_first: float
    first: float
    dynamax: float
    ours: float


def calls() -> list[Call]:
    """Lists the calls."""
    key = jax.random.key(0)

    def linear_gaussian() -> Any:
        from dynamax.linear_gaussian_ssm import LinearGaussianSSM

        model = LinearGaussianSSM(4, 2)
        params, props = model.initialize(key)
        return model, params, props, model.sample(params, key, 10_000)[1]

    def hidden_markov(kind: str, K: int, T: int, B: int = 0) -> Any:
        import dynamax.hidden_markov_model as dynamax_hmm

        model = getattr(dynamax_hmm, kind)(K, 2)
        params, props = model.initialize(key)
        emissions = jax.random.normal(key, (max(B, 1), T, 2)).cumsum(1) / 10
        return model, params, props, emissions if B else emissions[0]

    def fit_linear_gaussian() -> Callable[[], Any]:
        model, params, props, y = linear_gaussian()
        return lambda: model.fit_em(params, props, y, num_iters=10, verbose=False)

    def smooth_linear_gaussian() -> Callable[[], Any]:
        model, params, _, y = linear_gaussian()
        return lambda: model.smoother(params, y)

    def fit_hidden_markov() -> Callable[[], Any]:
        model, params, props, y = hidden_markov("GaussianHMM", 5, 10_000, 10)
        return lambda: model.fit_em(params, props, y, num_iters=10, verbose=False)

    def smooth_autoregressive() -> Callable[[], Any]:
        model, params, _, y = hidden_markov("LinearAutoregressiveHMM", 25, 10_000)
        inputs = model.compute_inputs(y)
        return lambda: model.smoother(params, y, inputs)

    def sample_autoregressive() -> Callable[[], Any]:
        from dynamax.hidden_markov_model import inference

        model, params, _, y = hidden_markov("LinearAutoregressiveHMM", 25, 10_000)
        given = model._inference_args(params, y, model.compute_inputs(y))
        return lambda: inference.hmm_posterior_sample(key, *given)

    def of_functions(name: str, T: int) -> Callable[[], Callable[[], Any]]:
        def make() -> Callable[[], Any]:
            from dynamax.hidden_markov_model import inference

            model, params, _, y = hidden_markov("GaussianHMM", 5, T)
            given = model._inference_args(params, y, None)
            return lambda: getattr(inference, name)(*given)

        return make

    def sample_varying(D: int) -> Callable[[], Callable[[], Any]]:
        def make() -> Callable[[], Any]:
            from dynamax.linear_gaussian_ssm import LinearGaussianSSM, inference

            model = LinearGaussianSSM(D, 4)
            params, _ = model.initialize(key)
            y, regime = model.sample(params, key, 1_000)[1], jax.random.randint(key, (1_000,), 0, 3)
            weights = jnp.asarray(params.dynamics.weights) * jnp.array([1.0, 0.9, 0.5])[:, None, None]
            varying = params._replace(dynamics=params.dynamics._replace(weights=lambda t: weights[regime[t]]))
            drawn = jax.jit(lambda y: inference.lgssm_posterior_sample(key, varying, y))
            return lambda: drawn(y)

        return make

    return [
        Call("LinearGaussianSSM.fit_em, D=4, m=2, T=10,000, 10 iterations", fit_linear_gaussian),
        Call("LinearGaussianSSM.smoother, D=4, m=2, T=10,000", smooth_linear_gaussian),
        Call("GaussianHMM.fit_em, K=5, 10 x T=10,000, 10 iterations", fit_hidden_markov),
        Call("LinearAutoregressiveHMM.smoother, K=25, T=10,000", smooth_autoregressive),
        Call("hmm_posterior_sample of it", sample_autoregressive),
        *(Call(f"lgssm_posterior_sample in jit, D={D}, m=4, T=1,000, dynamics that vary", sample_varying(D)) for D in VARYING),
        *(Call(f"{name}, K=5, T={T:,}", of_functions(name, T)) for name in _FUNCTIONS for T in (100, 10_000)),
    ]


VARYING = 12, 20, 40
"""States of models whose samples are timed, by ours also where adoption leaves these to dynamax."""
_FUNCTIONS = "hmm_filter", "hmm_smoother", "hmm_posterior_mode"


@contextlib.contextmanager
def all_ours(package: str) -> Iterator[None]:
    """Adopts a package, and has ours draw all samples, also those that dynamax draws faster, which adoption leaves to it."""
    with mock.patch.object(dynamax, "MOST_VARYING", np.inf), fastscan.adopt(package):
        yield


def run_adopted(folder: Path, only: str = "") -> list[Timed]:
    """Times the calls whose name holds ``only``, prints them, and writes a record to a folder."""
    found = []
    for call in calls():
        if only in call.name:
            theirs = first_and_warm(call.make(), REPEATS)
            with all_ours("dynamax"):
                ours = first_and_warm(call.make(), REPEATS)
            found.append(Timed(call.name, theirs[0], ours[0], theirs[1], ours[1]))
    path = folder / time.strftime("%Y-%m-%d-%H%M-adopted.csv")
    about = describe("python -m fastscan.profiling adopted") | {"dynamax": version("dynamax"), "repeats": REPEATS}
    write_record(path, about, Timed._fields, found)
    table = Table("call", "dynamax, first", "fastscan, first", "dynamax", "fastscan", title="Under adoption, ms")
    for x in found:
        table.add_row(x.name, *(f"{1e3 * seconds:.3g}" for seconds in x[1:]))
    Console().print(table)
    print(f"record: {path}")
    return found
