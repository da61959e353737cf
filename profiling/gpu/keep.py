"""What becomes of a GPU run's folder: records, the crossover table, the README's tables and the report."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastscan import crossovers
from fastscan.profiling.crossover import COMMITTED, changes, fit, merged, write
from fastscan.profiling.records import RECORDS, Row, append, by_case, read
from fastscan.profiling.report import write_report
from fastscan.profiling.tables import README, generated, rewritten


def keep(
    out: Path, records: Path = RECORDS, table: Path = COMMITTED, readme: Path = README, page: Path = Path("out")
) -> list[str]:
    """Takes what a run on a GPU has measured into the records, and writes anew all that is made of them.

    Args:
        out: the run's folder.
        records: folder of ``measured-*.csv``, ``gpu-*.json`` with ceilings and steps, ``gpu-*-profile.csv``.
        table: the crossover table. Families that the run has lengths enough of take the place of this device's.
        readme: whose tables are written.
        page: folder for the report, ``report.html``, which is made of the records and not kept with them.

    Returns:
        What was written, and what the crossover table says now that it did not; a line each.

    Raises:
        ValueError: the folder holds no run, a dry run, or nothing that was measured.
    """
    facts = _facts(out)
    rows = _rows(out, facts)
    name = f"{facts['device'].lower().replace(' ', '-')}-{facts['commit']}"
    record = records / f"measured-{name}.csv"
    rows = _last([*read(record), *rows])
    record.unlink(missing_ok=True)
    append(record, rows)
    written = [record, records / f"gpu-{name}.json"]
    shutil.copyfile(out / "gpu.json", written[-1])
    if (out / "profile.csv").exists():
        written.append(records / f"gpu-{name}-profile.csv")
        shutil.copyfile(out / "profile.csv", written[-1])
    old = crossovers.read_table(table)
    fitted = fit(rows)
    write(merged(old, fitted), table)
    new = crossovers.read_table(table)
    before = crossovers.given_table()
    crossovers.use_crossover_table(new)
    try:
        readme.write_text(rewritten(readme.read_text(), generated(records)))
        report = write_report(page, records, new)
    finally:
        crossovers.use_crossover_table(before)
    return [*(f"written: {path}" for path in (*written, table, readme, report)), *changes(old, fitted)]


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
