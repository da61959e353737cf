"""Cases measured in processes of their own: they compile side by side, measure in turns, and end in time or are ended."""

import contextlib
import fcntl
import json
import logging
import math
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastscan.profiling.measure import limited
from fastscan.profiling.measure.cases import Case
from fastscan.profiling.measure.machine import stamp
from fastscan.profiling.measure.programs import Programs
from fastscan.profiling.measure.rows import Row, append, read
from fastscan.profiling.measure.run import BAD, DeviceLostError, first_line, left_to_do, measure_case, row_of

TURN_SECONDS = 40.0
"""That a process has the device to itself, at most: it is ended then, as a kernel may hang."""

TOO_LONG = 10.0
"""Seconds of one call: what would take longer, by a shorter one before it, is passed over."""

PRINTED = "printed.txt"
"""File beside the record: the end of what each process printed, which is nothing if all went well."""

_TOGETHER = 4
_KEPT = 20_000
REPEATS = 5
COMPILERS = 3
"""Programs that one process compiles side by side."""

_CODE = "from fastscan.profiling.gpu.jobs import main; main()"
_TOO_LONG = "with fewer steps it failed, or took so long that this would take too long"
_OUT_OF_TIME = "did not end in time"
_LATE, _LOST = 3, 75


class Job(NamedTuple):
    """The work of one process: cases in order, each with the names of implementations."""

    name: str
    work: Sequence[tuple[Case, Sequence[str]]]


def together(jobs: Sequence[Job]) -> list[Job]:
    """Makes jobs of several each, where a process takes longer to start than to measure."""
    groups = [jobs[n : n + _TOGETHER] for n in range(0, len(jobs), _TOGETHER)]
    return [Job(", ".join(job.name for job in group), [pair for job in group for pair in job.work]) for group in groups]


def run_jobs(
    jobs: Sequence[Job], record: Path, seconds: float, *, commit: str | None = None, repeats: int = REPEATS
) -> dict[str, str]:
    """Runs jobs side by side, as many as there are cores for, the first ones first.

    Args:
        jobs: in order of importance.
        record: where their rows go, as they end. What it holds of this device, versions and commit is not measured again.
        seconds: for all. Processes are ended then.
        commit: what is measured, where git tells something else, or nothing.
        repeats: samples of each program.

    Returns:
        How each ended: "ok", or in words what happened.
    """
    end, at_once = time.monotonic() + seconds, max(2, (os.cpu_count() or 1) - 2)
    waiting, running, ended = list(jobs), {}, {}
    with tempfile.TemporaryDirectory() as folder:
        turn = Path(folder) / "turn"
        turn.touch()
        while waiting or running:
            left = end - time.monotonic()
            while waiting and len(running) < at_once and left > 0:
                job = waiting.pop(0)
                told = {"work": job.work, "record": str(record), "turn": str(turn)}
                told |= {"seconds": left, "commit": commit, "repeats": repeats}
                running[job.name] = _start(told, _output(folder, job.name))
            hanging = _hanging(turn)
            for name, child in list(running.items()):
                if child.poll() is not None:
                    ended[name] = _outcome(child.returncode, _output(folder, name))
                elif child.pid == hanging:
                    ended[name] = f"had the device to itself for {TURN_SECONDS:.0f} s"
                elif left <= 0:
                    ended[name] = _OUT_OF_TIME
                else:
                    continue
                limited.end(running.pop(name))
                _keep_output(record.parent / PRINTED, name, ended[name], _output(folder, name))
                print(f"    {name}: {ended[name]}", flush=True)
            if left <= 0:
                ended |= {job.name: "not begun" for job in waiting}
                break
            time.sleep(0.1)
    return ended


def problems(ended: dict[str, str], rows: Iterable[Row]) -> list[str]:
    """Says in a line each which jobs did not end well, and which of the rows tell that something is broken."""
    told = [f"{name} {how}" for name, how in ended.items() if how != "ok"]
    return told + [f"{row.implementation} {row.case}: {row.status}, {row.note}" for row in rows if row.status in BAD]


def _start(told: dict[str, Any], output: Path) -> Any:
    with output.open("w") as file:
        environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        return limited.start([sys.executable, "-c", _CODE, json.dumps(told)], stdout=file, stderr=file, environment=environment)


def _output(folder: str, name: str) -> Path:
    return Path(folder) / name.replace(" ", "-")


def _keep_output(kept: Path, name: str, outcome: str, output: Path) -> None:
    """Adds the end of what a process printed to a file that outlives it: a line is too little to mend a compiler's error by."""
    printed = output.read_text(errors="replace")[-_KEPT:]
    if printed.strip():
        with kept.open("a") as file:
            file.write(f"== {name}: {outcome}\n{printed}\n")


def _outcome(status: int, output: Path) -> str:
    if not status:
        return "ok"
    last = (output.read_text(errors="replace").strip().splitlines() or [""])[-1][:200]
    return _OUT_OF_TIME if status == _LATE else f"ended with {status}: {last}"


def _hanging(turn: Path) -> int | None:
    """Finds the process that has had its turn for too long."""
    pid, _, since = turn.read_text().partition(" ")
    return int(pid) if since and time.monotonic() - float(since) > TURN_SECONDS else None


def main() -> None:
    """Runs one job, which the command line holds as JSON; the process ends in time by itself, too."""
    told = json.loads(sys.argv[1])
    logging.basicConfig(format="%(message)s")
    logging.getLogger("fastscan").setLevel(logging.INFO)
    watch = threading.Timer(told["seconds"], os._exit, (_LATE,))
    watch.daemon = True
    watch.start()
    status = 0
    try:
        _run([(Case(*case), names) for case, names in told["work"]], told)
    except DeviceLostError as error:
        print(f"device lost at {error}")
        status = _LOST
    except Exception as error:
        traceback.print_exc(file=sys.stdout)
        print(first_line(error))  # the last line is what is told at once
        status = 1
    sys.stdout.flush()
    os._exit(status)  # a program that is still being compiled would keep it


def _run(work: list[tuple[Case, list[str]]], told: dict[str, Any]) -> None:
    on, record, end = stamp(told["commit"]), Path(told["record"]), time.monotonic() + told["seconds"]
    programs = Programs(COMPILERS)
    wanted = left_to_do(dict(work), read(record), on)
    for case, names in wanted.items():
        for name in names:
            programs.ahead(case, name)
        programs.reference_ahead(case, bool(on["dynamax"]))
    before: list[Row] = []
    for case, names in wanted.items():
        able = [name for name in names if _expected(case, name, before) <= TOO_LONG]
        passed_over = [row_of(case, name, on, status="skipped", note=_TOO_LONG) for name in names if name not in able]
        reference = programs.reference(case, bool(on["dynamax"]))
        if not able:
            with _turn(Path(told["turn"])):
                append(record, passed_over)
        for share in (0.5, 0.9):  # of the time: what is compiled by then is measured, and what is not, later or not at all
            programs.wait(case, able, share * (end - time.monotonic()))
            now = [name for name in able if share > 0.5 or programs.ready(case, name)]
            able = [name for name in able if name not in now]
            if not now:
                continue
            with _turn(Path(told["turn"])):
                rows = measure_case(case, now, on, programs, reference, end - time.monotonic(), repeats=told["repeats"])
                append(record, passed_over + rows)
            before += rows
            passed_over = []


def _expected(case: Case, name: str, before: Sequence[Row]) -> float:
    """Estimates seconds, by what the same took with fewer steps: 0 if nothing is known, and no end if that failed."""
    for row in reversed(before):
        if row.implementation == name and row.case == case._replace(T=row.T):
            return row.p50 * case.T / row.T if row.p50 else math.inf
    return 0.0


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Waits until no other process has it; the file says who has it and since when."""
    with path.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)  # a process that was ended leaves its own
        file.write(f"{os.getpid()} {time.monotonic()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
