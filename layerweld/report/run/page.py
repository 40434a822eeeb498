"""``report.html``: one self-contained page about a run, opened without a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerweld.report.model_card import loading
from layerweld.report.page.render import Chart, Table, render_page
from layerweld.report.results import MethodResult, RunResults, SiteSummary
from layerweld.report.run import charts
from layerweld.report.run.accuracy_rows import accuracy_rows
from layerweld.report.run.conclusion import conclude_run, sampling_caveat
from layerweld.report.run.lost_sites import lost_sites_table, lost_sites_text
from layerweld.report.run.site_maps import cohort_map, importance_map, influence_map
from layerweld.report.run.template import RUN_PAGE
from layerweld.report.scores import evaluated
from layerweld.report.wording import byte_text, group_label, metrics_text, number_text, time_text


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it; without charts its text says how to get some."""

    key: str
    title: str
    text: str = ""
    setting: str = ""
    charts: Sequence[Chart] = ()
    side_by_side: bool = False
    table: Table | None = None
    fold: str = ""
    """Title of the fold the table is in; empty to show it at once."""


def write_report(results: RunResults, file: Path) -> None:
    """Write the page. Every name in it is escaped, since sites choose their names."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(render_report(results), encoding="utf-8")


def render_report(results: RunResults) -> str:
    """The page as text."""
    featured = _featured(results)
    sections = _sections(results, featured)
    lost = _lost_section(results, featured)
    accuracy_charts = [c for c in (charts.site_accuracy_chart(results),) if c is not None]
    shown = [*([lost] if lost else []), *sections]
    return render_page(
        RUN_PAGE,
        [*accuracy_charts, *(c for section in shown for c in section.charts)],
        name=results.name,
        base=results.base,
        conclusion=conclude_run(results),
        caveat=sampling_caveat(results),
        tiles=_tiles(results),
        accuracy=accuracy_rows(results),
        accuracy_charts=accuracy_charts,
        lost=lost,
        sections=sections,
        usage=_usage(results),
        limits=_limits(results, featured),
        facts=_facts(results),
        manifest_hash=results.manifest_hash,
    )


def _featured(results: RunResults) -> MethodResult | None:
    """The method whose groups are shown: the chosen one, else the first that has any."""
    chosen = [m for m in results.methods if m.name == results.chosen and m.groups]
    return next(iter([*chosen, *(m for m in results.methods if m.groups)]), None)


def _tiles(results: RunResults) -> list[dict[str, str]]:
    chosen = results.method(results.chosen)
    tiles = [{"label": "Sites", "value": str(len(results.sites)), "detail": _adapters(results)}]
    if chosen:
        sent = chosen.bytes_up
        tiles += [
            {"label": "Rounds", "value": f"{chosen.rounds:,}", "detail": chosen.label},
            {"label": "Uploaded", "value": byte_text(sent), "detail": "by all sites together"},
            {"label": "Time", "value": time_text(chosen.seconds), "detail": ""},
        ]
    manifest = {"label": "Manifest", "value": results.manifest_hash[:10], "detail": "of SHA-256"}
    return [*tiles, manifest]


def _adapters(results: RunResults) -> str:
    ranks = sorted({s.rank for s in results.sites if s.adapter == "lora"})
    full = sum(s.adapter != "lora" for s in results.sites)
    parts = [f"{full} fully fine-tuned"] if full else []
    if ranks:
        ends = dict.fromkeys((ranks[0], ranks[-1]))
        parts.insert(0, f"LoRA, rank {'–'.join(map(str, ends))}")
    return " · ".join(parts)


def _sections(results: RunResults, featured: MethodResult | None) -> list[Section]:
    tokens = charts.tokens_chart(results, featured)
    cost = Section("cost", "What it cost", table=_cost_table(results), charts=[tokens])
    if featured is None:
        return [cost]
    importance = importance_map(results, featured)
    influence = influence_map(results, featured)
    shown = [chart for chart in (importance, influence) if chart]
    solving = Section(
        "solving", "Solving the groups",
        f"Along the chain, group by group: {featured.label}.",
        charts=[charts.residual_chart(featured), charts.condition_chart(featured)],
        side_by_side=True, table=_group_numbers(featured), fold="All groups in numbers",
    )  # fmt: skip
    upload = [charts.bytes_chart(results, featured), tokens]
    cost = Section("cost", "What it cost", table=_cost_table(results), charts=upload)
    who = Section("importance", "Who shaped the merge", charts=shown)
    return [_shift_section(results, featured), *([who] if shown else []), solving, cost]


def _lost_section(results: RunResults, featured: MethodResult | None) -> Section | None:
    """Before all else, since every number below means something else; None if nobody was lost."""
    if not results.lost:
        return None
    cohort = cohort_map(results, featured) if featured else None
    return Section(
        "lost", "Lost sites", lost_sites_text(results), charts=[cohort] if cohort else [],
        table=lost_sites_table(results),
    )  # fmt: skip


def _shift_section(results: RunResults, featured: MethodResult) -> Section:
    shift, comparison = charts.shift_chart(results, featured), charts.shift_comparison(results)
    drawn = [chart for chart in (comparison, shift) if chart]
    if drawn:
        return Section("shift", "Covariate shift", charts=drawn)
    text = "Not measured in this run. To measure it, set"
    return Section("shift", "Covariate shift", text, 'merge.covariate-shift = "first"')


def _cost_table(results: RunResults) -> Table:
    merges = [m for m in results.methods if m.rounds or m.bytes_up or m.seconds]
    return Table(
        ("Method", "Rounds", "Time", "Uploaded", "Downloaded", "Metrics"),
        [
            (
                m.label, f"{m.rounds:,}", time_text(m.seconds),
                byte_text(m.bytes_up), byte_text(m.bytes_down), metrics_text(m.metrics),
            )
            for m in merges
        ],
    )  # fmt: skip


def _group_numbers(method: MethodResult) -> Table:
    return Table(
        (
            "Group", "Round", "Inputs", "Tokens", "λ", "Condition", "Residual",
            "Compression error", "Uploaded",
        ),
        [
            (
                group_label(g), str(g.step + 1), f"{g.d_in:,}", f"{sum(g.tokens.values()):,}",
                number_text(g.ridge), number_text(g.condition), number_text(g.residual),
                number_text(g.compression_error), byte_text(sum(g.bytes_up.values())),
            )
            for g in method.groups
        ],
    )  # fmt: skip


def _usage(results: RunResults) -> dict[str, str]:
    code, explanation = loading(results)
    text = (
        "The merge is a LoRA update like those of the sites; PEFT loads it onto the same base."
        if results.form == "adapter"
        else "The merge is not a LoRA update, so it was written as a whole model."
    )
    return {
        "text": f"{text} {explanation.replace('`', '')} Task heads stay at their sites.",
        "code": "\n".join(code),
    }


def _limits(results: RunResults, featured: MethodResult | None) -> list[str]:
    limits = []
    if evaluated(results):
        limits.append(
            "Accuracies are on each site's own held-out samples. They say nothing about other data,"
            " and they are estimates: with n samples, an accuracy p is known to about"
            " ± 1.96 √(p(1−p)/n)."
        )
        limits.append(
            "Each site measured its own accuracy and reported it; the coordinator has not seen the"
            " samples."
        )
    if featured:
        limits.append(
            "Gram matrices are not anonymous. That of a language model's first layer group can give"
            " back which tokens a site's data contains; whoever sees a site's statistics can learn"
            " about its data."
        )
        limits.append(
            "A small residual means that the merged layers reproduce the sites' updates on the"
            " calibration tokens, not that the merged model is right."
        )
    limits.append("One run, one seed: how much a repetition would differ is not in these numbers.")
    return limits


def _facts(results: RunResults) -> list[dict[str, Any]]:
    tables: dict[str, list[tuple[str, str]]] = {}
    for key, value in results.settings.items():
        tables.setdefault(key.rpartition(".")[0] or "run", []).append((key, _setting_text(value)))
    sites = [(s.name, f"{s.samples:,} samples, {_adapter(s)}") for s in results.sites]
    tables = {"Sites": sites, **tables, "Versions": list(results.versions.items())}
    return [{"title": title, "rows": rows} for title, rows in tables.items() if rows]


def _adapter(site: SiteSummary) -> str:
    return f"LoRA, rank {site.rank}" if site.adapter == "lora" else "fully fine-tuned"


def _setting_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "–" if value == "" else str(value)
