"""Figures as SVG for a page: they take the page's colours and fonts, so that they follow its light and dark."""

import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from fastscan.profiling.demos.figures import BLUE, INK, VERMILION

_ORANGE, _GREEN, _SKY, _PINK = "#E69F00", "#009E73", "#56B4E9", "#CC79A7"
_FAINT, _MUTED = "#E5E5E5", "#6E6E6E"
_VARIABLES = {
    BLUE: "blue",
    VERMILION: "vermilion",
    _ORANGE: "orange",
    _GREEN: "green",
    _SKY: "sky",
    _PINK: "pink",
    INK: "ink",
    _FAINT: "faint",
    _MUTED: "muted",
}
"""The page's CSS variable for every colour that is drawn with; its values in the light are these."""

DEFAULT = "our default"
STYLES: dict[str, dict[str, Any]] = {
    DEFAULT: {"color": INK, "marker": "o", "linewidth": 7, "markersize": 9, "alpha": 0.25},
    "our sequential": {"color": BLUE, "marker": "s"},
    "our chunked": {"color": _GREEN, "marker": "o"},
    "our associative": {"color": _SKY, "marker": "D"},
    "our kernels": {"color": _PINK, "marker": "P"},
    "dynamax sequential": {"color": VERMILION, "marker": "^", "linestyle": "--"},
    "dynamax parallel": {"color": _ORANGE, "marker": "v", "linestyle": "--"},
}
"""The styles of the implementations, in the order of legends."""
_OTHERS = [
    {"color": color, "marker": marker}
    for color, marker in zip((BLUE, VERMILION, _GREEN, _PINK, _ORANGE, _SKY, INK), "s^oPvDX", strict=True)
]
_RC: Any = {"svg.fonttype": "none", "font.size": 10.5, "text.color": INK, "axes.labelcolor": INK}
_RC |= {"axes.edgecolor": _MUTED, "xtick.color": _MUTED, "ytick.color": _MUTED} | dict.fromkeys(
    ("xtick.labelcolor", "ytick.labelcolor"), INK
)
_WIDTH = 5.2
_ROOM = 0.11
"""The share of a figure's height that a line of text takes."""


class Point(NamedTuple):
    """A point of a line; between ``low`` and ``high`` a band is drawn."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


class HeatCell(NamedTuple):
    """A field of a heat map: what it says, the smaller line below, and from 0 to 1 how strongly it is coloured (None: grey)."""

    text: str
    detail: str
    strength: float | None


def draw_lines(
    key: str,
    alt: str,
    lines: Mapping[str, Sequence[Point]],
    ylabel: str,
    *,
    unit: str = "",
    log: bool = True,
    xlabel: str = "length of the series, T (steps)",
    names: Sequence[str] | None = None,
    level: float | None = None,
) -> str:
    """Draws lines over a logarithmic axis, or over ``names`` in order.

    Args:
        key: unique on the page.
        alt: what the figure shows, in words.
        lines: by name; those of `STYLES` look alike in every figure.
        ylabel: what y is.
        unit: of y, for ticks with prefixes ("s"); "" for plain numbers.
        log: whether y is logarithmic.
        xlabel: what x is.
        names: of x = 0, 1, ...; default: x is a length.
        level: where to draw a level that lines are compared with.
    """
    figure, axis = _figure(3.3 + 0.2 * math.ceil(len(lines) / _columns(lines)))
    for place, (name, points) in enumerate(lines.items()):
        style = {"linewidth": 1.8, "markersize": 6} | STYLES.get(name, _OTHERS[place % len(_OTHERS)])
        x, y = [p.x for p in points], [p.y for p in points]
        axis.plot(x, y, label=name, **style)
        banded = [p for p in points if p.low is not None and p.high is not None]
        if banded and name != DEFAULT:
            low, high = ([float(end or 0) for end in ends] for ends in zip(*(p[2:] for p in banded), strict=True))
            axis.fill_between([p.x for p in banded], low, high, color=style["color"], alpha=0.2, linewidth=0)
    every = [p for points in lines.values() for p in points]
    ends = [end for p in every for end in (p.low, p.y, p.high) if end is not None]
    if names is None:
        _log(axis, "x", [p.x for p in every], _ticks(""))
    else:
        axis.set_xticks(range(len(names)), names)
        axis.set_xlim(-0.5, len(names) - 0.5)
    if log:
        _log(axis, "y", ends + ([level] if level else []), _ticks(unit))
    else:
        axis.set_ylim(0, 1.08 * (max(ends) or 1))
        axis.yaxis.set_major_locator(MaxNLocator(6))
        axis.yaxis.set_major_formatter(_ticks(unit))
    if level is not None:
        axis.axhline(level, color=_MUTED, linewidth=1)
    _finish(figure, axis, xlabel, ylabel)
    return _svg(figure, key, alt)


def draw_points(
    key: str,
    alt: str,
    groups: Mapping[str, Sequence[tuple[float, float]]],
    xlabel: str,
    ylabel: str,
    *,
    unit: str = "",
    slope: float | None = None,
    sides: tuple[str, str] = ("", ""),
) -> str:
    """Points on two logarithmic axes; those with y = 0 lie on the bottom, which says 0.

    Args:
        key: unique on the page.
        alt: what the figure shows, in words.
        groups: x and y, by name.
        xlabel: what x is.
        ylabel: what y is.
        unit: of x, for ticks with prefixes.
        slope: of a line through the origin to draw.
        sides: what it means to lie above and below that line.
    """
    figure, axis = _figure(3.5 + 0.2 * math.ceil(len(groups) / _columns(groups)))
    positive = [y for points in groups.values() for _, y in points if y > 0] or [1.0]
    nought = 10 ** (math.floor(math.log10(min(positive))) - 1)
    zeros = any(y == 0 for points in groups.values() for _, y in points)
    for place, (name, points) in enumerate(groups.items()):
        style = STYLES.get(name, _OTHERS[place % len(_OTHERS)])
        x, y = zip(*((x, y or nought) for x, y in points), strict=True)
        look = {"color": style["color"], "marker": style["marker"], "alpha": 0.75, "linestyle": "none"}
        axis.plot(x, y, label=name, markersize=6.5, markeredgewidth=0, clip_on=False, **look)
    _log(
        axis,
        "x",
        [x for points in groups.values() for x, _ in points],
        _ticks(unit),
    )
    _log(axis, "y", [*positive, *([nought] if zeros else [])], FuncFormatter(lambda y, _: _power(y, nought if zeros else None)))
    if slope:
        left, right = axis.get_xlim()
        bottom, top = axis.get_ylim()
        room = (top / bottom) ** _ROOM  # below all points and above them, for what the sides mean
        bottom, top = bottom / room, top * room
        axis.plot([left, right], [slope * left, slope * right], color=_MUTED, linewidth=1.2, scalex=False, scaley=False)
        axis.set(xlim=(left, right), ylim=(bottom, top))
        for text, x, y, align in ((sides[0], 0.02, 0.99, "left"), (sides[1], 0.98, 0.01, "right")):
            vertical = "top" if align == "left" else "bottom"
            axis.text(x, y, text, transform=axis.transAxes, ha=align, va=vertical, color=_MUTED, fontsize=9.5, style="italic")
    _finish(figure, axis, xlabel, ylabel)
    return _svg(figure, key, alt)


def draw_heat(
    key: str, alt: str, rows: Sequence[str], columns: Sequence[str], cells: Mapping[tuple[str, str], HeatCell]
) -> str:
    """Draws a heat map whose fields say their numbers.

    Args:
        key: unique on the page.
        alt: what the figure shows, in words.
        rows: names, from the top.
        columns: names.
        cells: by row and column; what is missing stays empty.
    """
    figure, axis = _figure(0.6 + 0.52 * len(rows))
    for (row, column), cell in cells.items():
        x, y = columns.index(column), rows.index(row)
        color, alpha = (_FAINT, 0.9) if cell.strength is None else (BLUE, 0.1 + 0.45 * cell.strength)
        axis.add_patch(Rectangle((x - 0.49, y - 0.48), 0.98, 0.96, facecolor=color, alpha=alpha, linewidth=0))
        at: dict[str, Any] = {"ha": "center", "color": INK}
        axis.text(x, y + (0.04 if cell.detail else 0), cell.text, va="bottom" if cell.detail else "center", **at)
        axis.text(x, y + 0.08, cell.detail, va="top", fontsize=9, **at)
    axis.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return _svg(figure, key, alt)


def _figure(height: float) -> tuple[Figure, Axes]:
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(_WIDTH, height), layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.04))
        FigureCanvasSVG(figure)
        return figure, figure.subplots()


def _log(axis: Axes, which: str, values: Sequence[float], formatter: Any) -> None:
    """Makes an axis logarithmic, from decade to decade: at least two of them have a label, and at most eight."""
    low, high = math.floor(math.log10(min(values)) + 1e-9), math.ceil(math.log10(max(values)) - 1e-9)
    high = max(high, low + 1)
    axis.set(**{f"{which}scale": "log", f"{which}lim": (10.0**low / 1.2, 10.0**high * 1.2)})
    line = getattr(axis, f"{which}axis")
    line.set_major_locator(LogLocator(numticks=9))
    line.set_minor_locator(NullLocator())
    line.set_major_formatter(formatter)


def _columns(names: Iterable[str]) -> int:
    """Counts the columns of a legend."""
    return 1 if max(map(len, names)) > 29 else 2


def _ticks(unit: str) -> Any:
    """Prefixes for units; numbers below 1,000 as they are, then with k, M, G."""
    if unit:
        return EngFormatter(unit, sep="\N{NO-BREAK SPACE}")
    large = EngFormatter(sep="")
    return FuncFormatter(lambda x, _: large.format_eng(x) if abs(x) >= 1_000 else f"{x:g}")


def _power(y: float, nought: float | None) -> str:
    if nought is not None and math.isclose(y, nought):
        return "0"
    return f"{y:g}" if 1e-3 < y < 1e6 else re.sub(r"e([+-])0*", r"e\1", f"{y:.0e}").replace("e-", "e\N{MINUS SIGN}")


def _finish(figure: Figure, axis: Axes, xlabel: str, ylabel: str) -> None:
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.grid(which="major", color=_FAINT, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    columns = _columns(axis.get_legend_handles_labels()[1])
    figure.legend(
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=10,
        handlelength=2.6,
        columnspacing=1.4,
        borderaxespad=0.2,
    )


def _svg(figure: Figure, key: str, alt: str) -> str:
    """Writes the figure as an element of an HTML page: ids unique, colours the page's variables, fonts the page's."""
    text = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context(_RC | {"svg.hashsalt": key}):
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    used = set(re.findall(r"(?:url\(#|href=\"#)([\w-]+)", svg))

    def renamed(match: re.Match) -> str:
        return f' id="{key}-{match[1]}"' if match[1] in used else ""

    replacements: list[tuple[str, str | Callable[[re.Match], str]]] = [
        (r"\s*<metadata>.*?</metadata>", ""),
        (r"<!--.*?-->\s*", ""),
        (r' id="([^"]*)"', renamed),
        (r"url\(#", f"url(#{key}-"),
        (r'xlink:href="#', f'href="#{key}-'),
        (r' xmlns(:xlink)?="[^"]*"', ""),
        (r"\s*<defs>\s*<style.*?</style>\s*</defs>", ""),
        (r"font: ((?:\w+ )*)([\d.]+px) [^;\"]*", r"font-size: \2"),
        (r" font-family: [^;\"]*;?", ""),
        (r"\s*\n\s*", " "),
    ]
    for pattern, new in replacements:
        svg = re.sub(pattern, new, svg, flags=re.DOTALL)
    for color, name in _VARIABLES.items():
        svg = re.sub(color, f"var(--{name})", svg, flags=re.IGNORECASE)
    head = f'<svg role="img" aria-label="{escape(alt)}"'
    svg = re.sub(r'<svg\b([^>]*?) width="[^"]*"', rf"{_literal(head)}\1", svg, count=1)
    svg = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return re.sub(r"(<svg\b[^>]*>)", rf"\1<title>{_literal(escape(alt))}</title>", svg, count=1)


def _literal(text: str) -> str:
    return text.replace("\\", r"\\")
