"""Takes over a GPU run's folder: into the records, the crossover table, the READMEs' tables and the report."""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fastscan.dispatch import crossovers
from fastscan.profiling.measure.rows import RECORDS, Row, append, by_case, read
from fastscan.profiling.report.page import write_report
from fastscan.profiling.report.readme import READMES, write_tables
from fastscan.profiling.verdicts.crossover import COMMITTED, changes, fit, merged, write


def keep(
    out: Path,
    records: Path = RECORDS,
    table: Path = COMMITTED,
    readmes: Sequence[Path] = READMES,
    page: Path = Path("out"),
) -> list[str]:
    """Takes what a run on a GPU has measured into the records, and writes anew all that is made of them.

    Args:
        out: the run's folder.
        records: folder of records: ``measured``; ``gpu``, ceilings, steps and profiles.
        table: the crossover table. Families that the run has lengths enough of take the place of this device's.
        readmes: files whose tables are written.
        page: folder for the report, ``report.html``, which is made of the records and not kept with them.

    Returns:
        What was written, and what the crossover table says now that it did not; a line each.

    Raises:
        ValueError: the folder holds no run, a dry run, or nothing that was measured.
    """
    facts = _facts(out)
    rows = _rows(out, facts)
    name = f"{facts['device'].lower().replace(' ', '-')}-{facts['commit']}"
    record = records / "measured" / f"measured-{name}.csv"
    rows = _last([*read(record), *rows])
    record.unlink(missing_ok=True)
    append(record, rows)
    written = [record, records / "gpu" / f"gpu-{name}.json"]
    written[-1].parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(out / "gpu.json", written[-1])
    if (out / "profile.csv").exists():
        written.append(records / "gpu" / f"gpu-{name}-profile.csv")
        shutil.copyfile(out / "profile.csv", written[-1])
    old = crossovers.read_table(table)
    fitted = fit(rows)
    write(merged(old, fitted), table)
    new = crossovers.read_table(table)
    before = crossovers.given_table()
    crossovers.use_crossover_table(new)
    try:
        write_tables(readmes, records)
        report = write_report(page, records, new)
    finally:
        crossovers.use_crossover_table(before)
    return [*(f"written: {path}" for path in (*written, table, *readmes, report)), *changes(old, fitted)]


def _facts(out: Path) -> dict[str, Any]:
    file = out / "gpu.json"
    if not file.exists():
        raise ValueError(f"{out} holds no gpu.json: wanted the folder of a run of .ci/gpu.")
    facts = json.loads(file.read_text())
    if facts.get("dry_run") or not str(facts.get("device")).startswith("NVIDIA"):
        raise ValueError(f"{out} is of a dry run, or of no NVIDIA GPU ({facts.get('device')}): nothing there is worth keeping.")
    return facts


def _rows(out: Path, facts: dict[str, Any]) -> list[Row]:
    """Reads what was measured where the run ended; what the first minutes measured counts where nothing else was."""
    found = [*read(out / "smoke.csv"), *read(out / "measured.csv")]
    rows = [row for row in found if (row.device, row.commit) == (facts["device"], facts["commit"])]
    if not any(row.p50 for row in rows):
        raise ValueError(f"{out} holds no times of {facts['device']} at commit {facts['commit']}.")
    return rows


def _last(rows: Iterable[Row]) -> list[Row]:
    """Keeps the last row of each case and implementation; but a time that there is, before a row without one."""
    rows = list(rows)
    best = by_case([*(row for row in rows if not row.p50), *(row for row in rows if row.p50)])
    return [row for measured in best.values() for row in measured.values()]
