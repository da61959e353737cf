"""Random-walk Metropolis for thousands of chains at once.

A chain is a lane and a step is arithmetic, so a whole run is one sweep in which random numbers are made where they are used:
on a GPU one kernel that holds chains in registers, on a CPU a native loop over groups of them in the cache, one for every core.

The log density is any JAX function that treats chains alike. It gets positions with chains on the last axis, and is taken apart
into arithmetic on coordinates (`fastscan.kernels.mcmc.entrywise`). A log density that can't be taken apart is run as it stands,
in a loop of XLA's: one with a loop, a sort of coordinates, or more than 16 of them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp

from fastscan.dispatch.choice import check_gpu, compiled_implementations, device_kind
from fastscan.given import check_key
from fastscan.kernels.mcmc import entrywise
from fastscan.kernels.mcmc.metropolis import Keep, Schedule
from fastscan.kernels.plan import Launch
from fastscan.kernels.ranges import ranged
from fastscan.kernels.xla_hints import hints_are_on
from fastscan.mcmc import inference, threads
from fastscan.mcmc.check import check_settings, check_start, checked_form, proposal_factor
from fastscan.mcmc.inference import Outcome, Task, Walkers
from fastscan.mcmc.target import MOST_COORDINATES, Analysis, Form, analysis

MCMC_IMPLEMENTATIONS = ("xla", "pallas", "pallas_interpret")


class MetropolisState(NamedTuple):
    """Where chains are, from which a run goes on.

    Attributes:
        position: a pytree, chains on the last axis.
        log_density: there (chains,).
        step: how many steps each chain has made, (), uint32; a key's random numbers repeat after 2^32.
        scale: what ``step_size`` is multiplied by since it was adapted, ().
    """

    position: Any
    log_density: Any
    step: Any
    scale: Any


class MetropolisMoments(NamedTuple):
    """Means and variances of every chain's samples, pytrees in the form of a position; variances are mean squares."""

    mean: Any
    variance: Any


class MetropolisRun(NamedTuple):
    """A run's outcome.

    Attributes:
        samples: a pytree of arrays (num_samples, ..., chains), or None.
        moments: of the samples, or None.
        acceptance_rate: the share of steps since the warm-up that moved a chain (chains,); NaN for a chain that began where the
            log density is not finite.
        state: after the run, to go on from.
    """

    samples: Any
    moments: MetropolisMoments | None
    acceptance_rate: jax.Array
    state: MetropolisState


@ranged
def rw_metropolis(
    key: jax.Array,
    log_density: Callable[[Any], jax.Array],
    initial_position: Any,
    num_samples: int,
    *,
    step_size: Any = 1.0,
    thin: int = 1,
    warmup: int = 0,
    keep: Keep = "samples",
    target_acceptance: float | None = None,
    implementation: str | None = None,
) -> MetropolisRun:
    """Runs many independent chains of random-walk Metropolis.

    Proposals are normal, of all coordinates at once. The random numbers of chain c in step n are Threefry-2x32's of the key, c
    and n, in every implementation. So the key determines a run, up to rounding on different devices; and a run of m samples and
    one of n samples from its state, with the same key, are one run of m + n.

    For example, a thousand chains in the mixture of two normal distributions, on the line::

        def log_density(x):  # (1, chains) -> (chains,)
            return jnp.logaddexp(jax.scipy.stats.norm.logpdf(x[0], -2), jax.scipy.stats.norm.logpdf(x[0], 2))

        run = rw_metropolis(jax.random.key(0), log_density, jnp.zeros((1, 1000)), 5_000, step_size=2.0)
        run.samples  # (5000, 1, 1000)

    and a correlated one in the plane, from named coordinates::

        def log_density(position):
            x, y = position["x"], position["y"]  # (chains,) each
            return -(x**2 - 1.8 * x * y + y**2) / 0.38

        start = {"x": jnp.zeros(1000), "y": jnp.zeros(1000)}
        rw_metropolis(jax.random.key(0), log_density, start, 100_000, warmup=1_000, keep="moments").moments.mean["x"]  # (1000,)

    Args:
        key: of JAX's.
        log_density: up to a constant, of positions: a pytree as ``initial_position``, to (chains,). It must treat chains alike,
            each by itself: it is traced for one of them, with a last axis of length 1. It is compiled once for every function
            object, so define it outside of loops.
        initial_position: a pytree of floating arrays (..., chains), or the `MetropolisState` of a run to go on from.
        num_samples: records of each chain.
        step_size: standard deviation of proposals: a number; an array (coordinates,) or, in their form without the chains, a
            pytree as the position; or a lower triangular matrix (coordinates, coordinates), the Cholesky factor of their
            covariance. Coordinates are in the order of `jax.tree.leaves`, each of them raveled.
        thin: steps to a record.
        warmup: steps before the first record, in which a common factor of ``step_size`` is adapted: every chain's own, by
            Robbins and Monro's rule, and then their geometric mean.
        keep: "samples"; "moments", running means and variances of them; or "last", nothing but the state.
        target_acceptance: rate that the warm-up adapts to, by default 0.44 in one dimension and 0.234 in more.
        implementation: "xla", "pallas", or "pallas_interpret"; None takes kernels on NVIDIA GPUs if the log density can be
            taken apart, else "xla". On a CPU a long run outside of `jax.jit` is shared by all cores, and is awaited.

    Raises:
        ValueError: a setting or an array that is not as above; outside of `jax.jit`, an initial log density that is not finite.
        TypeError: positions that are no floating numbers, or of several types.
        RuntimeError: "pallas", on a device that is no NVIDIA GPU.
        NotImplementedError: kernels, for a log density that can't be taken apart.
    """
    check_key(key, " The order is (key, log_density, initial_position, num_samples).")
    check_settings(num_samples, thin, warmup, keep, target_acceptance)
    num_samples, thin, warmup = int(num_samples), int(thin), int(warmup)
    going_on = isinstance(initial_position, MetropolisState)
    if going_on and warmup:
        raise ValueError(f"warmup: {warmup} given with a state to go on from, whose scale is as it is to be; wanted 0.")
    position = jax.tree.map(jnp.asarray, initial_position.position if going_on else initial_position)
    form = checked_form(position)
    factor = proposal_factor(step_size, form)
    task = _task(implementation, log_density, form)
    before = (jnp.asarray(initial_position.log_density), *initial_position[2:]) if going_on else (None, 0, 1)
    words, walkers = inference.begin(task, key, position, *before)
    start = walkers.log_density
    if not going_on:
        check_start(start)
    if warmup:
        target = target_acceptance or (0.44 if form.size == 1 else 0.234)
        walkers = _run(task, Schedule(target=target), warmup, words, factor, walkers).walkers
        walkers = inference.of_common_scale(walkers)
    outcome = _run(task, Schedule(thin=thin, keep=keep), num_samples, words, factor, walkers)
    return _result(form, num_samples * thin, start, outcome)


def explain_rw_metropolis(log_density: Callable[[Any], jax.Array], initial_position: Any) -> str:
    """Says how `rw_metropolis` would run on a CPU and on an NVIDIA GPU, and why, in words.

    Nothing is run: the log density is traced, and taken apart if it can be.

    Args:
        log_density: as `rw_metropolis` takes it.
        initial_position: likewise; no more than its form is looked at.

    Returns:
        Some lines. Where the log density became no kernel, they say what in it is in the way, in which line of its code, and
        what can be done.

    Raises:
        ValueError, TypeError: as `rw_metropolis` raises them for these two; and whatever the log density itself raises.
    """
    going_on = isinstance(initial_position, MetropolisState)
    form = checked_form(jax.tree.map(jnp.asarray, initial_position.position if going_on else initial_position))
    here = device_kind()
    gpu = here if here.startswith("NVIDIA") else "NVIDIA"
    ways = {device: _way(_task(None, log_density, form, device)) for device in dict.fromkeys((here, "cpu", gpu))}
    names = {"cpu": "a CPU", "NVIDIA": "an NVIDIA GPU"}
    name = getattr(log_density, "__name__", type(log_density).__name__)
    lines = [
        f"rw_metropolis in {name}, {form.size} coordinate{'s' * (form.size > 1)} of {form.dtype}:",
        f"here, on {names.get(here, here)}: {ways.pop(here)}",
        *(f"on {names.get(device, device)}: {way}" for device, way in ways.items()),
    ]
    return "\n".join([*lines, *_reasons(analysis(log_density, form), form, gpu)])


def _way(task: Task) -> str:
    if task.launch is not None:
        return "'pallas', as one kernel, a chain a lane"
    if task.group:
        return f"'xla', as native functions that each take up to {task.group} chains through a run, on all cores if it is long"
    return "'xla', as it stands: whole arrays, in a loop of XLA's"


def _reasons(found: Analysis, form: Form, gpu: str) -> list[str]:
    """Says why a log density became what it did."""
    if found.hindrance is None:
        lines = [f"the log density was taken apart into arithmetic on coordinates, {found.cost:,} operations for one chain"]
        if not hints_are_on():
            lines.append("hints to XLA are off (fastscan.use_xla_hints), so a CPU has no native functions")
        elif not inference.most_in_group(form, found.cost):
            lines.append("these are more than one of a CPU's native functions takes, so XLA runs it as it stands there")
        if "pallas" not in compiled_implementations(gpu):
            lines.append("kernels can't be compiled by this JAX, so a GPU runs it as it stands")
        return lines
    where = entrywise.place(found.source)
    lines = [f"the log density can't be taken apart for kernels: it has {found.hindrance}{f', at {where}' if where else ''}"]
    if form.size > MOST_COORDINATES:
        return [*lines, "a kernel's lane holds no more coordinates in its registers; there is nothing to mend"]
    return [
        *lines,
        "kernels take arithmetic, comparisons, jnp.where, sums and products over axes, products of small matrices, and indices "
        "that are known when it is traced",
        "so write short loops out in Python, compute constants before, with NumPy, and choose by jnp.where",
    ]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _result(form: Form, steps: int, start: jax.Array, outcome: Outcome) -> MetropolisRun:
    """Puts together the result of runs that began where the log density was ``start``."""
    after = outcome.walkers
    rate = jnp.where(jnp.isfinite(start), outcome.accepted.astype(form.dtype) / steps, jnp.nan)
    state = MetropolisState(form.position(after.position), after.log_density, after.step[0], after.scale[0])
    moments = outcome.moments and MetropolisMoments(*map(form.position, outcome.moments))
    samples = None if outcome.samples is None else form.position(outcome.samples)
    return MetropolisRun(samples, moments, rate, state)


def _run(task: Task, schedule: Schedule, records: int, words: jax.Array, factor: jax.Array, walkers: Walkers) -> Outcome:
    steps = records * schedule.thin * walkers.position.shape[-1]
    alone = not task.group or steps < threads.THREAD_STEPS or not _lie_here(task, words, factor, walkers)
    by = inference.run if alone else threads.run_on_all_cores
    return by(task, schedule, records, words, factor, walkers)


def _lie_here(task: Task, *arrays: Any) -> bool:
    """Tells whether all arguments are known, and lie on the device that JAX computes on by default."""
    leaves = jax.tree.leaves(arrays)
    if any(isinstance(x, jax.core.Tracer) for x in leaves) or not analysis(task.log_density, task.form).known:
        return False
    return set().union(*(x.devices() for x in leaves)) == jnp.zeros(()).devices()


def _task(implementation: str | None, log_density: Callable, form: Form, device: str | None = None) -> Task:
    """Chooses what runs on a kind of device, by default the one that JAX uses."""
    if implementation not in (None, *MCMC_IMPLEMENTATIONS):
        wanted = ", ".join(MCMC_IMPLEMENTATIONS)
        raise ValueError(f"implementation: {implementation!r} given, wanted None or one of {wanted}.")
    try:
        hindrance, _, cost, _ = analysis(log_density, form)
    except TypeError as error:
        if "unhashable" in str(error):
            raise TypeError(
                f"log_density: {type(log_density).__name__} given, wanted a function that can be hashed."
            ) from error
        raise
    device = device_kind() if device is None else device
    able = "pallas" in compiled_implementations(device)
    if implementation is None:
        implementation = "pallas" if able and hindrance is None else "xla"
    if implementation == "xla":
        taken_apart = hindrance is None and device == "cpu" and hints_are_on()
        return Task(log_density, form, None, inference.most_in_group(form, cost) if taken_apart else 0)
    if form.size > MOST_COORDINATES:
        raise ValueError(
            f"implementation: {implementation!r} given for {form.size} coordinates; a thread's registers hold "
            f"{MOST_COORDINATES}. Take 'xla', or None, which chooses for you."
        )
    if hindrance is not None:
        raise NotImplementedError(
            f"implementation: {implementation!r} given for a log density with {hindrance}; kernels want arithmetic on "
            "coordinates. Take 'xla', or None, which chooses for you."
        )
    check_gpu(implementation, device)
    return Task(log_density, form, Launch(interpret=implementation == "pallas_interpret"))
