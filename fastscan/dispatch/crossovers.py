"""The crossover table: which implementation was measured to be fastest at which sizes, and estimates between its entries.

A table holds, per kind of device and family of problems, slices: one D, B and dtype, and for growing T the seconds of every
implementation, the number of chunks that ran fastest, and the length from which each wins. Between its entries seconds and
chunks are interpolated, straight lines in the logarithms of T, B and D; beyond them the last entry holds.

``fastscan measure`` and ``fastscan fit`` make a table in `user_table`, which takes precedence over the bundled one;
`use_crossover_table` takes another one. For devices that it does not hold, the bundled table is used.
"""

import functools
import importlib.resources
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from platformdirs import user_cache_path

MARGIN = 1.05
"""How many times faster than the sequential one an implementation must be: the sequential one compiles in the least time."""

_given: dict | None = None


class Expected(NamedTuple):
    """The seconds that a table expects of an implementation at some sizes, and how many chunks it takes, if it has any."""

    seconds: float
    chunks: int | None


def user_table() -> Path:
    """Returns the file that holds this user's own measurements, in the platform's folder for caches; it need not exist."""
    return user_cache_path("fastscan") / "crossover.json"


def use_crossover_table(table: str | Path | dict | None) -> None:
    """Takes the choices of ``implementation=None`` from another table; compiled programs are forgotten.

    Args:
        table: a file that ``fastscan fit`` has written, its contents, or None for the usual one.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds no table.
    """
    global _given
    found = table if table is None or isinstance(table, dict) else read_table(Path(table))
    if found is not None and "devices" not in found:
        raise ValueError(f'table: keys {sorted(found)} given, wanted "devices", as `fastscan fit` writes it.')
    _given = found
    of_device.cache_clear()
    jax.clear_caches()


def given_table() -> dict | None:
    """Returns the table that `use_crossover_table` was given last, or None."""
    return _given


def read_table(path: Path) -> dict:
    """Reads a table from its file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds no table.
    """
    try:
        table = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} holds no crossover table ({error}). Delete it, or write it anew.") from error
    if not isinstance(table, dict) or "devices" not in table:
        raise ValueError(f"{path} holds no crossover table. Delete it, or write it anew.")
    return table


@functools.cache
def committed_table() -> dict:
    """Reads the table that fastscan comes with."""
    return json.loads(importlib.resources.files("fastscan.dispatch").joinpath("crossover.json").read_text())


@functools.cache
def of_device(device: str) -> dict:
    """Returns the table's entry of a kind of device, or {}: from the given table, the user's, or the bundled one."""
    if _given is not None:
        return _given["devices"].get(device, {})
    own = read_table(user_table()) if user_table().exists() else {"devices": {}}
    return own["devices"].get(device) or committed_table()["devices"].get(device, {})


def slices_of(device: str, family: str, dtype: str) -> list[dict]:
    """Returns a family's slices; those of another dtype where this one was not measured."""
    slices = of_device(device).get("families", {}).get(family, [])
    return [s for s in slices if s["dtype"] == dtype] or slices


def expected(slices: Sequence[dict], *, D: int, T: int, B: int) -> dict[str, Expected]:
    """Estimates seconds of every implementation that was measured around these sizes."""
    corners = [
        (weight_D * weight_B, _at_length(slice_, T))
        for at_D, weight_D in _around(slices, "D", D)
        for (slice_,), weight_B in _around(at_D, "B", B)
    ]
    names = set.intersection(*(set(found) for _, found in corners)) if corners else set()
    return {name: _mean([(weight, found[name]) for weight, found in corners]) for name in sorted(names)}


def winner(found: dict[str, Expected]) -> str:
    """Chooses an implementation: the fastest, but sequential if that is hardly slower."""
    best = min(found, key=lambda name: found[name].seconds)
    sequential = found.get("sequential")
    return "sequential" if sequential and sequential.seconds < MARGIN * found[best].seconds else best


def _around(slices: Iterable[dict], key: str, wanted: int) -> list[tuple[list[dict], float]]:
    """Finds the slices with the nearest values of ``key`` below and above, grouped by it, and their weights."""
    groups: dict[int, list[dict]] = {}
    for slice_ in slices:
        groups.setdefault(slice_[key], []).append(slice_)
    return [(groups[value], weight) for value, weight in _bracket(sorted(groups), wanted)]


def _at_length(slice_: dict, T: int) -> dict[str, Expected]:
    """Interpolates a slice at T, for the implementations that it has on both sides of T."""
    at = {length: i for i, length in enumerate(slice_["T"])}
    ends = [(at[length], weight) for length, weight in _bracket(slice_["T"], T)]
    found = {}
    for name, seconds in slice_["seconds"].items():
        if all(seconds[i] is not None for i, _ in ends):
            chunks = slice_["chunks"] if name == "chunked" else [None] * len(seconds)
            found[name] = _mean([(weight, Expected(seconds[i], chunks[i])) for i, weight in ends])
    return found


def _bracket(values: Sequence[int], wanted: int) -> list[tuple[int, float]]:
    """Finds the one or two of ascending values that lie around the wanted one, and their weights in its logarithm."""
    below = max((v for v in values if v <= wanted), default=values[0])
    above = min((v for v in values if v >= wanted), default=values[-1])
    if below >= above:
        return [(below, 1.0)]
    weight = math.log(wanted / below) / math.log(above / below)
    return [(below, 1 - weight), (above, weight)]


def _mean(weighted: Sequence[tuple[float, Expected]]) -> Expected:
    """Averages logarithms of seconds and of chunks, with weights."""

    def mean(field: Callable[[Expected], Any]) -> float:
        return math.exp(sum(weight * math.log(field(x)) for weight, x in weighted))

    chunked = weighted[0][1].chunks is not None
    return Expected(mean(lambda x: x.seconds), round(mean(lambda x: x.chunks)) if chunked else None)
