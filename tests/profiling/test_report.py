"""The report, from records that are made up here: no number below was measured."""

import csv
import html
import json
import math
import re
import xml.dom.minidom
from html.parser import HTMLParser

import pytest

from fastscan.profiling.compiled import kernel_report as kernels
from fastscan.profiling.measure import rows as records
from fastscan.profiling.measure.cases import BATCH, Case
from fastscan.profiling.report import svg as plots
from fastscan.profiling.report.data import (
    best,
    chosen,
    crossing,
    gather,
    latest,
    over_lengths,
    read_kernels,
    seconds,
    significant,
)
from fastscan.profiling.report.page import summary, write_report
from fastscan.profiling.report.svg import Point, draw_lines, draw_points
from oracles.records import made_up

LENGTHS = {"lgssm_smoother": (10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)}
LENGTHS["hmm_posterior_sample"] = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)
CASES = [
    *(Case("lgssm_smoother", *size, T, B) for size in ((4, 2), (1, 1)) for B in (1, BATCH) for T in LENGTHS["lgssm_smoother"]),
    *(Case("hmm_posterior_sample", K, 0, T) for K in (5, 2) for T in LENGTHS["hmm_posterior_sample"]),
    *(Case(name, 5, 0, T) for name in ("hmm_smoother", "hmm_posterior_mode") for T in (100, 1_000, 10_000)),
    Case("lgssm_smoother", 4, 2, 10_000, dtype="float64"),
]
PLACES = {
    "cpu": {"device": "cpu", "machine": "Made-up processor", "cores": 2, "driver": ""},
    "gpu": {"device": "NVIDIA made-up", "machine": "Made-up host", "cores": 16, "driver": "1.2"},
}
ABOUT = {"python": "3.11", "jax": "0.10", "jaxlib": "0.10", "triton": "", "dynamax": "1.0.3"}
OURS = ("sequential", "chunked:8", "chunked:64", "associative", "public call")
THEIRS = ("dynamax sequential", "dynamax parallel")


def made_up_time(case, implementation, faster):
    """Microseconds a step, and a start, of every implementation; a wave makes the lines differ a little."""
    cost = {"dynamax sequential": 40, "dynamax parallel": 15, "associative": 6, "pallas": 0.01, "public call": 3}
    start = {"dynamax sequential": 60, "dynamax parallel": 900, "associative": 200, "pallas": 25, "public call": 40}
    chunks = int(implementation.split(":")[1]) if ":" in implementation else 1
    step = cost.get(implementation, 3.0 / (1 + 0.3 * math.log2(chunks)) if chunks > 1 else 3.0)
    steps = case.T * case.B**0.5 * (1 + case.D / 5)
    wave = 1 + 0.15 * math.sin(steps + len(implementation))
    return 1e-6 * wave * (start.get(implementation, 12 * chunks**0.5) + step * steps) / faster


def made_up_rows(place="cpu", commit="aaaaaaaaaaaa", date="2001-01-01", faster=1.0, names=(*OURS, *THEIRS), cases=CASES):
    rows = []
    for case in cases:
        times = {name: made_up_time(case, name, faster if "dynamax" not in name else 1) for name in names}
        fastest = min((n for n in times if n in ("sequential", "pallas") or ":" in n), key=lambda n: times[n])
        for name, p50 in times.items():
            skipped = name.startswith("dynamax") and case.T > 500_000
            size = 4 * case.T * case.B * (case.D + 2 * case.D**2)
            error = 0.0 if case.operation == "hmm_posterior_sample" else 1e-7 * (1 + len(name)) * case.D
            fields = {"default": name == fastest, "commit": commit, "date": date, "bytes": size, **PLACES[place], **ABOUT}
            if skipped:
                fields |= {"status": "skipped", "note": "it would take minutes"}
            else:
                fields |= {
                    "error": error,
                    "first_call": 0.4 + len(name) / 10 + p50,
                    "p20": 0.93 * p50,
                    "p80": 1.15 * p50,
                    "repeats": 7,
                    "temporary_bytes": int(size * (8 if name == "associative" else 0.5)),
                }
            if place == "gpu":
                fields["in_flight"] = 0.8 * p50
            row = made_up(case, name, p50, **fields)
            rows.append(row._replace(p20=None, p50=None, p80=None) if skipped else row)
    return rows


def made_up_slice(D, m, B, start):
    wins = {"chunked": {"from": start, "band": [0.7 * start, None] if start else [None, None]}}
    wins["associative"] = {"from": None, "band": [None, None]}
    return {"D": D, "m": m, "B": B, "dtype": "float32", "T": [10, 100, 1_000], "seconds": {}, "chunks": [3, 6, 9], "wins": wins}


TABLE = {
    "devices": {
        "cpu": {
            "measured": {"machine": "Made-up processor", "commit": "aaaaaaaaaaaa", "date": "2001-01-01"},
            "families": {
                "lgssm": [
                    made_up_slice(D, m, B, None if (D, B) == (16, 64) else 52.0 * D * B**0.5)
                    for D, m in ((4, 2), (1, 1), (2, 1), (16, 8), (8, 4))
                    for B in (1, 64)
                ],
                "hmm": [made_up_slice(K, 0, B, 90.0 * K) for K in (5, 2, 16, 32) for B in (1, 64)],
                "hmm_sample": [made_up_slice(5, 0, 1, None)],
            },
        }
    }
}


def write_kernels(folder):
    (folder / "kernels").mkdir()
    with (folder / "kernels" / "2001-01-01-kernels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(kernels.KernelRow._fields)
        for D in (1, 2, 4):
            for name, per_step, moved in (("made_up_sweep", 100.0 * D, 12.0 * D**2), ("made_up_begin", 0.0, 0.0)):
                for sm in (90, 80):
                    writer.writerow(
                        ["smoother", name, D, 1, "float32", sm, 40, 0, 0, 32, 0.5, per_step, "{}", moved, 3e-2 * per_step]
                    )
    (folder / "kernels" / "2001-01-01-kernels.json").write_text(json.dumps({"commit": "bbbbbbbbbbbb", "triton": "3"}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("records")
    records.append(tmp_path / "measured" / "measured-a.csv", made_up_rows())
    records.append(tmp_path / "measured" / "measured-b.csv", made_up_rows(commit="cccccccccccc", date="2001-01-02", faster=1.3))
    records.append(
        tmp_path / "measured" / "measured-gpu.csv", made_up_rows("gpu", names=("sequential", "pallas"), cases=CASES[8:9])
    )
    write_kernels(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def page(folder):
    return write_report(folder / "out", folder, TABLE).read_text()


class Elements(HTMLParser):
    """Every element with its attributes; raises where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def values(self, name):
        return [attributes[name] for _, attributes in self.found if name in attributes]


def rows_of(page, key):
    """The cells of a table's rows, as they read."""
    body = re.search(rf'<table id="{key}">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)[1]
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", body)]


def titles(page):
    return re.findall(r"<figcaption>(.*?)<span>", page)


def test_the_page_is_well_formed_and_complete_in_itself(page):
    elements = Elements(page)
    assert {tag for tag, _ in elements.found}.isdisjoint({"link", "img", "iframe", "image"})
    assert not elements.values("src")
    assert "http" not in page
    assert "@import" not in page
    ids = elements.values("id")
    assert len(set(ids)) == len(ids)
    wanted = {x.removeprefix("#") for x in elements.values("href")} | set(re.findall(r"url\(#(.*?)\)", page))
    assert wanted <= set(ids)
    for name in ("aria-labelledby", "for"):
        assert set(elements.values(name)) <= set(ids)


def test_figures_are_named_and_take_the_colours_of_the_page(page):
    figures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(figures) == len(titles(page)) == 24
    for svg in figures:
        root = xml.dom.minidom.parseString(svg).documentElement
        assert root.getAttribute("role") == "img"
        assert root.getAttribute("aria-label") == root.getElementsByTagName("title")[0].firstChild.data
        assert not root.hasAttribute("width")
        assert not re.findall(r"#[0-9a-f]{6}\b|font-family", svg, re.IGNORECASE)
        assert set(re.findall(r"var\(--(\w+)\)", svg)) <= set(re.findall(r"--(\w+):", page))
    assert page.count("prefers-color-scheme: dark") == 1


def test_the_page_holds_every_section(page):
    found = [html.unescape(title).replace("\N{NO-BREAK SPACE}", " ") for title in titles(page)]
    for start in ("Smoothing, linear-Gaussian, D = 4, m = 2", "Sampling an HMM's path, K = 5", "Sampling an HMM's path, K = 2"):
        assert {f"{start}: {what}" for what in ("time per call", "speed-up", "temporary memory", "first call")} <= set(found)
    assert not [title for title in found if "associative" in title]
    assert {"HMM smoother: chunked", "Time a step of our default", "Length from which chunks win"} <= set(found)
    assert "Linear-Gaussian models: error against time" in found
    assert ">not by<" in page
    assert ">T = 1,000<" in page
    assert "From compiled code, not measured." in page


def test_tables_hold_the_rows_of_the_newest_records(page):
    newest = made_up_rows(commit="cccccccccccc", faster=1.3)
    rows = rows_of(page, "rows0")
    assert len(rows) == len(newest)
    assert sum(cells[7] == "default" for cells in rows) == len(CASES)
    assert [cells[6] for cells in rows[: len(OURS) + len(THEIRS)]] == [*OURS, *THEIRS]
    at = next(r for r in newest if r.case == CASES[5] and r.implementation == "chunked:8")
    base = next(r for r in newest if r.case == CASES[5] and r.implementation == "dynamax sequential")
    cells = next(c for c in rows if c[:7] == ["lgssm_smoother", "4", "2", "3,000", "1", "float32", "chunked:8"])
    assert cells[8:11] == [seconds(at.p50), f"{seconds(at.p20)} to {seconds(at.p80)}", significant(base.p50 / at.p50)]
    assert (
        sum(cells[-1] == "skipped. it would take minutes" for cells in rows) == sum(r.status == "skipped" for r in newest) > 0
    )
    assert len(rows_of(page, "rows1")) == 2
    assert [cells[3] for cells in rows_of(page, "about")] == ["aaaaaaaaaaaa", "aaaaaaaaaaaa", "cccccccccccc"]


def test_the_same_records_make_the_same_page(tmp_path):
    records.append(tmp_path / "measured" / "measured-a.csv", made_up_rows(cases=CASES[4:6]))
    write_kernels(tmp_path)
    first, again = (write_report(tmp_path / name, tmp_path, {}).read_bytes() for name in ("first", "again"))
    assert first == again


def test_without_dynamax_there_are_no_speedups(tmp_path):
    records.append(tmp_path / "measured" / "measured-a.csv", made_up_rows(names=OURS, cases=CASES[4:6]))
    page = write_report(tmp_path, tmp_path, {}).read_text()
    assert not [title for title in titles(page) if "speed-up" in title]
    assert "The record has no times of dynamax" in page
    assert "no dynamax was measured; our default is" in page
    assert all(cells[10] == "" for cells in rows_of(page, "rows0"))


def test_what_is_missing_is_said(tmp_path):
    records.append(tmp_path / "measured" / "measured-a.csv", made_up_rows(cases=[Case("lgssm_filter", 2, 1, 10)]))
    old = {"devices": {"cpu": {"families": {"lgssm": {"cases": []}}}}}
    page = write_report(tmp_path, tmp_path, old).read_text()
    assert "There is no record of the kernel report" in page
    assert "The crossover table holds no lengths" in page
    assert "The record has none of these cases." in page
    assert "There is one commit&#39;s record so far, aaaaaaaaaaaa" in page


@pytest.mark.parametrize("name", ["", "absent"])
def test_no_records_is_an_error_that_says_what_to_run(tmp_path, name):
    with pytest.raises(ValueError, match="measure` first"):
        write_report(tmp_path / "out", tmp_path / name, TABLE)
    assert not (tmp_path / "out").exists()


def test_rows_without_a_time_are_told_and_escaped(tmp_path):
    rows = made_up_rows(cases=CASES[:1])
    wrong = rows[0]._replace(status="wrong", p20=None, p50=None, p80=None, error=math.nan, note="<b> & more")
    records.append(tmp_path / "measured" / "measured-a.csv", [wrong, *rows[1:]])
    page = write_report(tmp_path, tmp_path, {}).read_text()
    assert "Without a time there, though it was tried: 1 wrong." in page
    cells = rows_of(page, "rows0")[0]
    assert (cells[8], cells[11], cells[-1]) == ("", "", "wrong. &lt;b&gt; &amp; more")


def test_the_summary_says_where_ours_is_not_sooner(tmp_path):
    slow = made_up_rows(cases=[CASES[0]], faster=1e-3)
    records.append(tmp_path / "measured" / "measured-a.csv", [*slow, *made_up_rows(cases=[CASES[5]])])
    told = summary(gather(tmp_path)[0])
    assert "in 1 of 2 cases" in told[0]
    assert f"({CASES[5]})" in told[0]
    assert told[1].startswith(f"Where it is not sooner there, one case: {CASES[0]} (0.0")


def test_files_of_one_commit_are_one_record_and_the_newest_day_wins(tmp_path):
    for name, cases, about in (
        ("measured-z.csv", CASES[:1], {}),
        ("measured-b.csv", CASES[1:2], {"commit": "cccccccccccc", "date": "2001-02-01"}),
        ("measured-a.csv", CASES[2:3], {"commit": "cccccccccccc", "date": "2001-02-01"}),
    ):
        records.append(tmp_path / "measured" / name, made_up_rows(cases=cases, **about))
    found = gather(tmp_path)
    assert [record.files for record in found] == [("measured-z.csv",), ("measured-a.csv", "measured-b.csv")]
    assert latest(found) == found[1:]


def test_figures_show_the_fastest_chunks_and_what_none_chose():
    row = made_up_rows(cases=[CASES[0]], names=("sequential",))[0]
    names = ("chunked:8", "chunked:64", "public call")
    times = dict(zip(names, (3.0, 2.0, 1.0), strict=True))
    found = {n: row._replace(implementation=n, p50=times[n], default=n != "chunked:64") for n in names}
    assert chosen(found) == found["chunked:8"]
    assert best(found) == {"our default": found["chunked:8"], "our chunked": found["chunked:64"]}
    assert chosen({"chunked:8": found["chunked:8"]._replace(status="wrong")}) is None
    lines = over_lengths([*found.values(), row._replace(T=3, p50=5.0), row._replace(B=2)], CASES[0])
    assert [r.T for r in lines["our sequential"]] == [3]


@pytest.mark.parametrize(
    ("gains", "wanted"),
    [((0.5, 2.0, 4.0), 1_000**0.5), ((2.0, 3.0, 4.0), 10), ((2.0, 0.5, 2.0), 100_000**0.5), ((2.0, 2.0, 0.5), None)],
)
def test_crossing(gains, wanted):
    row = made_up_rows(cases=[CASES[0]], names=("sequential",))[0]
    first = [row._replace(T=T, p50=gain) for T, gain in zip((10, 100, 1_000), gains, strict=True)]
    second = [r._replace(p50=1.0) for r in first]
    assert crossing(first, second) == (wanted if wanted is None else pytest.approx(wanted))


def test_kernels_that_go_through_steps_are_read_for_one_architecture(folder, page):
    rows, source = read_kernels(folder)
    assert [(r["kernel"], r["D"], r["sm"]) for r in rows] == [("made_up_sweep", D, 90) for D in (1, 2, 4)]
    assert source == "2001-01-01-kernels.csv (commit bbbbbbbbbbbb, Triton 3)"
    assert [cells[5] for cells in rows_of(page, "kernels")] == ["instructions", "bytes", "bytes"]


def test_long_tables_are_folded_so_that_figures_are_near(page):
    """Those that have a box to search in: of kernels, and of every record's rows. The short one is open."""
    folded = re.findall(r"<details>.*?</details>", page, re.DOTALL)
    assert [re.search(r'<table id="(\w+)"', part)[1] for part in folded] == ["kernels", "rows0", "rows1"]
    assert [re.search(r"<summary>.*: ([\d,]+) rows</summary>", part)[1] for part in folded] == [
        "3",
        f"{len(made_up_rows()):,}",
        "2",
    ]
    assert 'id="about"' not in "".join(folded)


@pytest.mark.parametrize("points", [[(10.0, 1.0), (1_000.0, 1.0)], [(1.0, 9.9), (100.0, 10.0)], [(95.0, 12.0), (5.0, 990.0)]])
def test_the_words_for_sides_of_a_line_lie_on_no_marker(points, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_svg", lambda figure, *_: drawn.append(figure) or "")
    draw_points("key", "words", {"kernel": points}, "x", "y", slope=0.13, sides=("bound by bytes", "bound by instructions"))
    figure = drawn[0]
    figure.draw_without_rendering()
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.texts] == ["bound by bytes", "bound by instructions"]
    for text in axis.texts:
        box = text.get_window_extent().padded(6.5 / 2 * figure.dpi / 72)  # a marker is 6.5 points wide
        assert not [at for at in axis.transData.transform(points) if box.contains(*at)]


def test_numbers_read_well():
    assert [seconds(x) for x in (2.5, 0.9999, 0.0123456, 4.2e-5, 3e-8)] == ["2.5 s", "1 s", "12.3 ms", "42 µs", "30 ns"]
    assert [significant(x) for x in (0, 1234.5, 0.98765, 100)] == ["0", "1,234", "0.988", "100"]


def test_a_line_may_have_one_point():
    svg = draw_lines("one", "One < point", {"our kernels": [Point(1_000, 1e-3)]}, "time", unit="s")
    assert 'aria-label="One &lt; point"' in svg
    assert ">1\N{NO-BREAK SPACE}ms<" in svg
