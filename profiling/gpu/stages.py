"""The stages of a GPU run: which steps each has, in order of importance."""

from pathlib import Path

from fastscan.dispatch import device_kind
from fastscan.profiling.gpu import steps
from fastscan.profiling.gpu.run import Run, Step, run_steps
from fastscan.profiling.gpu.testing import tested

STEPS: dict[str, Step] = {
    "machine": (0, steps.machine),
    "ceilings": (20, steps.ceilings),
    "measure": (60, steps.measured),
    "compare": (0, steps.compared),
    "tests": (30, tested),
}
"""In order of importance: how many seconds must be left to begin, and what is done."""


def run_gpu(out: Path, dry_run: bool, limit_seconds: float = 540, *, commit: str | None = None) -> int:
    """Runs every step that has not ended well; writes ``gpu.json``, ``measured.csv``, ``crossover.json``, ``compare.md``...

    Ends the process if a step has not ended by the limit: compiled code can't be interrupted.

    Args:
        out: folder for what is written; of a run whose process died, to go on.
        dry_run: run every step at toy sizes, on a CPU, kernels in Pallas's interpreter.
        limit_seconds: for all.
        commit: what is measured, where git can't tell.

    Returns:
        0, `FAILED` or `DEVICE_LOST`.

    Raises:
        RuntimeError: no GPU, and no dry run.
    """
    if not (dry_run or device_kind().startswith("NVIDIA")):
        raise RuntimeError(f"JAX computes on {device_kind()!r} here, which is no NVIDIA GPU. Take --dry-run to try the steps.")
    return run_steps(Run(out, dry_run, limit_seconds, commit), STEPS)
