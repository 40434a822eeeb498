"""Self-contained pages: one file each, with charts and tables, that opens without a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from layerweld.report.page.frame import PARTS, SHELL
from layerweld.report.page.palette import DARK, LIGHT
from layerweld.report.page.style import SCRIPT, STYLE
from layerweld.untrusted.text import shown, shown_lines

_LONGEST = 10_000  # characters of one text
_LAYOUT: dict[str, Any] = {
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "color": "--ink"},
    "margin": {"l": 8, "r": 16, "t": 8, "b": 8}, "hovermode": "closest",
    "legend": {
        "orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom",
        "font": {"size": 13, "color": "--ink"}, "itemclick": "toggle",
        "traceorder": "normal",
    },
    "hoverlabel": {
        "bgcolor": "--card", "bordercolor": "--line", "align": "left", "namelength": -1,
        "font": {"color": "--ink", "size": 13},
    },
}  # fmt: skip

Trace = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """One figure and the sentence that says how to read it."""

    key: str
    """Unique in the page."""
    title: str
    reading: str
    height: int
    """Pixels."""
    data: list[Trace]
    layout: dict[str, Any]
    narrow: dict[str, Any] = field(default_factory=dict)
    """What of the layout differs on a phone; keys are dotted paths."""


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[str] = ()
    """Heads of the columns that hold words and not numbers."""


def render_page(template: str, drawn: Sequence[Chart], **values: Any) -> str:
    """The page as text, Plotly's script included (about 5 MB).

    Every value is escaped, since sites choose their names.

    Args:
        template: fills the block ``main`` of the pages' frame.
        drawn: every chart that the template shows.
        values: what the template names; ``name`` is the page's title.
    """
    loader = DictLoader({"page": template, "shell": SHELL, "parts": PARTS})
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=_bounded,
    )
    return environment.get_template("page").render(
        drawn=drawn,
        light=LIGHT,
        dark=DARK,
        style=Markup(STYLE),
        script=Markup(SCRIPT),
        plotly=Markup(get_plotlyjs()),
        charts=_chart_json(drawn),
        **values,
    )


def _chart_json(drawn: Sequence[Chart]) -> Markup:
    """What the page's script draws from; safe inside of a script element."""
    page = {"light": LIGHT, "dark": DARK, "layout": _LAYOUT, "charts": [asdict(c) for c in drawn]}
    text = json.dumps(_finite(page), allow_nan=False, separators=(",", ":"))
    # A name with "</script>" in it would end the element; \u003c is the same to a JSON parser.
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _bounded(value: Any) -> Any:
    """What a template shows, where it is text that is not ours."""
    return shown_lines(value, _LONGEST) if type(value) is str else value


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, str):
        return shown(value, _LONGEST)
    if isinstance(value, dict):
        return {shown(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
