"""Records of predictions: made with progress shown, printed as tables, and read again beside what was measured."""

import contextlib
import csv
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fastscan.profiling.compiled import ahead_of_time, latency
from fastscan.profiling.compiled.predict import CARDS, LAUNCH_SECONDS, WAIT_SECONDS, Compiler, PredictedPart, predict
from fastscan.profiling.compiled.public_calls import public_calls
from fastscan.profiling.measure.machine import describe, version
from fastscan.profiling.measure.progress import counted


def run_predict(folder: Path, records: Path, only: str) -> list[PredictedPart]:
    """Predicts all public calls whose name holds a text; prints a table; writes ``*-predictions.csv`` and a json beside it.

    Args:
        folder: for what is written.
        records: the folder of all kinds, with the newest of `ahead_of_time`, if there is one.
        only: of calls whose name holds this.
    """
    about = describe("python -m fastscan.profiling predict") | {
        "triton": version("triton"),
        "what": "predictions, not measured",
    }
    record = ahead_of_time.newest_record(records)
    about["xla"] = record.name if record else "not counted"
    compiled = {row.call: row for row in (ahead_of_time.read_rows(record) if record else []) if not row.error}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{about['date']}-predictions.csv"
    path.with_suffix(".json").write_text(json.dumps(about | _constants(), indent=2) + "\n")
    rows: list[PredictedPart] = []
    compile_once, console = Compiler(), Console(width=130)
    calls = [call for call in public_calls() if only in call.name]
    with path.open("w", newline="") as file, counted(console, len(calls)) as begin:
        writer = csv.writer(file)
        writer.writerow(PredictedPart._fields)
        for call in calls:
            begin(call.name)
            try:
                new = predict(call, compile_once, compiled.get(call.name))
            except Exception as error:  # one that does not lower or compile costs the others nothing
                print(f"{call.name}: {type(error).__name__}: {str(error).splitlines()[0][:150]}", flush=True)
                continue
            _print(console, new)
            rows += new
            writer.writerows([f"{x:.4g}" if isinstance(x, float) else x for x in row] for row in new)
            file.flush()
    print(f"record: {path}")
    return rows


def read_predictions(records: Path, device: str) -> dict[str, tuple[float, float]]:
    """Reads the newest record's predictions for a device: least and most seconds of calls, by their names."""
    paths = sorted((records / "predictions").glob("*.csv"))
    found: dict[str, dict[str, float]] = {}
    with paths[-1].open(newline="") if paths else contextlib.nullcontext(()) as file:
        for row in csv.DictReader(file):
            if row["card"] == device and row["part"].startswith("all, "):
                found.setdefault(row["call"], {})[row["part"]] = 1e-6 * float(row["us"])
    return {call: (parts["all, least"], parts["all, most"]) for call, parts in found.items()}


def _constants() -> dict[str, Any]:
    pipes = {name: [pipe.busy, pipe.latency] for name, pipe in latency.PIPES.items()}
    seconds = {"launch": LAUNCH_SECONDS, "wait": WAIT_SECONDS}
    return {"cards": [card._asdict() for card in CARDS], "pipes: busy, latency": pipes, "seconds, least and most": seconds}


def _print(console: Console, rows: list[PredictedPart]) -> None:
    columns = ["part", "launches", "warps", "steps", "issue", "latency", "memory", "cache", "us", "bound", "waste"]
    for card in CARDS:
        table = Table(*columns, title=f"Predicted, not measured: {rows[0].call}, {card.name}; microseconds")
        for row in (row for row in rows if row.card == card.name):
            times = (row.issue_us, row.latency_us, row.memory_us, row.cache_us, row.us)
            counts = (row.launches, row.warps, row.steps)
            table.add_row(row.part, *map(str, counts), *(f"{x:.1f}" for x in times), row.bound, f"{row.waste:.1f}")
        console.print(table)
