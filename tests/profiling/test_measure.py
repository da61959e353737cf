"""Measurements: gated by accuracy, written case by case, gone on with; and their clocks."""

import functools
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from fastscan.dispatch import choice as dispatch
from fastscan.profiling.measure import operations
from fastscan.profiling.measure import rows as records
from fastscan.profiling.measure import run as module
from fastscan.profiling.measure.cases import GROUPS, MEASURED_BY, METROPOLIS, Case, cases
from fastscan.profiling.measure.operations import PUBLIC, SEQUENTIAL
from fastscan.profiling.measure.run import implementations, is_default, measure
from fastscan.profiling.measure.timing import clock, in_subprocess

SHORT = Case("hmm_filter", 2, 0, 6)
NAMES = ["sequential", SEQUENTIAL]


def test_groups_hold_what_they_say():
    everything = cases(*GROUPS)
    assert len(everything) == len(set(everything))
    assert {case.operation for case in everything} <= operations.OPERATIONS.keys()
    grid = cases("grid")
    assert {case.family for case in grid} == set(dispatch.FAMILIES) == MEASURED_BY.keys()
    assert not set(grid) & set(cases("held-out"))
    assert {10, 100_000} <= {case.T for case in grid}
    assert max(case.T for case in cases("others")) == 1_000_000
    assert max(case.T for case in cases("gpu")) == 10_000_000


@pytest.mark.parametrize("device", ["cpu", "NVIDIA H200"])
def test_every_case_has_the_default_and_a_yardstick(device):
    for case in cases("gpu" if device != "cpu" else "others", "held-out"):
        names = implementations(case, device)
        assert len(names) == len(set(names))
        assert any(is_default(case, name, device) for name in names), case
        if case.T <= 10_000:
            assert ("xla" if case.family == METROPOLIS else SEQUENTIAL) in names
    assert PUBLIC in implementations(Case("hmm_smoother", 5, 0, 10), "cpu")


@pytest.mark.parametrize(
    "operation", ["lgssm_loglik_gradient", "lgssm_leapfrogs", "hmm_posterior_sample", "lgssm_posterior_sample"]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_operations_agree_with_their_references(operation, dtype):
    """The others are dynamax's own functions, and tested as such elsewhere."""
    B = 2 if operation in ("lgssm_leapfrogs", "lgssm_posterior_sample") else 1
    case = Case(operation, 2, 0 if operation.startswith("hmm") else 1, 5, B, dtype)
    wanted, how = operations.reference(case, dynamax=True)
    got = operations.results(jax.jit(operations.function(case, "sequential"))(*operations.data(case)))
    assert "float64" in how
    assert operations.error(got, wanted) < (2e-6 if dtype == "float32" else 1e-12)
    got[0] = got[0] + 1
    assert operations.error(got, wanted) > 1e-2


@pytest.mark.parametrize("implementation", ["pallas_interpret", "xla"])
@pytest.mark.parametrize(
    "case", [Case("metropolis_positions", 1, 0, 20, 64), Case("metropolis_moments", 1, 0, 2_000, 512)], ids=str
)
def test_markov_chains_agree_with_their_references(case, implementation):
    wanted, _ = operations.reference(case, dynamax=True)
    got = operations.results(jax.jit(operations.function(case, implementation))(*operations.data(case)))
    bound = operations.OPERATIONS[case.operation].bound
    assert operations.error(got, wanted) < bound
    got[0] = got[0] + 1
    assert operations.error(got, wanted) > bound


def test_errors_are_of_the_largest_entry_and_see_nans():
    wanted = [np.full((3, 2), 2.0), np.array([1, 2, 3, 4])]
    got = [np.array([[2, 2], [2, 2], [2, 2.5]]), np.array([1, 2, 3, 4])]
    assert operations.error(got, wanted) == 0.25
    assert operations.error([wanted[0], np.array([1, 2, 4, 4])], wanted) == 0.25
    assert np.isnan(operations.error([np.full((3, 2), np.nan), wanted[1]], wanted))
    assert np.isnan(operations.error([wanted[0], np.full(2, np.nan)], [wanted[0], np.ones(2)]))
    with pytest.raises(ValueError, match="wanted"):
        operations.error([np.zeros(2)], wanted)


def test_a_row_holds_what_was_measured(tmp_path):
    path = tmp_path / "folder" / "measured-x.csv"
    assert measure([SHORT], path, names=[*NAMES, PUBLIC]) == []
    found = records.by_case(records.read(path))[SHORT]
    assert found.keys() == {*NAMES, PUBLIC}
    for row in found.values():
        assert row.status == "ok"
        assert 0 <= row.error < 1e-6
        assert row.first_call > row.p80 >= row.p50 >= row.p20 > 0
        assert row.repeats >= 3
        assert (row.device, row.cores) == ("cpu", os.cpu_count())
        assert "" not in (row.python, row.jax, row.jaxlib, row.dynamax, row.commit, row.date, row.machine)
    assert found["sequential"].default
    assert not found[SEQUENTIAL].default
    assert found["sequential"].bytes > 0
    assert records.read_text(path.read_text(), "x") == records.read(path)


def test_nothing_is_measured_twice(tmp_path, monkeypatch):
    path = tmp_path / "measured-x.csv"
    measure([SHORT], path, names=["sequential"])
    before = path.read_text()
    measure([SHORT], path, names=["sequential"])
    assert path.read_text() == before
    measure([SHORT], path, names=NAMES)
    assert [row.implementation for row in records.read(path)] == NAMES
    on = module.stamp()
    monkeypatch.setattr(module, "stamp", lambda: on | {"commit": "another"})
    measure([SHORT], path, names=["sequential"])
    assert len(records.read(path)) == 3


def test_what_is_wrong_is_not_timed(tmp_path, monkeypatch):
    function = operations.function

    def wrong(case, name):
        run = function(case, name)
        return run if name != "sequential" else lambda *args: jax.tree.map(lambda x: 1.01 * x, run(*args))

    monkeypatch.setattr(operations, "function", wrong)
    (problem,) = measure([SHORT], tmp_path / "m.csv", names=NAMES)
    assert "wrong" in problem
    found = records.by_case(records.read(tmp_path / "m.csv"))[SHORT]
    assert (found["sequential"].status, found["sequential"].p50) == ("wrong", None)
    assert found["sequential"].error > 1e-3
    assert found[SEQUENTIAL].p50 > 0


def test_what_fails_costs_nothing_else(tmp_path, monkeypatch):
    def breaks(*_):
        raise OSError("no such thing\nat all")

    monkeypatch.setattr(module.Programs, "get", breaks)
    (problem,) = measure([SHORT], tmp_path / "m.csv", names=["sequential"])
    assert problem.endswith("failed, OSError: no such thing")
    monkeypatch.setattr(module, "_alive", lambda: False)
    with pytest.raises(module.DeviceLostError):
        measure([SHORT._replace(T=7)], tmp_path / "m.csv", names=["sequential"])
    assert (tmp_path / "m.begun").exists()


def test_a_case_that_kills_is_passed_over_the_third_time(tmp_path):
    path = tmp_path / "m.csv"
    (tmp_path / "m.begun").write_text(f"{SHORT}\n" * (module.RETRIES + 1))
    (problem,) = measure([SHORT], path, names=["sequential"])
    assert "crashed" in problem
    assert [row.status for row in records.read(path)] == ["crashed"]
    assert not (tmp_path / "m.begun").exists()


def test_an_interrupt_loses_the_running_case_alone(tmp_path, monkeypatch):
    measured = module.measure_case

    def interrupted(case, *args):
        if case.T == 7:
            raise KeyboardInterrupt
        return measured(case, *args)

    both = [SHORT, SHORT._replace(T=7)]
    with monkeypatch.context() as patch:
        patch.setattr(module, "measure_case", interrupted)
        with pytest.raises(KeyboardInterrupt):
            measure(both, tmp_path / "m.csv", names=["sequential"])
    assert len(records.read(tmp_path / "m.csv")) == 1
    measure(both, tmp_path / "m.csv", names=["sequential"])
    assert [row.T for row in records.read(tmp_path / "m.csv")] == [6, 7]


def test_without_time_nothing_begins(tmp_path):
    (problem,) = measure([SHORT], tmp_path / "m.csv", names=["sequential"], budget=-1)
    assert problem == "no time for 1 of 1 cases; start again to go on"
    assert not (tmp_path / "m.csv").exists()


@pytest.mark.slow
def test_killed_and_started_again(tmp_path):
    """The command itself, without a chance to clean up."""
    path = tmp_path / "m.csv"
    command = [sys.executable, "-m", "fastscan.profiling", "measure", "--cases", "toy", "--only", "hmm_posterior", "--record"]
    command += [str(path), "--implementations", "sequential", "dynamax sequential", "default"]
    wanted = len([case for case in cases("toy") if "hmm_posterior" in case.operation]) * 3
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not path.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    begun = records.read(path)
    assert 0 < len(begun) < wanted
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rows = records.read(path)
    assert rows[: len(begun)] == begun
    assert len({(row.case, row.implementation) for row in rows}) == len(rows) == wanted


def test_a_record_that_is_none(tmp_path):
    (tmp_path / "measured-x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no record of `measure`"):
        records.read(tmp_path / "measured-x.csv")


def test_the_clock_takes_turns():
    turns = []
    found = clock({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, repeats=4, in_flight=True)
    assert {name: (len(c.in_flight), len(c.waited)) for name, c in found.items()} == {"a": (4, 4), "b": (4, 4)}
    assert "".join(turns).count("ab") >= 4
    calls = {"fast": lambda x: x, "slow": jax.numpy.linalg.inv}
    x = np.eye(300)
    calls = {name: functools.partial(jax.jit(call), x) for name, call in calls.items()}
    for call in calls.values():
        call()
    fast, slow = (np.median(c.waited) for c in clock(calls, repeats=5).values())
    assert 0 < fast < slow
    ended = clock({"a": lambda: None}, repeats=9, seconds_left=lambda: -1)
    assert len(ended["a"].waited) == 1


def test_subprocesses():
    assert in_subprocess("print('first'); print(1.5, 2)", 60) == [1.5, 2.0]
    assert in_subprocess("import time; time.sleep(60)", 0.5) is None
    with pytest.raises(RuntimeError, match="NameError"):
        in_subprocess("nonsense", 60)
