"""Profiles of kernels: JAX's own on a CPU, and Nsight Compute's answer as it is read, from numbers that nobody measured."""

import os
import zipfile

import pytest

from fastscan.profiling.gpu import profile
from fastscan.profiling.gpu.calls import ENVIRONMENT
from fastscan.profiling.gpu.counters import count, read_counters
from fastscan.profiling.gpu.run import Run

ANSWER = """==PROF== Connected to process 7
==WARNING== something
"ID","Process ID","Kernel Name","Device","dram__bytes.sum.per_second","gpu__time_duration.sum",\
"gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed","smsp__issue_active.avg.per_cycle_active",\
"sm__warps_active.avg.pct_of_peak_sustained_active","launch__registers_per_thread",\
"smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",\
"smsp__average_warps_issue_stalled_wait_per_issue_active.ratio",\
"smsp__average_warps_issue_stalled_wait_not_issued_per_issue_active.ratio",\
"smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio"
"","","","","byte/second","nsecond","%","inst/cycle","%","register/thread","warp","warp","warp","warp"
"0","7","made_up_sweep","0","5","10","1","0.1","2","96","1","2","9","0"
"1","7","made_up_sweep","0","2,000,000,000,000","40,000","50","0.25","30","96","3.5","2","9","0"
"2","7","made_up_begin","0","1","3","n/a","0.5","4","32","0","0","0","0"
""".replace("\\\n", "")


def fake(folder, script):
    (folder / "ncu").write_text("#!/bin/sh\n" + script)
    (folder / "ncu").chmod(0o755)


def test_the_longest_launch_of_every_kernel_is_told():
    sweep, begin = read_counters(ANSWER)
    assert (sweep.kernel, sweep.launches, sweep.registers, begin.launches) == ("made_up_sweep", 2, 96, 1)
    assert sweep.seconds == pytest.approx(40e-6)
    assert sweep.bytes_per_second == pytest.approx(2e12)
    assert (sweep.bandwidth_percent, sweep.issue_percent, sweep.occupancy_percent) == (50, 25, 30)
    assert sweep.stalls == "long_scoreboard 3.5, wait 2.0"
    assert begin.bandwidth_percent is None
    assert read_counters("==ERROR== no") == []


def test_counters_of_a_made_up_profiler(tmp_path, monkeypatch):
    """It is asked as Nsight Compute wants to be, and its answer is written down and printed."""
    (tmp_path / "answer").write_text(ANSWER)
    fake(tmp_path, f'echo "$@" > {tmp_path}/asked; while [ "$1" != --log-file ]; do shift; done; cat {tmp_path}/answer > "$2"')
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    run = Run(tmp_path / "out", True, 60, None)
    assert profile.counted(run) == "ok"
    asked = (tmp_path / "asked").read_text()
    assert "--clock-control none" in asked
    assert "fastscan.profiling.gpu.calls" in asked
    line = next(line for line in profile.table(run) if "made_up_sweep" in line)
    assert line.split()[1:] == ["40", "2000", "50", "25", "30", "96", "long_scoreboard", "3.5,", "wait", "2.0"]


@pytest.mark.parametrize(
    ("script", "wanted"),
    [
        ("echo '==ERROR== ERR_NVGPUCTRPERM - no permission'; exit 1", "absent: ncu reads no counters here: ==ERROR== ERR_NV"),
        ("echo '==ERROR== Failed to initialize the profiler: LibraryNotLoaded'", "absent: ncu reads no counters here"),
        ("echo '==ERROR== Unknown section'; exit 1", "failed: ncu: ==ERROR== Unknown section"),
        ("sleep 60", "failed: ncu did not end in 1 s"),
    ],
)
def test_a_profiler_that_says_nothing(tmp_path, monkeypatch, script, wanted):
    fake(tmp_path, script)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert count(tmp_path, 1, toy=True).startswith(wanted)


def test_no_profiler(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert count(tmp_path, 1, toy=True) == "absent: no ncu"


@pytest.mark.slow
def test_a_trace_names_what_ran(tmp_path, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    run = Run(tmp_path / "out", True, 300, None)
    assert profile.traced(run) == "ok"
    with zipfile.ZipFile(run.out / "traces.zip") as packed:
        assert sorted(packed.namelist()) == [f"{name}.xplane.pb" for name in sorted(profile.TOY_CALLS)]
    rows = [row for row in profile._read(run.out / "profile.csv") if row["profiler"] == "jax"]
    assert {row["call"] for row in rows} == profile.TOY_CALLS.keys()
    assert all(float(row["seconds"]) > 0 for row in rows)
    assert len(profile.table(run)) > len(profile.TOY_CALLS)
