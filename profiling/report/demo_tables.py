"""Tables of what two demonstrations measured, `fastscan demo metropolis` and `fastscan demo slds`, from their records."""

import csv
from pathlib import Path

_NONE = "Not measured yet."
_CHAINS = "1000"
"""Chains of the table of Metropolis's times, as the record writes them."""
_SHOWN = "1000", "10000", "100000", "1000000"
"""Samples of each of these chains, likewise."""


def demo_tables(records: Path) -> dict[str, str]:
    """Makes the texts by name, from the newest record of each demonstration in a folder and those below it."""
    return {"metropolis": _metropolis(_newest(records, "metropolis")), "slds": _slds(_newest(records, "slds"))}


def _newest(records: Path, demo: str) -> list[dict[str, str]]:
    path = max(records.rglob(f"*-{demo}.csv"), key=lambda path: path.name, default=None)
    return [] if path is None else list(csv.DictReader(path.read_text().splitlines()))


def _metropolis(rows: list[dict[str, str]]) -> str:
    if not rows:
        return _NONE
    seconds = {(r["way"], r["samples"]): float(r["seconds"]) for r in rows if r["way"] and r["chains"] == _CHAINS}
    ways = list(dict.fromkeys(way for way, _ in seconds))
    lines = [_measured_on(rows[0]), "", f"| samples of each chain | {' | '.join(ways)} |", "|---|" + "---|" * len(ways)]
    for samples in _SHOWN:
        ours = seconds.get((ways[0], samples))
        cells = [_seconds(ours), *(_ratio(seconds.get((way, samples)), ours) for way in ways[1:])]
        lines.append(f"| {int(samples):,} | {' | '.join(cells)} |")
    for row in rows:
        if row["step"]:
            step, rhat, effective = (float(row[name]) for name in ("step", "rhat", "effective"))
            lines += [
                "",
                f"With steps of {step:.2g}, R-hat is {rhat:.4g} and the samples are worth {effective:,.0f}.",
            ]
    return "\n".join(lines)


def _slds(rows: list[dict[str, str]]) -> str:
    if not rows:
        return _NONE
    lines = [
        _measured_on(rows[0]),
        "",
        "| work | T | turns | time | memory | time of the other way | difference |",
        "|---|" + "---|" * 6,
    ]
    for row in rows:
        other, memory = row["other"], row["bytes"]
        cells = (
            row["what"],
            f"{int(row['T']):,}",
            row["turns"],
            f"{1e3 * float(row['seconds']):.3g} ms",
            f"{int(memory) / 1e6:.2g} MB" if memory else "-",
            f"{1e3 * float(other):,.4g} ms" if other else "-",
            f"{float(row['apart']):.0e}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _measured_on(row: dict[str, str]) -> str:
    commit = row["commit"] + ("+" if row["dirty"] == "True" else "")
    return f"{row['machine']}, {row['cores']} cores, Python {row['python']}, jax {row['jax']}, {row['date']}, commit {commit}."


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.3g}"


def _ratio(seconds: float | None, ours: float | None) -> str:
    """Writes a time, and how many times ours it is."""
    return "-" if seconds is None or ours is None else f"{seconds:.3g} ({seconds / ours:.2g})"
