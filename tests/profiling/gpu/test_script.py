"""The GPU run, on a CPU: every step at toy sizes, and that nothing is lost with what fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastscan.profiling.gpu import run as run_module
from fastscan.profiling.gpu import steps as steps_module
from fastscan.profiling.gpu import testing
from fastscan.profiling.gpu.run import DEVICE_LOST, FAILED, Run
from fastscan.profiling.gpu.stages import STAGES, run_gpu
from fastscan.profiling.gpu.steps import machine
from fastscan.profiling.measure import operations
from fastscan.profiling.measure import rows as records
from fastscan.profiling.measure.cases import METROPOLIS, cases
from fastscan.profiling.measure.run import DeviceLostError
from fastscan.profiling.report import readme as tables

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_dry_run_of_every_step(tmp_path):
    command = ["bash", str(ROOT / ".ci" / "gpu"), str(tmp_path / "out"), "--dry-run", "--commit", "abc"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=os.environ | {"PATH": path}, check=False)
    out = tmp_path / "out"
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fastscan: installed from this checkout" in done.stdout
    assert done.stdout.strip().splitlines()[-1].endswith(f"records in {out}")

    facts = json.loads((out / "gpu.json").read_text())
    assert facts["dry_run"] is True
    assert facts["problems"] == []
    assert facts["steps"].keys() == STAGES["full"].steps.keys()
    assert {status.split(":")[0] for status in facts["steps"].values()} <= {"ok", "absent"}
    assert facts.keys() >= {"machine", "device", "python", "jax", "dynamax", "commit", "date", "nvidia_smi", "source_sha256"}
    assert len(facts["ceilings"]) == 5
    assert all(value > 0 for value in facts["ceilings"].values())

    measured = records.by_case(records.read(out / "measured.csv"))
    assert set(measured) == set(cases("toy"))
    for case, rows in measured.items():
        others = {"xla"} if case.family == METROPOLIS else {"chunked", "sequential"}
        assert {"pallas_interpret", *others} <= rows.keys()
        for name, row in rows.items():
            assert row.status == "ok"
            if not name.startswith("dynamax"):
                bound = operations.OPERATIONS[case.operation].bound
                assert row.error < (bound or (1e-5 if case.dtype == "float32" else 1e-13))
                assert 0 < row.p20 <= row.p50 <= row.p80
        assert any(row.default for row in rows.values())


def made_up_stage(monkeypatch, steps):
    monkeypatch.setitem(STAGES, "full", STAGES["full"]._replace(steps=steps))


def test_a_step_that_raises_does_not_cost_the_others(tmp_path, monkeypatch, capsys):
    def broken(_):
        raise OSError("no such ceiling")

    before = STAGES["full"].steps
    steps = {name: (0, lambda _: "ok") for name in before} | {"machine": before["machine"], "ceilings": (0, broken)}
    made_up_stage(monkeypatch, steps)
    assert run_gpu(tmp_path, dry_run=True, commit="abc") == FAILED
    facts = json.loads((tmp_path / "gpu.json").read_text())
    assert facts["steps"] == dict.fromkeys(before, "ok") | {"ceilings": "failed: OSError: no such ceiling"}
    assert "step ceilings: failed: OSError: no such ceiling" in capsys.readouterr().out


def test_another_process_goes_on_with_what_is_there(tmp_path, monkeypatch):
    ran, died = [], []

    def step(name):
        def run(run):
            ran.append(name)
            died.append(run.died)
            if len(ran) == 2:
                raise DeviceLostError("chunked of something")
            return "ok"

        return run

    made_up_stage(monkeypatch, {name: (0, step(name)) for name in ("first", "second", "third")})
    assert run_gpu(tmp_path, dry_run=True) == DEVICE_LOST
    assert run_gpu(tmp_path, dry_run=True) == 0
    assert ran == ["first", "second", "second", "third"]
    assert died == [False, False, True, True]
    assert not Run(tmp_path, True, 100, None).died


def test_another_stage_goes_on_and_another_machine_begins_anew(tmp_path, monkeypatch):
    """What was measured before stays in the file."""
    ran = []

    def step(name):
        def run(_):
            ran.append(name)
            return "failed: for once" if len(ran) == 2 else "ok"

        return run

    for stage, names in (("smoke", ("ceilings", "smoke")), ("full", ("ceilings", "measure"))):
        steps = {"machine": (0, machine), **{name: (0, step(name)) for name in names}}
        monkeypatch.setitem(STAGES, stage, STAGES[stage]._replace(steps=steps))
    assert run_gpu(tmp_path, dry_run=True, stage="smoke") == FAILED
    assert run_gpu(tmp_path, dry_run=True, stage="full") == 0
    assert run_gpu(tmp_path, dry_run=True, stage="smoke") == 0
    assert ran == ["ceilings", "smoke", "measure", "smoke"]
    on = steps_module.stamp()
    monkeypatch.setattr(steps_module, "stamp", lambda _: on | {"device": "abacus"})
    assert run_gpu(tmp_path, dry_run=True, stage="full") == 0
    assert ran[4:] == ["ceilings", "measure"]
    facts = json.loads((tmp_path / "gpu.json").read_text())
    assert facts["device"] == "abacus"
    assert [earlier["device"] for earlier in facts["earlier"]] == ["cpu"]


def test_the_last_record_is_compared_with(tmp_path, monkeypatch):
    run = Run(tmp_path / "out", True, 100, None)
    monkeypatch.setattr(steps_module, "RECORDS", tmp_path)
    assert steps_module.compared(run).startswith("absent")
    rows = tables.newest()
    records.append(run.record, rows)
    records.append(tmp_path / "measured" / "measured-a.csv", rows)
    assert steps_module.compared(run) == "ok"
    run.record.unlink()
    records.append(
        run.record, [r if r.p50 is None or "dynamax" in r.implementation else r._replace(p50=2 * r.p50) for r in rows]
    )
    assert steps_module.compared(run).startswith("failed: slower")
    assert "| time |" in (tmp_path / "out" / "compare.md").read_text()


def test_a_run_that_hangs_is_ended_with_its_table(tmp_path, monkeypatch, capsys):
    ends = []
    monkeypatch.setattr(run_module, "exit_with", ends.append)
    run_module._give_up(Run(tmp_path, True, 0, None), STAGES["full"])
    assert ends == [FAILED]
    assert "not ended by the limit" in capsys.readouterr().out


def test_no_gpu(tmp_path):
    with pytest.raises(RuntimeError, match="--dry-run"):
        run_gpu(tmp_path / "out", dry_run=False)
    assert not (tmp_path / "out").exists()


MADE_UP_TESTS = """
import time
import pytest

@pytest.mark.parametrize("x", [1, 2, 3])
def test_small(x):
    assert x == 2

@pytest.fixture
def broken():
    yield
    raise OSError

def test_left_behind(broken): pass

def test_long():
    time.sleep({seconds})
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_all_failing_tests_are_told(tmp_path, monkeypatch, processes):
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "test_made_up.py").write_text(MADE_UP_TESTS.format(seconds=0))
    monkeypatch.setattr(testing, "ROOT", tmp_path)
    monkeypatch.setattr(testing, "TESTS", Path("test_made_up.py"))
    monkeypatch.setattr(testing, "_side_by_side", lambda: ["-n", "2"] if processes == 2 else [])
    run = Run(tmp_path / "out", False, 100, None)
    told = testing.tested(run)
    assert told == "failed: 3 of 5: test_left_behind, test_small[1], test_small[3]; pytest ended with 1; see tests.txt"
    assert run.facts["tests"] == {"passed": 2, "failed": ["test_left_behind", "test_small[1]", "test_small[3]"]}


def test_tests_that_do_not_end_are_cut_off_and_told(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "test_made_up.py").write_text(MADE_UP_TESTS.format(seconds=300))
    monkeypatch.setattr(testing, "ROOT", tmp_path)
    monkeypatch.setattr(testing, "TESTS", Path("test_made_up.py"))
    monkeypatch.setattr(testing, "_side_by_side", list)
    told = testing.tested(Run(tmp_path / "out", False, 32, None))
    assert told.startswith("failed: the tests did not end in 20 s; of those that did, 3 of 4: test_left_behind, test_small[1]")
