"""The report's charts as Plotly figures in plain values.

Colours are tokens (``--m-com``) that the page replaces by its light or dark palette. Positions are
numbers and names are only their labels, so that no name can be taken for a date or for markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from layerweld.report.page.axes import axis, group_axis, log_scale, row_axis, rule_at
from layerweld.report.page.palette import method_style, site_style
from layerweld.report.page.render import Chart, Trace
from layerweld.report.results import GroupMetrics, MethodResult, RunResults
from layerweld.report.scores import half_width, normalised, scored_sites
from layerweld.report.wording import (
    byte_text,
    byte_unit,
    chart_text,
    full_name,
    kind_of,
    number_text,
    percent,
)


def site_accuracy_chart(results: RunResults) -> Chart | None:
    """Normalised accuracy: a row per site, a marker per method; None without individual scores."""
    sites = scored_sites(results)
    names = [m.name for m in results.methods]
    traces = []
    for place, method in enumerate(m for m in results.methods if m.name != "individual"):
        points = [
            (row + 0.07 * (place - (len(names) - 2) / 2), 100 * value, site)
            for row, site in enumerate(sites)
            if (value := normalised(results, method, site)) is not None
        ]
        if points:
            traces.append(_accuracy_trace(method, points, names))
    if not traces:
        return None
    spread = [x for trace in traces for x in trace["x"]] + [100.0]
    pad = 0.06 * (max(spread) - min(spread)) + 0.5
    return Chart(
        key="accuracy",
        title="Normalised accuracy at each site",
        reading="Each row is a site, each marker a method; the line at 100 % is the site's own "
        "fine-tuned model, so the further right, the less was lost by merging.",
        height=90 + 46 * len(sites),
        data=traces,
        layout={
            "xaxis": axis("", ticksuffix=" %", range=[min(spread) - pad, max(spread) + pad]),
            "yaxis": row_axis([chart_text(s) for s in sites]),
            "shapes": [rule_at(100.0)],
        },
    )


def shift_chart(results: RunResults, method: MethodResult) -> Chart | None:
    """Eq. 8 along the chain, a line per site; None when the run did not measure it."""
    series = {s.name: [g.covariate_shift.get(s.name) for g in method.groups] for s in results.sites}
    traces = [
        _line(method.groups, values, chart_text(name), site_style(i))
        for i, (name, values) in enumerate(series.items())
        if any(value is not None for value in values)
    ]
    if not traces:
        return None
    return _chain_chart(
        "shift", f"Covariate shift at each site: {method.label}", method.groups, traces,
        "How far merging moved the inputs of each group away from those of the site's own model "
        "(squared Wasserstein distance, eq. 8): low and flat is good, growth along the chain means "
        "that errors add up.",
    )  # fmt: skip


def shift_comparison(results: RunResults) -> Chart | None:
    """Eq. 8 summed over sites, a line per method; None unless several methods have it."""
    names = [m.name for m in results.methods]
    having = [m for m in results.methods if any(g.covariate_shift for g in m.groups)]
    if len(having) < 2:
        return None
    longest = max(having, key=lambda m: len(m.groups)).groups
    traces = []
    for method in having:
        total = {g.name: sum(g.covariate_shift.values()) for g in method.groups}
        values = [total.get(g.name) for g in longest]
        colour, symbol = method_style(method.name, names)
        line = _line(longest, values, chart_text(method.label), (colour, symbol, "solid"))
        traces.append(line)
    return _chain_chart(
        "shift-methods", "Covariate shift of each method", longest, traces,
        "The same distance summed over all sites, a line per method: the lower line keeps the "
        "merged model closer to what the sites' own models compute.",
    )  # fmt: skip


def residual_chart(method: MethodResult) -> Chart:
    """What of the updates each merged group could not reproduce, a line per kind of group."""
    traces = _kind_lines(method, [g.residual for g in method.groups])
    return _chain_chart(
        "residual", "Residual", method.groups, traces,
        "Share of the sites' updates that the merged layers could not reproduce on the sites' "
        "inputs: 0 is perfect, the base model scores 1.",
        log=False,
    )  # fmt: skip


def condition_chart(method: MethodResult) -> Chart:
    """Condition number of each group's linear system, a line per kind of group."""
    traces = _kind_lines(method, [g.condition for g in method.groups])
    return _chain_chart(
        "condition", "Condition number", method.groups, traces,
        "Of the Gram matrix that was solved, ridge included: above about 10¹² the solution depends "
        "on rounding, and a larger ridge is called for.",
        log=True,
    )  # fmt: skip


def bytes_chart(results: RunResults, method: MethodResult) -> Chart:
    """Uploads per round, stacked by site."""
    steps = sorted({g.step for g in method.groups})
    rounds = [[g for g in method.groups if g.step == step] for step in steps]
    sent = {
        s.name: [sum(g.bytes_up.get(s.name, 0) for g in groups) for groups in rounds]
        for s in results.sites
    }
    size, unit = byte_unit(max(map(sum, zip(*sent.values(), strict=True)), default=0))
    traces = [
        {
            "type": "bar", "name": chart_text(name), "x": [k + 1 for k in steps],
            "y": [b / size for b in row],
            "customdata": [f"{chart_text(name, 60)}: {byte_text(b)}" for b in row],
            "hovertemplate": "round %{x}<br>%{customdata}<extra></extra>",
            "marker": {"color": f"--{site_style(i)[0]}", "line": {"width": 0}},
        }
        for i, (name, row) in enumerate(sent.items())
    ]  # fmt: skip
    return Chart(
        key="bytes",
        title="Bytes uploaded in each round",
        reading="Height is what all sites together sent in that round; colours are the sites.",
        height=300 + 10 * len(sent),
        data=traces,
        layout={
            "barmode": "stack", "bargap": 0.25,
            "xaxis": axis("round", showgrid=False, tickformat="d"), "yaxis": axis(unit),
        },
    )  # fmt: skip


def tokens_chart(results: RunResults, method: MethodResult | None) -> Chart:
    """Calibration tokens per site: of the first group where known, else of the handshake."""
    first = method.groups[0].tokens if method else {}
    counts = [first.get(s.name, s.tokens) for s in results.sites]
    places = range(len(counts))
    top = max(counts, default=0) or 1
    trace = {
        "type": "bar", "orientation": "h", "x": counts, "y": list(places), "width": 0.55,
        "text": [f"{n:,}" for n in counts], "textposition": "outside", "cliponaxis": False,
        "textfont": {"color": "--muted", "size": 13},
        "marker": {"color": [f"--{site_style(i)[0]}" for i in places]},
        "customdata": [
            f"{chart_text(s.name, 60)}: {n:,} tokens of {s.samples:,} samples"
            for s, n in zip(results.sites, counts, strict=True)
        ],
        "hovertemplate": "%{customdata}<extra></extra>", "showlegend": False,
    }  # fmt: skip
    return Chart(
        key="tokens",
        title="Calibration tokens of each site",
        reading="Tokens, padding excluded, that the statistics were taken over; a short bar means "
        "that the site's Gram matrices are noisy.",
        height=60 + 34 * len(counts),
        data=[trace],
        layout={
            "xaxis": axis("", range=[0, 1.12 * top], nticks=6),
            "yaxis": row_axis([chart_text(s.name) for s in results.sites]),
        },
        narrow={"xaxis.range": [0, 1.45 * top], "xaxis.nticks": 4},
    )  # fmt: skip


def _accuracy_trace(
    method: MethodResult, points: Sequence[tuple[float, float, str]], names: Sequence[str]
) -> Trace:
    colour, symbol = method_style(method.name, names)
    hover = [
        f"{chart_text(site, 60)}: {percent(method.scores[site].accuracy)}"
        f" ± {100 * half_width(method.scores[site]):.1f}"
        for _, _, site in points
    ]
    return {
        "type": "scatter", "mode": "markers", "name": chart_text(method.label),
        "x": [x for _, x, _ in points], "y": [y for y, _, _ in points], "customdata": hover,
        "hovertemplate": "%{x:.1f} % of individual<br>%{customdata}<extra>%{fullData.name}</extra>",
        "marker": {
            "color": f"--{colour}", "symbol": symbol, "size": 10,
            "line": {"width": 2 if symbol.endswith("open") else 0, "color": f"--{colour}"},
        },
    }  # fmt: skip


def _kind_lines(method: MethodResult, values: Sequence[float]) -> list[Trace]:
    kinds = list(dict.fromkeys(kind_of(g) for g in method.groups))
    if len(kinds) > 6:
        return [_line(method.groups, values, chart_text(method.label), site_style(0))]
    return [
        _line(
            method.groups,
            [v if kind_of(g) == kind else None for g, v in zip(method.groups, values, strict=True)],
            chart_text(kind),
            site_style(i),
        )
        for i, kind in enumerate(kinds)
    ]


def _line(
    groups: Sequence[GroupMetrics],
    values: Sequence[float | None],
    name: str,
    style: tuple[str, str, str],
) -> Trace:
    colour, symbol, dash = style
    points = [(i, v) for i, v in enumerate(values) if v is not None and isfinite(v)]
    return {
        "type": "scatter", "mode": "lines+markers", "name": name,
        "x": [i for i, _ in points], "y": [v for _, v in points],
        "customdata": [f"{full_name(groups[i])}<br>{number_text(v)}" for i, v in points],
        "hovertemplate": "%{customdata}<extra>%{fullData.name}</extra>",
        "line": {"color": f"--{colour}", "width": 1.75, "dash": dash},
        "marker": {"color": f"--{colour}", "symbol": symbol, "size": 6},
    }  # fmt: skip


def _chain_chart(
    key: str,
    title: str,
    groups: Sequence[GroupMetrics],
    traces: list[Trace],
    reading: str,
    log: bool | None = None,
) -> Chart:
    """Values over the groups; ``log`` None: where they span more than a factor of 30."""
    positive = [y for trace in traces for y in trace["y"] if y > 0]
    if log is None:
        log = bool(positive) and max(positive) > 30 * min(positive)
    if log and any(y <= 0 for trace in traces for y in trace["y"]):
        reading += " The scale is logarithmic; values of exactly 0 are not drawn."
        traces = [trace | {"y": [y if y > 0 else None for y in trace["y"]]} for trace in traces]
    elif log:
        reading += " The scale is logarithmic."
    horizontal, narrow = group_axis(groups)
    vertical = log_scale(positive) if log and positive else {"rangemode": "tozero"}
    return Chart(
        key=key,
        title=title,
        reading=reading,
        height=400,
        data=traces,
        layout=horizontal | {"yaxis": axis("", **vertical)},
        narrow=narrow,
    )
