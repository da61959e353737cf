"""What the HMM functions are held to, against dynamax's sequential and parallel code."""

import functools
from collections.abc import Callable, Iterator

import jax

import fastscan
from fastscan.profiling.bench_rows import Row
from fastscan.profiling.hmm_sampling import random_hmm
from fastscan.profiling.timing import first_call_seconds, in_subprocess, medians

T = 100_000


def hmm_rows() -> Iterator[Row]:
    """Ours against dynamax, K = 5 and float32 where nothing else is said; and first calls."""
    import dynamax.hidden_markov_model as dynamax

    key = jax.random.PRNGKey(0)
    works: dict[str, tuple[Callable, Callable, str, str]] = {
        "smoother": (fastscan.hmm_smoother, dynamax.hmm_smoother, "2x", "5x"),
        "posterior sample": (_with(key, fastscan.hmm_posterior_sample), _with(key, dynamax.hmm_posterior_sample), "8x", "20x"),
        "posterior mode": (fastscan.hmm_posterior_mode, dynamax.hmm_posterior_mode, "1.5x", "4x"),
    }
    arguments = jax.device_put(random_hmm(5, T))
    for work, (ours, theirs, at_least, aim) in works.items():
        slow, fast = medians([jax.jit(theirs), jax.jit(ours)], *arguments, repeats=25)
        yield Row(f"HMM {work} K=5 T={T:,}", "dynamax sequential", fast, slow, slow / fast, at_least, aim)
    for work, name, at_least, aim in (
        ("smoother", "hmm_smoother", "80x", "200x"),
        ("posterior sample", _SAMPLER, "20x", "60x"),
    ):
        seconds = in_subprocess(_PARALLEL.format(name=name, ours=name, arguments=_ARGUMENTS[name], T=T), 200)
        first, slow, fast = seconds or (None, None, None)
        ratio = None if slow is None or fast is None else slow / fast
        yield Row(f"HMM {work} K=5 T={T:,}", "dynamax parallel", fast, slow, ratio, at_least, aim)
        yield Row(f"HMM {work} first call", "dynamax parallel's (s)", None, first, None, "", "")
    for work, (ours, *_) in works.items():
        for steps in (1_000, T):
            first = first_call_seconds(jax.jit(ours), *jax.device_put(random_hmm(5, steps)))
            yield Row(f"HMM {work} K=5 T={steps:,} first call", "seconds", first, None, None, "4 s", "1.5 s")
    arguments = jax.device_put(random_hmm(32, 10_000))
    slow, fast = medians([jax.jit(dynamax.hmm_smoother), jax.jit(fastscan.hmm_smoother)], *arguments, repeats=25)
    yield Row("HMM smoother K=32 T=10,000", "dynamax sequential", fast, slow, slow / fast, "1x", "3x")
    yield from _crossover_rows(key)


def _crossover_rows(key: jax.Array) -> Iterator[Row]:
    """Our sampler in chunks against our own sequential one."""
    for steps in (100, 300, 1_000, 3_000, 10_000):
        arguments = jax.device_put(random_hmm(5, steps))
        samplers = [_with(key, fastscan.hmm_posterior_sample, implementation=name) for name in ("sequential", "chunked")]
        slow, fast = medians(list(map(jax.jit, samplers)), *arguments, repeats=25)
        yield Row(f"HMM posterior sample K=5 T={steps:,}, chunked", "our sequential", fast, slow, slow / fast, "reported", "")


_SAMPLER = "hmm_posterior_sample"
_ARGUMENTS = {"hmm_smoother": "*hmm", _SAMPLER: "jax.random.PRNGKey(0), *hmm"}
_PARALLEL = """
import jax
import dynamax.hidden_markov_model as dynamax
import fastscan
from fastscan.profiling.hmm_sampling import random_hmm
from fastscan.profiling.timing import first_call_seconds, medians
hmm = random_hmm(5, {T})
arguments = jax.device_put(({arguments},))
theirs, ours = jax.jit(dynamax.parallel_{name}), jax.jit(fastscan.{ours})
first = first_call_seconds(theirs, *arguments)
print(first, *medians([theirs, ours], *arguments))
"""


def _with(key: jax.Array, sampler: Callable, **options: str) -> Callable:
    return functools.partial(sampler, key, **options)
