"""The steps of a run: what each does, and in a few words how it ended."""

import hashlib
import os

import jax

from fastscan.dispatch.choice import device_kind
from fastscan.profiling.gpu.ceilings import measure_ceilings
from fastscan.profiling.gpu.jobs import Job, problems, run_jobs, together
from fastscan.profiling.gpu.run import Run
from fastscan.profiling.measure.cases import cases
from fastscan.profiling.measure.machine import nvidia_smi, stamp
from fastscan.profiling.measure.programs import NOT_COMPILED
from fastscan.profiling.measure.rows import RECORDS, by_case, read
from fastscan.profiling.measure.run import implementations
from fastscan.profiling.report.readme import ROOT, newest
from fastscan.profiling.verdicts.compare import compare, markdown, regressed

TESTS_SHARE = 0.3
"""The share of the limit that is kept for the GPU tests."""

REPEATS = 15
"""Samples of every program."""

_SMI = "name,driver_version,pstate,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit,temperature.gpu"


def machine(run: Run) -> str:
    """Writes down device, driver, versions, commit."""
    on, device = stamp(run.commit), jax.devices()[0]
    found = {
        "dry_run": run.dry_run,
        "platform": str(getattr(getattr(device, "client", None), "platform_version", "unknown")),
        "memory": (device.memory_stats() or {}).get("bytes_limit"),
        "xla": {name: value for name, value in os.environ.items() if name.startswith(("XLA_", "JAX_"))},
        "nvidia_smi": nvidia_smi(_SMI),
        "source_sha256": _source_hash(),
    }
    run.learn(on | found)
    return "ok"


def ceilings(run: Run) -> str:
    """Measures rates of the device, and what it takes to start something on it."""
    run.facts["ceilings"] = measure_ceilings(toy=run.dry_run)
    bad = [name for name, value in run.facts["ceilings"].items() if isinstance(value, str)]
    return f"failed: {', '.join(bad)}" if bad else "ok"


def measured(run: Run) -> str:
    """Measures all cases, each in a process of its own: one process with many threads compiles half as many in the time."""
    seconds = run.left() - TESTS_SHARE * run.limit
    group = cases("toy" if run.dry_run else "gpu")
    work = [(case, implementations(case, run.facts["device"], toy=run.dry_run)) for case in group]
    jobs = [Job(str(case), [(case, names)]) for case, names in work]
    if run.dry_run:  # every start takes seconds of a core
        jobs = together(jobs)
    ended = run_jobs(jobs, run.record, seconds, commit=run.commit, repeats=REPEATS)
    run.facts["nvidia_smi_after"] = nvidia_smi(_SMI)
    rows = [row for found in by_case(run.own(read(run.record))).values() for row in found.values()]
    told = problems(ended, rows)
    run.facts["problems"] = told
    if told:
        return f"failed: {len(told)} of {len(jobs)} jobs and {len(rows)} rows; see problems"
    late = sum(row.note == NOT_COMPILED for row in rows)
    return f"skipped: {late} programs were {NOT_COMPILED}" if late else "ok"


def compared(run: Run) -> str:
    """Compares with the last committed record of the same kind of device."""
    try:
        before = newest(RECORDS, device_kind())
    except ValueError as error:
        return f"absent: {error}"
    if not by_case(before).keys() & by_case(read(run.record)).keys():
        return "absent: the last record has no case in common with this one"
    findings = compare(before, read(run.record))
    (run.out / "compare.md").write_text(markdown(findings) + "\n")
    return "failed: slower, larger or less accurate than the last record; see compare.md" if regressed(findings) else "ok"


def _source_hash() -> str:
    """Hashes the package's files, for a checkout without git."""
    digest = hashlib.sha256()
    for folder in ("fastscan", "kernels", "profiling"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]
