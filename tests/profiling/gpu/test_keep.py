"""What becomes of a GPU run: of one that is made up here, as no number below was measured."""

import json
import shutil
from pathlib import Path

import pytest

from fastscan.dispatch import crossovers
from fastscan.profiling.gpu.keep import keep
from fastscan.profiling.measure import rows as records
from fastscan.profiling.measure.cases import Case
from fastscan.profiling.measure.operations import PARALLEL
from fastscan.profiling.report import readme as tables
from fastscan.profiling.report.figures import H200, card
from fastscan.profiling.report.gpu_tables import ceilings, gpu_texts
from oracles.records import made_up

DEVICE = "NVIDIA made-up H100"
ON = {"device": DEVICE, "driver": "1.2", "commit": "0123456789ab", "dynamax": "", "date": "2001-01-01"}
SMOOTHER = Case("lgssm_smoother", 4, 2, 100_000)
LENGTHS = 1_000, 10_000, 100_000, 1_000_000
FACTS = {
    "dry_run": False,
    "device": DEVICE,
    "commit": ON["commit"],
    "date": ON["date"],
    "ceilings": {"copy_bytes_per_second": 2.5e12, "kernel_seconds": 2e-6, "call_seconds": "OSError: no such call"},
}


def rows(**more):
    """Kernels take 1 ns a step and 20 us, XLA 100 times as long; what was measured first is of the smoke stage."""
    for T in LENGTHS:
        for name, factor in {"pallas": 1, "chunked": 100, PARALLEL: 400}.items():
            p50 = factor * (2e-5 + 1e-9 * T)
            fields = ON | {"in_flight": p50 / 2, "error": 2e-6, "default": name == "pallas"} | more
            yield made_up(SMOOTHER._replace(T=T), name, p50, **fields)


@pytest.fixture
def place(tmp_path):
    """A run's folder, and copies of what it changes."""
    out, kept, table = (tmp_path / name for name in ("out", "records", "crossover.json"))
    out.mkdir()
    records.append(out / "measured.csv", rows())
    (out / "gpu.json").write_text(json.dumps(FACTS))
    (out / "profile.csv").write_text("profiler,kernel\nncu,made_up_sweep\n")
    shutil.copytree(tables.RECORDS, kept, ignore=shutil.ignore_patterns("gpu", "measured-nvidia-*"))  # as if none was measured
    readmes = [tmp_path / f"{number}.md" for number in range(len(tables.READMES))]
    for readme, path in zip(readmes, tables.READMES, strict=True):
        readme.write_text(path.read_text())
    tables.write_tables(readmes, kept)
    table.write_text(json.dumps({"devices": {"cpu": crossovers.committed_table()["devices"]["cpu"]}}))
    return out, kept, table, readmes


def together(readmes):
    return "\n".join(readme.read_text() for readme in readmes)


def test_a_run_becomes_records_crossovers_and_the_readmes(place):
    _, kept, table, readmes = place
    assert together(readmes).count("No GPU has been measured yet") == 3
    cpu = crossovers.read_table(table)["devices"]["cpu"]
    (on_a_cpu,) = (line for line in together(readmes).splitlines() if line.startswith("| smoother, D=4, m=2, T=10,000 |"))
    page = readmes[0].with_name("page")
    lines = keep(*place, page)
    assert any(line.startswith(f"{DEVICE} lgssm float32 D=4 B=1: chunked wins") for line in lines)
    text = together(readmes)
    assert "No GPU" not in text
    first = readmes[0].read_text()
    assert f"The kernels were measured on {DEVICE}" in first
    told = f"takes 1.02 ms on {DEVICE}, under XLA 102 ms, dynamax's parallel code 408 ms."
    assert f"lgssm_smoother D=4 m=2 T=1,000,000 {told}" in first
    assert len(first.splitlines()) <= 120
    assert f"- Of GPUs, only {DEVICE} was measured." in text
    assert "copies 2.50 TB/s and starts a kernel in 2.0 us." in text
    assert "| lgssm_smoother D=4 m=2 T=100,000 | 120 us | 60 us | 12 ms | 100 | 48 ms | 2e-06 |" in text
    assert on_a_cpu in text  # as before
    found = crossovers.read_table(table)["devices"]
    assert found["cpu"] == cpu
    (only,) = found[DEVICE]["families"]["lgssm"]
    assert only["seconds"]["pallas"] == pytest.approx([2e-5 + 1e-9 * T for T in LENGTHS], rel=0.01)
    name = "nvidia-made-up-h100-0123456789ab"
    assert json.loads((kept / "gpu" / f"gpu-{name}.json").read_text()) == FACTS
    assert "made_up_sweep" in (kept / "gpu" / f"gpu-{name}-profile.csv").read_text()
    assert len(records.read(kept / "measured" / f"measured-{name}.csv")) == 3 * len(LENGTHS)
    text = (page / "report.html").read_text()
    assert f"takes {DEVICE} longer than moving its bytes at 2.5 TB/s" in text
    assert DEVICE in text
    assert not list(kept.rglob("*.html"))
    assert crossovers.given_table() is None
    before = {path: path.read_bytes() for path in (*filter(Path.is_file, kept.rglob("*")), *page.iterdir(), table, *readmes)}
    keep(*place, page)
    assert {path: path.read_bytes() for path in before} == before


def test_the_first_minutes_count_where_nothing_else_was_measured(place):
    out, kept, *_ = place
    late = made_up(SMOOTHER, "pallas", 7e-5, **ON)
    alone = made_up(SMOOTHER._replace(operation="lgssm_filter"), "pallas", 3e-5, **ON)
    other = made_up(SMOOTHER._replace(operation="lgssm_filter"), "pallas", 1e-9, **ON | {"device": "another"})
    records.append(out / "smoke.csv", [late, alone, other])
    records.append(out / "measured.csv", [alone._replace(status="skipped", p50=None)])
    keep(*place, out / "page")
    found = records.by_case(records.read(next(kept.rglob("measured-nvidia-*"))))
    assert found[SMOOTHER]["pallas"].p50 == pytest.approx(1.2e-4)
    assert found[alone.case]["pallas"].p50 == pytest.approx(3e-5)


def test_what_is_not_kept(place):
    out, kept, table, readmes = place
    before = {path: path.read_bytes() for path in (*filter(Path.is_file, kept.rglob("*")), table, *readmes)}
    for facts, wanted in (
        (FACTS | {"dry_run": True}, "dry run"),
        (FACTS | {"device": "cpu"}, "no NVIDIA GPU"),
        (FACTS | {"commit": "another"}, "no times"),
    ):
        (out / "gpu.json").write_text(json.dumps(facts))
        with pytest.raises(ValueError, match=wanted):
            keep(*place, out / "page")
    (out / "gpu.json").unlink()
    with pytest.raises(ValueError, match=r"no gpu\.json"):
        keep(*place, out / "page")
    assert not (out / "page").exists()
    assert {path: path.read_bytes() for path in (*filter(Path.is_file, kept.rglob("*")), table, *readmes)} == before


def test_the_newest_run_of_every_gpu_is_told(tmp_path):
    assert gpu_texts(tmp_path)["gpu-measured"] == "No GPU has been measured yet."
    records.append(tmp_path / "measured" / "measured-a.csv", rows())
    records.append(tmp_path / "measured" / "measured-b.csv", rows(date="2001-02-01", commit="bbbbbbbbbbbb"))
    records.append(tmp_path / "measured" / "measured-c.csv", rows(device="NVIDIA made-up A100"))
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "gpu-a.json").write_text(json.dumps(FACTS))
    told = gpu_texts(tmp_path)
    assert "NVIDIA made-up A100 and NVIDIA made-up H100 were measured" in told["gpu-limits"]
    assert "commit bbbbbbbbbbbb" in told["gpu-measured"]
    assert told["gpu-measured"].count("copies 2.50 TB/s") == 1
    assert card(ceilings(tmp_path)).bandwidth == 2.5e12
    assert card(ceilings(tmp_path, "NVIDIA made-up A100")) == H200
