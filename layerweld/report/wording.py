"""How reports write numbers and names."""

from __future__ import annotations

import html
from collections.abc import Mapping
from math import floor, isfinite, log10

from layerweld.report.results import GroupMetrics
from layerweld.untrusted.text import shown

_GENERIC = {"dense", "linear", "lin", "weight", "0", "1", "2", "3"}


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


def kind_of(group: GroupMetrics) -> str:
    """What a group is, whatever its block: ``query,key,value``, ``attention.output``."""
    leaves = [layer.rsplit(".", 1)[-1].removesuffix("_proj") for layer in group.layers]
    if leaves and not set(leaves) & _GENERIC:
        return ",".join(leaves)
    parts = group.name.split(".")
    after = max((i for i, part in enumerate(parts[:-1]) if part.isdigit()), default=-1)
    rest = parts[after + 1 :]
    return ".".join(rest[:-1] if len(rest) > 1 and rest[-1] in _GENERIC else rest)


def group_label(group: GroupMetrics) -> str:
    """``L3 · query,key,value``: short enough for an axis; the full name belongs into the hover."""
    block = block_of(group.name)
    return f"L{block} · {kind_of(group)}" if block else kind_of(group)


def full_name(group: GroupMetrics) -> str:
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


def metrics_text(metrics: Mapping[str, float]) -> str:
    """``distance to the mean 0.31``, or a dash."""
    return ", ".join(f"{name} {number_text(value)}" for name, value in metrics.items()) or "–"


def tick_text(value: float) -> str:
    """For a logarithmic axis: ``0.01``, ``500``, and ``10⁴`` from there on."""
    if 1e-3 <= value < 1e4:
        return f"{value:g}"
    mantissa, _, exponent = f"{value:.0e}".partition("e")
    power = f"10{_superscript(int(exponent))}"
    return power if mantissa == "1" else f"{mantissa}·{power}"


def _superscript(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
