"""Log densities by name, for `fastscan explain rw_metropolis`: small examples, and a user's own by their dotted paths."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from fastscan.mcmc import explain_rw_metropolis
from fastscan.profiling.measure.models import mixture


def normal(x: jax.Array) -> jax.Array:
    """Computes the log density of independent standard normal coordinates, (D, chains) to (chains,)."""
    return -0.5 * (x**2).sum(0)


def ordered(x: jax.Array) -> jax.Array:
    """Computes one of coordinates in order, which kernels do not sort: (D, chains) to (chains,)."""
    return -0.5 * (jnp.diff(jnp.sort(x, axis=0), axis=0, prepend=0) ** 2).sum(0)


TARGETS: dict[str, Callable[[Any], jax.Array]] = {"normal": normal, "mixture": mixture, "ordered": ordered}


def find_target(path: str) -> Callable[[Any], jax.Array]:
    """Finds a log density: one of `TARGETS`, or "package.module:function", from the folder one is in or what is installed.

    Raises:
        ValueError: it is not there, or is no function; in one line.
    """
    if path in TARGETS:
        return TARGETS[path]
    module, separator, name = path.partition(":")
    if not (module and separator and name):
        raise ValueError(f"--target: {path!r} given, wanted {', '.join(TARGETS)} or 'package.module:function'.")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last: what is installed comes first
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # whatever the module does as it is imported
        raise ValueError(f"--target: {path!r} given, but importing {module} failed: {_one_line(error)}") from error
    found: Any = getattr(imported, name, None)
    log_density: Callable[[Any], jax.Array] = found
    if not callable(found):
        what = "nothing of that name" if found is None else f"a value of type {type(found).__name__}"
        raise ValueError(f"--target: {path!r} given, but {module} has {what} there; wanted a function.")
    return log_density


def explain_target(path: str, D: int, dtype: str = "float32") -> str:
    """Says how `rw_metropolis` would run in a log density of positions (D, chains), as `explain_rw_metropolis` does.

    Args:
        path: as `find_target` takes it.
        D: how many coordinates.
        dtype: "float32" or "float64".

    Raises:
        ValueError: there is no such log density, or it fails for such positions; in one line.
    """
    if D < 1:
        raise ValueError(f"--dimension: {D} given, wanted at least 1.")
    log_density = find_target(path)
    with jax.enable_x64(dtype == "float64"):
        position = jnp.zeros((D, 1), dtype)
        try:
            return explain_rw_metropolis(log_density, position)
        except Exception as error:  # whatever a user's function does with positions that it is not made for
            raise ValueError(f"--target: {path!r} failed for positions ({D}, chains) of {dtype}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
