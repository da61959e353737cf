"""The steps of a run: what each does, and in a few words how it ended."""

import hashlib
import os

import jax

from fastscan.dispatch.choice import device_kind
from fastscan.profiling.gpu.ceilings import measure_ceilings
from fastscan.profiling.gpu.run import Run
from fastscan.profiling.measure.cases import cases
from fastscan.profiling.measure.machine import nvidia_smi, stamp
from fastscan.profiling.measure.programs import NOT_COMPILED, Programs, workers
from fastscan.profiling.measure.rows import RECORDS, by_case, read
from fastscan.profiling.measure.run import BAD, measure
from fastscan.profiling.report.readme import ROOT, newest
from fastscan.profiling.verdicts.compare import compare, markdown, regressed

TESTS_SHARE = 0.3
"""The share of the limit that is kept for the GPU tests."""

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
    """Rates of the device, and what it takes to start something on it."""
    run.facts["ceilings"] = measure_ceilings(toy=run.dry_run)
    bad = [name for name, value in run.facts["ceilings"].items() if isinstance(value, str)]
    return f"failed: {', '.join(bad)}" if bad else "ok"


def measured(run: Run) -> str:
    """Measures all cases; a process that goes on after another compiles one program at a time: then it is known which one ends
    it.
    """
    budget = run.left() - TESTS_SHARE * run.limit
    programs = Programs(0 if run.died or run.dry_run else workers())
    group = cases("toy" if run.dry_run else "gpu")
    problems = measure(group, run.record, budget=budget, programs=programs, toy=run.dry_run, commit=run.commit)
    run.facts["nvidia_smi_after"] = nvidia_smi(_SMI)
    run.facts["problems"] = problems
    rows = [row for found in by_case(run.own(read(run.record))).values() for row in found.values()]
    bad, late = sum(row.status in BAD for row in rows), sum(row.note == NOT_COMPILED for row in rows)
    if bad:
        return f"failed: {bad} of {len(rows)} rows"
    problems += [f"{late} programs were {NOT_COMPILED}"] * bool(late)
    return f"skipped: {'; '.join(problems)}" if problems else "ok"


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
