"""The GPU run, on a CPU: every step at toy sizes, and that nothing is lost with what fails."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastscan.profiling import gpu, gpu_accuracy, gpu_record, gpu_timings
from fastscan.types import PosteriorGSSMSmoothed

ROOT = Path(__file__).resolve().parent.parent


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.slow
def test_dry_run_of_every_step(tmp_path):
    command = ["bash", str(ROOT / ".ci" / "gpu"), str(tmp_path / "out"), "--dry-run", "--commit", "abc"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=os.environ | {"PATH": path}, check=False)
    out = tmp_path / "out"
    assert done.returncode == 0, done.stdout + done.stderr + (out / "log.txt").read_text()
    assert "fastscan: installed from this checkout" in done.stdout
    assert done.stdout.strip().splitlines()[-1].endswith(f"records in {out}")

    facts = json.loads((out / "gpu.json").read_text())
    assert facts["dry_run"] is True
    assert facts["dynamax"] == "ok"
    assert facts["failures"] == []
    assert facts["steps"].keys() == gpu.STEPS.keys()
    assert {status.split(":")[0] for status in facts["steps"].values()} <= {"ok", "absent"}
    assert set(facts["cases"].values()) == {"ok"}
    assert facts.keys() >= {"machine", "device", "versions", "commit", "date", "nvidia_smi", "source_sha256", "first_program"}
    assert facts["versions"].keys() >= {"python", "jax", "jaxlib", "dynamax"}
    assert len(facts["ceilings"]) == 5
    assert all(value > 0 for value in facts["ceilings"].values())

    accuracy = rows(out / "accuracy.csv")
    assert len(accuracy) == sum(len(case.implementations) for case in gpu_accuracy.cases(dry_run=True))
    assert {r["implementation"] for r in accuracy} == {"pallas_interpret", "chunked", "sequential", "associative"}
    assert {(r["status"], r["nans"], r["dry_run"]) for r in accuracy} == {("ok", "0", "True")}
    assert all(float(r["worst"]) < (1e-5 if r["dtype"] == "float32" else 1e-13) for r in accuracy)

    timings = rows(out / "timings.csv")
    assert {r["function"] for r in timings} == {"smoother", "loglik", "posterior sample", "filter"}
    assert {r["implementation"] for r in timings} >= {"pallas_interpret", "chunked", "associative", "dynamax parallel"}
    assert {(r["status"], r["dry_run"]) for r in timings} == {("ok", "True")}
    for r in timings:
        assert 0 < float(r["p20"]) <= float(r["p50"]) <= float(r["p80"])
        assert float(r["compile_seconds"]) > 0
        assert float(r["call_p50"]) > 0
    assert all(float(r["against_parallel"]) > 0 for r in timings if r["T"] == "6")
    for problem in gpu_timings.problems(dry_run=True):
        B = str(max(problem.B, 1))
        mine = [r for r in timings if (r["function"], r["T"], r["B"]) == (problem.function, str(problem.T), B)]
        assert [r["default"] for r in mine].count("True") == 1


def test_a_step_that_raises_does_not_cost_the_others(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise OSError("no such ceiling")

    def halting(record, _):
        record.attempt("bad case", 0, lambda: [][1])
        record.attempt("wrong case", 0, lambda: "wrong")
        record.attempt("good case", 0, lambda: "ok")
        record.attempt("long case", 1e9, lambda: "ok")

    steps = gpu.STEPS | {"ceilings": (0, broken), "first program": (0, halting), "accuracy": (0, lambda *_: None)}
    monkeypatch.setattr(gpu, "STEPS", {name: steps[name] for name in ("machine", "ceilings", "first program", "accuracy")})
    assert gpu.run_gpu(tmp_path, dry_run=True, commit="abc") == gpu.FAILED
    facts = json.loads((tmp_path / "gpu.json").read_text())
    assert facts["steps"] == {"machine": "ok", "ceilings": "failed", "first program": "ok", "accuracy": "ok"}
    assert facts["cases"] == {"bad case": "failed", "wrong case": "wrong", "good case": "ok", "long case": "skipped"}
    assert [failure.split(":")[0] for failure in facts["failures"]] == ["step ceilings", "bad case", "wrong case"]
    log = (tmp_path / "log.txt").read_text()
    assert "OSError: no such ceiling" in log
    assert "Traceback" in log
    assert "step ceilings: OSError: no such ceiling" in capsys.readouterr().out


def test_another_process_goes_on_after_one_that_died(tmp_path, monkeypatch, capsys):
    blanks = []

    def attempt(record, case, run=lambda: "ok"):
        return record.attempt(case, 0, run, lambda status, _: blanks.append((case, status)))

    def die():
        raise KeyboardInterrupt  # as good as a signal: no except clause sees it

    record = gpu_record.Record(tmp_path, True, 100)
    assert attempt(record, "first") == "ok"
    with pytest.raises(KeyboardInterrupt):
        attempt(record, "second", die)
    record = gpu_record.Record(tmp_path, True, 100, resume=True)
    assert attempt(record, "first", die) == "ok"
    with pytest.raises(KeyboardInterrupt):  # the first time, something else may have ended the process
        attempt(record, "second", die)
    record = gpu_record.Record(tmp_path, True, 100, resume=True)
    assert attempt(record, "second", die) == "crashed"
    monkeypatch.setattr(gpu_record, "_alive", lambda: False)
    with pytest.raises(gpu_record.DeviceLostError):
        attempt(record, "third", lambda: [][1])

    monkeypatch.setattr(gpu, "STEPS", {"only": (0, lambda record, _: attempt(record, "fourth", lambda: [][1]))})
    assert gpu.run_gpu(tmp_path, dry_run=True, resume=True) == gpu.DEVICE_LOST
    assert gpu_record.Record(tmp_path, True, 100, resume=True).facts["cases"] == {
        "first": "ok",
        "second": "crashed",
        "third": "failed",
        "fourth": "failed",
    }
    assert blanks == [("second", "crashed"), ("third", "failed"), ("fourth", "failed")]
    assert "fourth: IndexError" in capsys.readouterr().out
    assert gpu_record.Record(tmp_path, True, 100).facts["cases"] == {}


def test_a_run_that_hangs_is_ended_with_its_table(tmp_path, monkeypatch, capsys):
    ends = []
    monkeypatch.setattr(gpu, "exit_with", ends.append)
    gpu._give_up(gpu_record.Record(tmp_path, True, 0))
    assert ends == [gpu.FAILED]
    assert "not ended by the limit" in capsys.readouterr().out


def test_no_gpu(tmp_path):
    with pytest.raises(RuntimeError, match="--dry-run"):
        gpu.run_gpu(tmp_path / "out", dry_run=False)
    assert not (tmp_path / "out").exists()


def test_errors_are_of_the_largest_entry_and_see_nans():
    wanted = PosteriorGSSMSmoothed(*(np.full((3, 2), 2.0) for _ in range(5)), np.empty((0, 2)))
    got = wanted._replace(smoothed_means=np.array([[2, 2], [2, 2], [2, 2.5]]))
    found = gpu_accuracy.errors(got, wanted)
    assert (found["smoothed_means"], found["filtered_means"], found["worst"], found["nans"]) == (0.25, 0, 0.25, 0)
    missing = gpu_accuracy.errors(wanted._replace(filtered_means=np.full((3, 2), np.nan)), wanted)
    assert missing["nans"] == 6
    assert np.isnan(missing["worst"])
    with pytest.raises(ValueError, match="wanted"):
        gpu_accuracy.errors(wanted._replace(filtered_means=np.zeros(2)), wanted)


def test_the_clock_takes_turns():
    turns = []
    found = gpu_timings.clock({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, toy=True)
    assert {name: (len(c.in_flight), len(c.alone)) for name, c in found.items()} == {"a": (2, 8), "b": (2, 8)}
    assert "".join(turns).lstrip("a").lstrip("b").startswith("a")
    assert all(0 < second < 1 for c in found.values() for second in (*c.in_flight, *c.alone))


def test_real_runs_hold_every_implementation():
    assert {name for case in gpu_accuracy.cases(False) for name in case.implementations} == set(gpu_accuracy._XLA)
    assert {case.problem.D for case in gpu_accuracy.cases(False)} == {1, 2, 3, 4, 6}
    assert max(case.problem.T for case in gpu_accuracy.cases(False)) == 10_000_000
    assert max(case.problem.B for case in gpu_accuracy.cases(False)) == 100_000
