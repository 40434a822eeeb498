"""How the report writes numbers and names, and which colour stands for what."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from math import floor, isfinite, log10

from layerweld.report.run_results import GroupFigures
from layerweld.untrusted.text import shown

# Named once, so that the style sheet and the charts cannot disagree. Methods: Okabe and Ito; sites:
# Tol. Both stay apart under the common kinds of colour blindness; shapes differ as well.
LIGHT = {
    "page": "#fcfbf9", "card": "#ffffff", "ink": "#1f242b", "muted": "#616975", "line": "#e3e2de",
    "soft": "#f4f2ee", "low": "#2f6fa8", "middle": "#f4f2ee", "high": "#c4570c",
    "m-base": "#8a8f98", "m-individual": "#1f242b", "m-com": "#d55e00", "m-regmean": "#3d9bd1",
    "m-regmeanpp": "#0a5a94", "m-mean": "#c08400", "m-ta": "#b0508a", "m-0": "#00856a",
    "m-1": "#7a5cc0", "m-2": "#7d8b2a", "m-3": "#9c4a3c",
    "s-0": "#33679b", "s-1": "#d2566a", "s-2": "#1b7d42", "s-3": "#a88a00", "s-4": "#3aa7b5",
    "s-5": "#96307a",
}  # fmt: skip
DARK = {
    "page": "#15181c", "card": "#1b1f24", "ink": "#e8e6e1", "muted": "#9aa2ad", "line": "#30353c",
    "soft": "#22272d", "low": "#5aa5e6", "middle": "#262b31", "high": "#ef8a3d",
    "m-base": "#8a919c", "m-individual": "#e8e6e1", "m-com": "#ff7f2a", "m-regmean": "#82caf3",
    "m-regmeanpp": "#3f8fd2", "m-mean": "#e8b33a", "m-ta": "#dd90bd", "m-0": "#35c29b",
    "m-1": "#ab92ea", "m-2": "#b9c75a", "m-3": "#d98a7b",
    "s-0": "#6ea6dc", "s-1": "#f0899a", "s-2": "#55b97c", "s-3": "#d9bf45", "s-4": "#74d3df",
    "s-5": "#cf7bb8",
}  # fmt: skip

_METHODS = {
    "base": ("m-base", "x-thin-open"),
    "individual": ("m-individual", "line-ns-open"),
    "com": ("m-com", "circle"),
    "regmean": ("m-regmean", "square"),
    "regmean++": ("m-regmeanpp", "diamond"),
    "mean": ("m-mean", "triangle-up"),
    "task-arithmetic": ("m-ta", "triangle-down"),
}
_OTHER_SYMBOLS = ("pentagon", "star", "hexagon", "cross")
_SITE_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "pentagon")
_GENERIC = {"dense", "linear", "lin", "weight", "0", "1", "2", "3"}


def method_style(name: str, names: Sequence[str]) -> tuple[str, str]:
    """Colour token and marker of a method: its own if it is known, else by its place in the run."""
    if name in _METHODS:
        return _METHODS[name]
    place = [n for n in names if n not in _METHODS].index(name)
    turns, colour = divmod(place, len(_OTHER_SYMBOLS))
    return f"m-{colour}", _OTHER_SYMBOLS[(colour + turns) % len(_OTHER_SYMBOLS)]


def site_style(index: int) -> tuple[str, str, str]:
    """Colour token, marker and dash of the site at that place; dashes change every six sites."""
    dash = ("solid", "dash", "dot", "dashdot")[index // 6 % 4]
    return f"s-{index % 6}", _SITE_SYMBOLS[index % 6], dash


def chart_text(text: str, longest: int = 28) -> str:
    """A name for a chart, cut and escaped.

    Cut in the middle, because names differ at their ends; escaped, because Plotly reads labels as a
    kind of HTML.
    """
    half = (longest - 1) // 2
    text = shown(text, 4 * longest)
    short = text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"
    return html.escape(short)


def block_of(name: str) -> str:
    """``3`` for ``encoder.layer.3.attention.self``, empty where a name has no index."""
    return ".".join(part for part in name.split(".")[:-1] if part.isdigit())


def kind_of(group: GroupFigures) -> str:
    """What a group is, whatever its block: ``query,key,value``, ``attention.output``."""
    leaves = [layer.rsplit(".", 1)[-1].removesuffix("_proj") for layer in group.layers]
    if leaves and not set(leaves) & _GENERIC:
        return ",".join(leaves)
    parts = group.name.split(".")
    after = max((i for i, part in enumerate(parts[:-1]) if part.isdigit()), default=-1)
    rest = parts[after + 1 :]
    return ".".join(rest[:-1] if len(rest) > 1 and rest[-1] in _GENERIC else rest)


def group_label(group: GroupFigures) -> str:
    """``L3 · query,key,value``: short enough for an axis; the full name belongs into the hover."""
    block = block_of(group.name)
    return f"L{block} · {kind_of(group)}" if block else kind_of(group)


def full_name(group: GroupFigures) -> str:
    """For a hover: the group's own name, and below it its round and layers."""
    leaves = ", ".join(layer.rsplit(".", 1)[-1] for layer in group.layers)
    return f"{chart_text(group.name, 80)}<br>round {group.step + 1} · {chart_text(leaves, 60)}"


def percent(value: float | None) -> str:
    """``96.1 %``, or a dash."""
    return "–" if value is None else f"{100 * value:.1f}\u00a0%"


def byte_unit(largest: float) -> tuple[float, str]:
    """Decimal unit in which ``largest`` reads well, and its size in bytes."""
    units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    return next(((size, unit) for size, unit in units if largest >= size), (1.0, "B"))


def byte_text(count: float) -> str:
    """``12.3 MB``."""
    size, unit = byte_unit(count)
    return f"{count / size:.{0 if size == 1 or count / size >= 100 else 1}f}\u00a0{unit}"


def time_text(seconds: float) -> str:
    """``3 min 12 s``."""
    if seconds < 60:
        return f"{seconds:.1f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}\u00a0h {minutes}\u00a0min" if hours else f"{minutes}\u00a0min {rest}\u00a0s"


def number_text(value: float) -> str:
    """Three significant digits, with a power of ten only where it is shorter."""
    if not isfinite(value):
        return "∞" if value > 0 else "–"
    if value == 0:
        return "0"
    size = floor(log10(abs(value)))
    if size < -3 or size > 6:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa}·10{_superscript(int(exponent))}"
    return f"{value:,.{max(0, 2 - size)}f}"


def figures_text(figures: Mapping[str, float]) -> str:
    """``distance to the mean 0.31``, or a dash."""
    return ", ".join(f"{name} {number_text(value)}" for name, value in figures.items()) or "–"


def tick_text(value: float) -> str:
    """For a logarithmic axis: ``0.01``, ``500``, and ``10⁴`` from there on."""
    if 1e-3 <= value < 1e4:
        return f"{value:g}"
    mantissa, _, exponent = f"{value:.0e}".partition("e")
    power = f"10{_superscript(int(exponent))}"
    return power if mantissa == "1" else f"{mantissa}·{power}"


def _superscript(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
