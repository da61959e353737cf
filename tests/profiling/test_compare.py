"""Comparisons of records: what they find, what they leave alone, and what they take."""

import csv
import shutil
import subprocess
import sys

import numpy as np
import pytest

from fastscan.profiling.measure import rows as records
from fastscan.profiling.measure.cases import Case
from fastscan.profiling.measure.operations import SEQUENTIAL
from fastscan.profiling.report import readme as tables
from fastscan.profiling.verdicts import compare as module
from fastscan.profiling.verdicts.compare import compare, find, markdown, regressed
from oracles.records import made_up


def record(seed=0, noise=0.02, **changes):
    """Twelve cases of two operations; the whole machine is slower or faster by chance; ``changes`` are factors of "chunked"."""
    r = np.random.default_rng(seed)
    rows = []
    for operation in ("hmm_smoother", "hmm_filter"):
        for T in (10, 100, 1_000, 10_000, 20_000, 30_000):
            machine = np.exp(0.3 * r.normal())
            for name in ("sequential", "chunked:8", SEQUENTIAL):
                p50 = 1e-6 * T * machine * np.exp(noise * r.normal())
                change = changes if name == "chunked:8" and operation == "hmm_smoother" else {}
                values = {"repeats": 15, "first_call": 2 * machine * change.get("first_call", 1)}
                values |= {"error": 3e-6 * change.get("error", 1), "temporary_bytes": int(1e6 * change.get("memory", 1))}
                row = made_up(Case(operation, 5, 0, T), name, p50, spread=0.1, device="cpu", **values)
                rows.append(row._replace(p50=p50 * change.get("time", 1)))
    return rows


@pytest.mark.parametrize("seed", range(10))
def test_a_slowdown_is_found_and_nothing_else(seed):
    assert not regressed(compare(record(seed), record(100 + seed)))
    findings = compare(record(seed), record(100 + seed, time=1.15))
    assert [(f.operation, f.implementation, f.metric) for f in findings if f.verdict == "REGRESSION"] == [
        ("hmm_smoother", "chunked", "time")
    ]
    assert findings[0].verdict == "REGRESSION"
    assert 1.05 < findings[0].ratio < 1.25


@pytest.mark.parametrize(("metric", "factor"), [("memory", 1.2), ("first_call", 1.6), ("error", 3)])
def test_other_regressions(metric, factor):
    (finding,) = [f for f in compare(record(0), record(1, **{metric: factor})) if f.verdict != "same"]
    assert (finding.metric, finding.implementation, finding.verdict) == (metric.replace("_", " "), "chunked", "REGRESSION")
    (better,) = [f for f in compare(record(0, **{metric: factor}), record(1)) if f.verdict != "same"]
    assert better.verdict == "better"


def test_one_case_alone():
    new = record(1)
    place = next(i for i, row in enumerate(new) if row.implementation == "chunked:8")
    new[place] = new[place]._replace(p50=3 * new[place].p50)
    (finding,) = [f for f in compare(record(0), new) if f.verdict == "REGRESSION"]
    assert f"{new[place].case} chunked:8" == finding.worst


def test_what_became_wrong():
    new = [
        row._replace(status="wrong", p50=None) if row.T == 10 and row.implementation == "sequential" else row
        for row in record(1)
    ]
    found = [f for f in compare(record(0), new) if f.verdict == "REGRESSION"]
    assert {(f.metric, f.implementation) for f in found} == {("status", "sequential")}


def test_the_table():
    text = markdown(compare(record(0), record(1, time=1.5)))
    assert "REGRESSION" in text
    assert text.count("\n|") == 3
    assert "no change" in text
    assert markdown(compare(record(0), record(1)), everything=True).count("\n|") == 18
    assert "|" not in markdown(compare(record(0), record(1)))


def test_what_can_be_compared(tmp_path):
    elsewhere = [row._replace(device="another") for row in record(0)]
    with pytest.raises(ValueError, match="one kind of device"):
        compare(record(0), elsewhere)
    with pytest.raises(ValueError, match="no case in common"):
        compare(record(0), [row._replace(T=3) for row in record(0)])
    records.append(tmp_path / "measured" / "measured-a.csv", record(0))
    assert find("01234567", tmp_path) == find(str(tmp_path / "measured" / "measured-a.csv"), tmp_path)
    with pytest.raises(ValueError, match=r"There are: 0123456789ab \(measured-a.csv\)"):
        find("abcdefgh", tmp_path)


def test_the_command(tmp_path):
    for name, rows in (("a", record(0)), ("b", record(1)), ("c", record(2, time=1.3))):
        records.append(tmp_path / f"{name}.csv", rows)

    def run(old, new):
        command = [sys.executable, "-m", "fastscan.profiling", "compare", str(tmp_path / old), str(tmp_path / new)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert run("a.csv", "b.csv").returncode == 0
    slower = run("a.csv", "c.csv")
    assert slower.returncode == 1
    assert "| hmm_smoother | chunked | time |" in slower.stdout
    missing = run("a.csv", "nowhere")
    assert missing.returncode == 2
    assert "wanted a record's file, or a commit" in missing.stderr


def test_every_metric_has_a_band():
    assert {metric.name for metric in module.METRICS} == {"time", "first call", "memory", "error"}
    assert all(1 < metric.threshold < metric.alone for metric in module.METRICS)


def test_the_readmes_are_what_the_records_say():
    """``python -m fastscan.profiling tables`` writes them."""
    made, used = tables.generated(), set()
    for readme in tables.READMES:
        text = readme.read_text()
        assert tables.rewritten(text, made) == text, readme
        used |= {found[1] for found in tables._MARKED.findall(text)}
    assert used == made.keys()
    assert len(tables.READMES) == 4


def test_tables_of_a_record(tmp_path):
    rows = [
        row._replace(default=row.implementation == "chunked:8", p50=1e-3 if "dynamax" not in row.implementation else 4e-3)
        for row in record(0)
    ]
    rows = [row._replace(T=100_000) for row in rows if row.T == 10_000]
    records.append(tmp_path / "measured" / "measured-a.csv", rows)
    shutil.copytree(records.RECORDS / "kernels", tmp_path / "kernels")
    made = tables.generated(tmp_path)
    assert "| `hmm_smoother`, K=5, T=100,000 | 1 ms | 4 ms | 4 | - |" in made["hmm"]
    assert made["lgssm"].count("\n") == 1
    assert "wood, 2 cores, Python 3.11" in made["machine"]
    assert (
        tables.rewritten("<!-- table: hmm -->\nold\n<!-- end -->", {"hmm": "new"}) == "<!-- table: hmm -->\nnew\n<!-- end -->"
    )
    with pytest.raises(ValueError, match="asks for a table 'x'"):
        tables.rewritten("<!-- table: x -->\n<!-- end -->", made)
    with pytest.raises(ValueError, match="has no record of 'abacus'"):
        tables.newest(tmp_path, "abacus")
    with next(tmp_path.rglob("*-21-hmm-kernels.csv")).open() as file:
        mine = [r for r in csv.DictReader(file) if (r["family"], r["D"], r["sm"]) == ("hmm_mode", "5", "90")]
    total = sum(float(r["per_step"]) for r in mine)
    assert f"= {total:,.0f} |" in made["hmm-kernels"]
    assert "| smoother, D=30, m=16 | 2 |" in made["whole-kernels"]
