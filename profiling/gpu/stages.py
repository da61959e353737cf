"""The stages of a GPU run: which steps each has, in order of importance, and in how many seconds."""

import os
from pathlib import Path

from fastscan.dispatch.choice import device_kind
from fastscan.profiling.compiled.predictions import read_predictions
from fastscan.profiling.gpu import profile, smoke, steps
from fastscan.profiling.gpu import run as running
from fastscan.profiling.gpu.run import Run, Stage, run_stage
from fastscan.profiling.gpu.testing import tested
from fastscan.profiling.measure.rows import RECORDS, read

STAGES = {
    "smoke": Stage(
        150,
        {"machine": (0, steps.machine), "smoke": (40, smoke.smoked), "ceilings": (15, steps.ceilings)},
        lambda run: smoke.table(run.own(read(run.out / "smoke.csv")), read_predictions(RECORDS, device_kind())),
    ),
    "full": Stage(
        480,
        {
            "machine": (0, steps.machine),
            "ceilings": (20, steps.ceilings),
            "measure": (60, steps.measured),
            "compare": (0, steps.compared),
            "tests": (30, tested),
        },
        lambda run: running.table(run.own(read(run.record))),
    ),
    "profile": Stage(
        110, {"machine": (0, steps.machine), "trace": (20, profile.traced), "counters": (20, profile.counted)}, profile.table
    ),
}
"""A machine that is lent for fifteen minutes has the time for all of them."""


def run_gpu(
    out: Path, dry_run: bool = False, limit_seconds: float | None = None, *, stage: str = "full", commit: str | None = None
) -> int:
    """Runs every step of a stage that has not ended well on this machine; writes ``gpu.json``, ``measured.csv``...

    Ends the process if a step has not ended by the limit: compiled code can't be interrupted.

    Args:
        out: folder for what is written; of another stage, or of a run whose process died, to go on.
        dry_run: run every step at toy sizes, on a CPU, kernels in Pallas's interpreter.
        limit_seconds: for all; default that of the stage.
        stage: one of `STAGES`.
        commit: what is measured, where git tells something else, or nothing.

    Returns:
        0, `FAILED` or `DEVICE_LOST`.

    Raises:
        RuntimeError: no GPU, and no dry run.
    """
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the other processes need memory, too
    if not (dry_run or device_kind().startswith("NVIDIA")):
        raise RuntimeError(f"JAX computes on {device_kind()!r} here, which is no NVIDIA GPU. Take --dry-run to try the steps.")
    limit = STAGES[stage].limit if limit_seconds is None else limit_seconds
    return run_stage(Run(out, dry_run, limit, commit), STAGES[stage])
