"""One run on a machine with a GPU, in minutes: how accurate, how fast, and against which ceilings; see ``.ci/gpu``.

What fails costs nothing else: every case is written down as it ends. A case that ends the process, or loses the device, is
passed over by the next process, which `run_gpu` goes on in with ``resume``.
"""

import hashlib
import importlib.metadata
import importlib.util
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import jax

from fastscan.dispatch import device_kind
from fastscan.profiling import gpu_accuracy, gpu_timings
from fastscan.profiling.gpu_programs import Programs
from fastscan.profiling.gpu_record import DeviceLostError, Record
from fastscan.profiling.machine import describe

ROOT = Path(__file__).resolve().parent.parent
TESTS = Path("tests") / "test_on_gpu.py"
FAILED, DEVICE_LOST = 1, 75
"""What `run_gpu` returns if anything failed; and if another process is to go on."""

_PACKAGES = ("triton", "dynamax", "tfp-nightly", "nvtx", "pytest", "jax-cuda13-plugin", "jax-cuda13-pjrt", "jax-cuda12-plugin")
_SMI = "name,driver_version,pstate,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit,temperature.gpu"


def _machine(record: Record, programs: Programs) -> None:  # noqa: ARG001
    """Device, driver, versions, commit."""
    about, said = describe("python -m fastscan.profiling gpu"), record.facts["commit"]
    record.facts |= about | {"commit": said if about["commit"] == "unknown" else about["commit"]}
    record.facts["versions"] |= {name: version for name in _PACKAGES if (version := _version(name))}
    device = jax.devices()[0]
    client = getattr(device, "client", None)
    record.facts |= {
        "device": device_kind(),
        "platform": str(getattr(client, "platform_version", "unknown")),
        "memory": (device.memory_stats() or {}).get("bytes_limit"),
        "xla": {name: value for name, value in os.environ.items() if name.startswith(("XLA_", "JAX_"))},
        "nvidia_smi": _nvidia_smi(),
        "source_sha256": _source_hash(),
    }


def _ceilings(record: Record, programs: Programs) -> None:  # noqa: ARG001
    gpu_timings.run_ceilings(record)


def _first_program(record: Record, programs: Programs) -> None:
    """The most important program is compiled alone, for a figure of what that takes; then all others together."""
    everyone = gpu_timings.everyones(record)
    problem, names = next(iter(everyone.items()))
    name = next(name for name in names if gpu_timings.is_default(problem, name))

    def run() -> str:
        program = programs.get(problem, name, max(record.left_until(0.75), 1))
        seconds = {"lower_seconds": program.lower_seconds, "compile_seconds": program.compile_seconds}
        record.facts["first_program"] = {"of": f"{name} {problem}", **seconds}
        return "ok"

    record.attempt(f"compile {name} {problem}", 0, run)
    timed = [[(problem, name) for name in names] for problem, names in everyone.items()]
    checked = [[(case.problem, name) for name in case.implementations] for case in gpu_accuracy.cases(record.dry_run)]
    for pairs in itertools.chain.from_iterable(itertools.zip_longest(checked, timed, fillvalue=[])):
        for pair in pairs:
            programs.ahead(*pair)


def _accuracy(record: Record, programs: Programs) -> None:
    gpu_accuracy.run_accuracy(record, programs, until=0.48)


def _timings(record: Record, programs: Programs) -> None:
    gpu_timings.run_timings(record, programs, settled=0.4, until=0.22)
    record.facts["nvidia_smi_after"] = _nvidia_smi()


def _tests(record: Record, programs: Programs) -> str:  # noqa: ARG001
    """The GPU tests, in a process of their own with what time is left; a dry run only collects them."""
    if not (ROOT / TESTS).exists():
        return f"absent: no {TESTS}"
    if importlib.util.find_spec("pytest") is None:
        return "skipped: no pytest"
    command = [sys.executable, "-m", "pytest", "-q", "-x", str(TESTS), *(["--collect-only"] if record.dry_run else [])]
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    seconds = max(record.left() - 12, 1)
    with (record.out / "tests.txt").open("w") as file:
        try:
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, timeout=seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the tests did not end in {seconds:.0f} s; see tests.txt") from None
    if done.returncode:
        raise RuntimeError(f"pytest ended with {done.returncode}; see tests.txt")
    return "ok"


STEPS: dict[str, tuple[float, Callable[[Record, Programs], str | None]]] = {
    "machine": (0, _machine),
    "ceilings": (20, _ceilings),
    "first program": (60, _first_program),
    "accuracy": (60, _accuracy),
    "timings": (60, _timings),
    "tests": (30, _tests),
}
"""In order of importance: how many seconds must be left to begin, and what is done."""


def run_gpu(out: Path, dry_run: bool, limit_seconds: float = 540, *, resume: bool = False, commit: str | None = None) -> int:
    """Runs every step, writes ``gpu.json``, ``accuracy.csv``, ``timings.csv`` and ``log.txt``, and prints a short table last.

    Ends the process if a step has not ended by the limit: compiled code can't be interrupted.

    Args:
        out: folder for what is written.
        dry_run: run every step at toy sizes, on a CPU, kernels in Pallas's interpreter.
        limit_seconds: for all.
        resume: go on where an earlier process ended before its time; programs are then compiled one by one, so that it is
            known which one ends a process.
        commit: what is measured, where git can't tell.

    Returns:
        0, `FAILED` or `DEVICE_LOST`.

    Raises:
        RuntimeError: no GPU, and no dry run.
    """
    if not (dry_run or device_kind().startswith("NVIDIA")):
        raise RuntimeError(f"JAX computes on {device_kind()!r} here, which is no NVIDIA GPU. Take --dry-run to try the steps.")
    record = Record(out, dry_run, limit_seconds, resume)
    guard = threading.Timer(max(limit_seconds - 5, 0), _give_up, (record,))
    guard.daemon = True
    guard.start()
    try:
        record.facts["commit"] = commit or "unknown"
        programs = Programs(0 if record.resumed else None)
        for name, (seconds, step) in STEPS.items():
            if record.left() < (0 if dry_run else seconds):
                status = f"skipped: {record.left():.0f} s left"
            else:
                status = _run_step(record, programs, name, step)
            record.facts["steps"][name] = status
            record.log(f"step {name}: {status}")
            record.save()
    except DeviceLostError as error:
        record.log(f"device lost at {error}")
        record.save()
        status = DEVICE_LOST
    else:
        status = FAILED if record.failures else 0
    finally:
        guard.cancel()
    record.print_table()
    return status


def exit_with(status: int) -> None:
    """Ends the process at once: a program that is still being compiled would keep it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run_step(record: Record, programs: Programs, name: str, step: Callable[[Record, Programs], str | None]) -> str:
    print(f"[{record.limit - record.left():5.0f} s] {name}", flush=True)
    try:
        return step(record, programs) or "ok"
    except DeviceLostError:
        raise
    except Exception as error:  # the one place where anything may fail: the others must not pay for it
        record.fail(f"step {name}", error)
        return "failed"


def _give_up(record: Record) -> None:
    record.failures.append("not ended by the limit")
    record.log("not ended by the limit")
    record.save()
    record.print_table()
    exit_with(FAILED)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _nvidia_smi() -> dict[str, str] | str:
    command = ["nvidia-smi", f"--query-gpu={_SMI}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"none: {type(error).__name__}"
    return dict(zip(_SMI.split(","), done.stdout.strip().splitlines()[0].split(", "), strict=False))


def _source_hash() -> str:
    """Of the package's files, for a checkout without git."""
    digest = hashlib.sha256()
    for folder in ("fastscan", "kernels", "profiling"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]
