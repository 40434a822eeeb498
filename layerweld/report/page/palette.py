"""Which colour and which marker stand for what."""

from __future__ import annotations

from collections.abc import Sequence

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
