"""The first minutes on a GPU, on a CPU: every family, and that nothing is lost with a process that fails or hangs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from fastscan.dispatch import launches
from fastscan.profiling.compiled.kernel_report import FAMILIES
from fastscan.profiling.compiled.machine_code import on_abstract_gpu
from fastscan.profiling.gpu import jobs, smoke
from fastscan.profiling.gpu.jobs import Job, run_jobs
from fastscan.profiling.gpu.stages import STAGES
from fastscan.profiling.measure import limited, operations
from fastscan.profiling.measure import rows as records
from fastscan.profiling.measure.cases import Case
from oracles.records import made_up

ROOT = Path(__file__).resolve().parents[3]
CASE = Case("lgssm_smoother", 4, 2, 1_000)


@pytest.mark.slow
def test_dry_run_of_the_smoke_stage(tmp_path):
    """In the seconds that it has, on two cores; and it goes on with a folder that was brought along."""
    command = ["bash", str(ROOT / ".ci" / "gpu"), "--stage", "smoke", "--dry-run"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    out, again = tmp_path / "out", tmp_path / "again"
    how = {"capture_output": True, "text": True, "env": os.environ | {"PATH": path}, "check": False}
    done = subprocess.run([*command, str(out)], timeout=170, **how)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((out / "gpu.json").read_text())
    assert facts["steps"] == dict.fromkeys(STAGES["smoke"].steps, "ok")
    assert facts["jobs"] == {job.name: "ok" for job in smoke.toy_jobs()}
    rows = records.read(out / "smoke.csv")
    assert {(row.commit, row.dirty) for row in rows} == {(facts["commit"], facts["dirty"])}
    for job in smoke.toy_jobs():
        for case, names in job.work:
            mine = {row.implementation: row for row in rows if row.case == case}
            assert {name for name in names if operations.function(case, name)} <= mine.keys()
            assert all(row.status == "ok" and row.p50 > 0 for row in mine.values())
    assert done.stdout.splitlines()[-len({row.case for row in rows}) - 2].startswith("milliseconds")
    done = subprocess.run([*command, "--from", str(out), str(again)], timeout=60, **how)
    assert done.returncode == 0
    assert "smoother: ok" not in done.stdout
    assert records.read(again / "smoke.csv") == rows
    assert len([file for file in again.rglob("*") if file.is_file()]) == 2


def test_every_family_of_kernels_is_tried():
    wanted = {"lgssm_smoother": "smoother", "lgssm_marginal_loglik": "likelihood", "lgssm_posterior_sample": "sampler"}
    wanted |= {"hmm_smoother": "hmm_smoother", "hmm_posterior_mode": "hmm_mode", "hmm_posterior_sample": "hmm_sampler"}
    wanted |= {"lds_inference": "lds", "metropolis_moments": "metropolis", "lgssm_loglik_gradient": "score"}
    tried = {case for job in smoke.JOBS for case, names in job.work if "pallas" in names}
    assert {wanted[case.operation] for case in tried if case.operation in wanted} == set(FAMILIES)
    assert {"lgssm_filter", "lgssm_loglik_gradient"} <= {case.operation for case in tried}
    for case in tried:
        assert case.operation in operations.OPERATIONS
        if case.family in launches.KERNEL_SIZES:
            given = case.family, case.D, case.m, case.dtype
            assert launches.in_threads(*given) or launches.in_programs(*given)


@pytest.mark.parametrize(
    "case", {case.operation: case for job in smoke.JOBS for case, names in job.work if "pallas" in names}.values(), ids=str
)
def test_kernels_are_lowered_for_a_gpu(case, monkeypatch):
    """What is public, where the kernel report has kernels alone: with what runs around them."""
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("fastscan") and hasattr(module, "device_kind"):
            monkeypatch.setattr(module, "device_kind", lambda: "NVIDIA H100 80GB HBM3")
    small = case._replace(D=min(case.D, 2), m=min(case.m, 1), T=min(case.T, 10_000))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), operations.data(small))
    try:
        with on_abstract_gpu(), jax.enable_x64(False):
            lowered = jax.jit(operations.function(small, "pallas")).trace(*shapes).lower(lowering_platforms=("cuda",))
    finally:
        jax.clear_caches()  # which hold that kernels run here
    assert "xla.gpu.triton" in lowered.as_text() or case.operation == "lgssm_loglik_gradient"


def test_what_fails_or_hangs_costs_nothing_else(tmp_path, monkeypatch):
    code = """
import json, os, sys, time
told = json.loads(sys.argv[1])
what = told["work"][0][1][0]
if what == "fails": sys.exit("no such kernel")
if what == "dies": os.kill(os.getpid(), 11)
if what == "stuck": open(told["turn"], "w").write(f"{os.getpid()} {time.monotonic()}")
time.sleep(0 if what == "ends" else 60)
"""
    monkeypatch.setattr(jobs, "_CODE", code)
    monkeypatch.setattr(jobs, "TURN_SECONDS", 0.5)
    monkeypatch.setattr(jobs.os, "cpu_count", lambda: 6)
    names = "fails", "dies", "stuck", "sleeps", "ends", "sleeps too", "sleeps again"
    start = time.monotonic()
    found = run_jobs([Job(name, [(CASE, [name])]) for name in names], tmp_path / "m.csv", 6)
    assert time.monotonic() - start < 12
    late = dict.fromkeys(("sleeps", "sleeps too", "sleeps again"), "did not end in time")
    stuck = "had the device to itself for 0 s"
    assert found == {"fails": "ended with 1: no such kernel", "dies": "ended with -11: ", "stuck": stuck, "ends": "ok", **late}
    assert not limited._children
    assert (tmp_path / jobs.PRINTED).read_text() == "== fails: ended with 1: no such kernel\nno such kernel\n\n"


def test_a_job_measures_and_goes_on(tmp_path, monkeypatch, caplog):
    """What is there is not measured again; what fails, or takes too long, with few steps is passed over, and that is said."""
    short, longer = (Case("hmm_filter", 2, 0, T) for T in (6, 12))
    record, turn = tmp_path / "m.csv", tmp_path / "turn"
    assert run_jobs([Job("short", [(short, ["sequential"])])], record, 60) == {"short": "ok"}
    before = records.read(record)
    assert [row.implementation for row in before] == ["sequential"]
    assert before[0].error < 1e-6

    def breaks(*_):
        raise OSError("no such kernel")

    monkeypatch.setattr(jobs.Programs, "get", breaks)
    turn.touch()
    caplog.set_level("INFO", "fastscan")
    told = {"record": str(record), "turn": str(turn), "seconds": 60, "commit": None, "repeats": 3}
    jobs._run([(short, ["sequential", "chunked"]), (longer, ["chunked"])], told)
    after = records.read(record)
    assert after[:1] == before
    assert [(row.T, row.implementation) for row in after[1:]] == [(6, "chunked"), (12, "chunked")]
    assert [row.status for row in after[1:]] == ["failed", "skipped"]
    assert "in breaks" in caplog.text  # all of the error, for one who has no such device
    assert "with fewer steps" in after[-1].note
    assert turn.read_text() == ""
    assert jobs._expected(longer, "sequential", before) == pytest.approx(2 * before[0].p50)
    assert jobs._expected(longer, "sequential", []) == 0


def test_the_table():
    rows = [made_up(CASE, "pallas", 2e-4, in_flight=1e-4, error=3e-6), made_up(CASE, "chunked", 5e-3)]
    rows += [made_up(CASE, "associative", 1.0, status="wrong")._replace(p50=None)]
    line = smoke.table(rows)[1]
    assert line.split()[-6:] == ["0.1", "-", "5", "wrong", "-", "3e-06"]
    assert smoke.table(rows, {str(CASE): (7e-5, 9e-5)})[1].split()[-6:-4] == ["0.1", "0.07-0.09"]
