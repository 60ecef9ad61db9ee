"""Bars as SVG, by hand, readable on light and on dark ground; a pure function of its figures."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from xml.sax.saxutils import escape

from stdserve.bench_report import amount

NAMES, BARS, FIGURES, ROW, HEAD = 190, 460, 70, 20, 34

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f } .title { font-weight: 600 }
.bar { fill: #8c959f } .ours { fill: #0969da }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .bar { fill: #6e7681 } .ours { fill: #4493f8 } }
"""


@dataclass(frozen=True)
class Panel:
    """Bars under one title, by name; those of 0 were not measured, or were wrong."""

    title: str
    values: dict[str, float]


def chart(panels: Sequence[Panel], ours: Set[str]) -> str:
    """Return an SVG with one panel below the other, the bars of ``ours`` in another colour."""
    rows, y = [], 0
    for panel in panels:
        most = max(panel.values.values(), default=0.0) or 1.0
        rows.append(f'<text class="title" x="0" y="{y + HEAD - 12}">{escape(panel.title)}</text>')
        y += HEAD
        for name, value in panel.values.items():
            width = round(BARS * value / most, 1)
            kind = "bar ours" if name in ours else "bar"
            figure = amount(value) if value else "not correct"
            rows.append(
                f'<text x="{NAMES - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>'
                f'<rect class="{kind}" x="{NAMES}" y="{y + 2}" width="{width}" height="{ROW - 5}" rx="2"/>'
                f'<text x="{NAMES + width + 6}" y="{y + 14}">{figure}</text>'
            )
            y += ROW
    width = NAMES + BARS + FIGURES
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y + 6}" width="{width}" role="img">'
    title = f"<title>{escape('; '.join(panel.title for panel in panels))}</title>"
    return "\n".join([head, title, f"<style>{STYLE}</style>", *rows, "</svg>"]) + "\n"
