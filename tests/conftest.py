"""JAX computes in the dtype of what it is given here: x64 is on, and every test names its dtypes."""

from pathlib import Path

import jax
import pytest

from fastscan.dispatch import crossovers

jax.config.update("jax_enable_x64", True)

SLOW = frozenset(Path(__file__).with_name("slow.txt").read_text().splitlines())
"""Tests that took three seconds or more, by ``pytest --durations`` beside other work, of a suite that has to be over in ten
minutes; but of every function one set of parameters stays that takes less than eight. They are marked slow here, as most are
only some of a test's parameters; others say it themselves."""
MAPPINGS = Path("/proc/self/maps")
ENOUGH = 20_000  # of the 65,530 that Linux gives a process; every compiled program takes a few


def pytest_collection_modifyitems(items):
    for item in items:
        if item.nodeid.removeprefix("tests/") in SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def committed_crossovers(monkeypatch, tmp_path_factory):
    """Choices are those of the committed table, whatever this machine's user has measured, or a test has asked for."""
    monkeypatch.setattr(crossovers, "user_cache_path", lambda _: tmp_path_factory.getbasetemp() / "no-cache")
    yield
    if crossovers.given_table() is not None:
        crossovers.use_crossover_table(None)


@pytest.fixture(autouse=True)
def few_compiled_programs():
    """Drops compiled programs before the process runs out of memory mappings, which would end it."""
    yield
    if MAPPINGS.exists() and MAPPINGS.read_bytes().count(b"\n") > ENOUGH:
        jax.clear_caches()
