"""Charts of a page as inline SVG: lines over an axis of numbers."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np

COLOURS = ("#3d7be0", "#e0823d", "#3da35d", "#b0509e", "#8a6d3b", "#5b5fc7", "#c43d4b", "#2f9a9a")
"""Of the lines in turn."""

STYLE = """
.lines polyline{fill:none;stroke-width:2;vector-effect:non-scaling-stroke}
.lines circle{stroke:var(--card);stroke-width:1.5}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;color:var(--soft);font-size:13px}
.heat td{text-align:center;min-width:64px}
"""
"""CSS of the charts."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 412, 8, 150  # of the axes, in a box of 420 x 176 units
_MOST_POINTS = 400
_PARTS = 4  # of the vertical axis

Line = tuple[Sequence[float], Sequence[float]]
"""x and y of the points of a line; NaN leaves a point out."""


def line_chart(
    caption: str,
    lines: Mapping[str, Line],
    *,
    x_label: str = "",
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    marks: Sequence[tuple[float, float, str]] = (),
) -> str:
    """A card with lines, their names below.

    Args:
        caption: heading, which is escaped.
        lines: by name; those without a finite point are left out.
        x_label: name of the horizontal axis.
        x_range, y_range: of the axes; by default those of the points.
        marks: (x, y, text) of points to mark.

    Returns:
        HTML; "" where there is no line.
    """
    points = {name: _finite(*line) for name, line in lines.items()}
    points = {name: line for name, line in points.items() if line.shape[1]}
    if not points:
        return ""
    every = np.concatenate(list(points.values()), axis=1)  # [2, P]
    x_range, y_range = (
        given or _rounded(axis.min(), axis.max()) for given, axis in zip((x_range, y_range), every, strict=True)
    )
    shapes, names = [], []
    for index, (name, line) in enumerate(points.items()):
        colour = COLOURS[index % len(COLOURS)]
        line = line[:, _thinned(line.shape[1])]
        x, y = _place(line[0], x_range, _LEFT, _RIGHT), _place(line[1], y_range, _BOTTOM, _TOP)
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        shapes.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}"><title>{html.escape(name)}</title></polyline>'
        )
        if len(x) == 1:
            shapes.append(f'<circle cx="{x[0]:.1f}" cy="{y[0]:.1f}" r="3.5" fill="{colour}"/>')
        names.append(f'<span class="chip" style="--dot:{colour}">{html.escape(name)}</span>')
    for x, y, text in marks:
        a, b = _place(np.array([x]), x_range, _LEFT, _RIGHT)[0], _place(np.array([y]), y_range, _BOTTOM, _TOP)[0]
        shapes.append(
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4.5" fill="currentColor"><title>{html.escape(text)}</title></circle>'
        )
    return (
        f'<figure class="card"><figcaption>{html.escape(caption)}<small>{html.escape(x_label)}</small></figcaption>'
        f'<svg class="lines" viewBox="0 0 420 176" role="img" aria-label="{html.escape(caption)}">'
        f"{_axes(x_range, y_range)}{''.join(shapes)}</svg>"
        f'<div class="legend">{"".join(names)}</div></figure>'
    )


def heat_table(headings: Sequence[str], row_names: Sequence[str], values: np.ndarray) -> str:
    """A table of counts [R, C], each cell as dark as its part of its row."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *headings))
    body = ""
    for name, row in zip(row_names, values, strict=True):
        shares = row / max(row.sum(), 1)
        cells = "".join(
            f'<td style="background:color-mix(in srgb,var(--bar) {round(70 * share)}%,transparent)">{count}</td>'
            for share, count in zip(shares, row.tolist(), strict=True)
        )
        body += f"<tr><td>{html.escape(name)}</td>{cells}</tr>"
    return f'<div class="table heat"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _axes(x_range: tuple[float, float], y_range: tuple[float, float]) -> str:
    parts = []
    for value in np.linspace(*y_range, _PARTS + 1):
        y = _place(np.array([value]), y_range, _BOTTOM, _TOP)[0]
        parts.append(f'<line x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for value, anchor in zip(np.linspace(*x_range, 3), ("start", "middle", "end"), strict=True):
        x = _place(np.array([value]), x_range, _LEFT, _RIGHT)[0]
        parts.append(f'<text x="{x:.1f}" y="{_BOTTOM + 16}" text-anchor="{anchor}">{value:.4g}</text>')
    return "".join(parts)


def _finite(x: Sequence[float], y: Sequence[float]) -> np.ndarray:
    points = np.array([x, y], dtype=float).reshape(2, -1)
    return points[:, np.isfinite(points).all(axis=0)]


def _thinned(count: int) -> np.ndarray:
    """Indices of at most `_MOST_POINTS` of `count` points, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, _MOST_POINTS)).astype(int))


def _rounded(low: float, high: float) -> tuple[float, float]:
    """A range around both whose quarters have few digits."""
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    power = 10.0 ** np.floor(np.log10((high - low) / _PARTS))
    for step in (power * factor for factor in (1, 2, 2.5, 5, 10, 20)):
        start = np.floor(low / step) * step
        if start + _PARTS * step >= high - 1e-9 * step:
            break
    return float(start), float(start + _PARTS * step)


def _place(values: np.ndarray, limits: tuple[float, float], start: float, end: float) -> np.ndarray:
    low, high = limits
    return start + (np.clip(values, low, high) - low) / (high - low) * (end - start)
