"""Write what a run made: the merged adapter or model, the manifest, the report, the tables."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from layerweld import __version__
from layerweld.formats.export import write_adapter, write_model
from layerweld.formats.model_card import Sent, write_model_card
from layerweld.model.base_model import BaseModel
from layerweld.report.output_folder import ENVIRONMENTS
from layerweld.report.results import Form, MethodResult, RunResults, Score, SiteSummary
from layerweld.runtime.numerics import numeric_environment
from layerweld.settings.methods import METHODS, Method, methods_of, settings_for
from layerweld.settings.run import RunSettings, Scalar
from layerweld.statistics.influence import opposed, outliers
from layerweld.transport.site_info import SiteInfo
from layerweld.updates.update import LowRankUpdate
from server.merged_model import MergedModel


def write_merge(
    folder: Path, merged: MergedModel, base: BaseModel, prefix: str, task: str
) -> dict[str, str]:
    """Write the merged adapter, or the merged model where it is not a LoRA.

    Returns:
        SHA-256 of every file written, by its path in the folder.
    """
    low_rank = {k: u for k, u in merged.updates.items() if isinstance(u, LowRankUpdate)}
    if len(low_rank) == len(merged.updates) and not merged.other_params:
        target = folder / "adapter"
        write_adapter(target, low_rank, base, prefix, task)
    else:
        target = folder / "model"
        write_model(target, merged.updates, merged.other_params, base)
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(target.rglob("*"))
        if file.is_file()
    }


def write_manifest(
    folder: Path,
    merged: MergedModel,
    base: BaseModel,
    sites: Sequence[SiteInfo],
    settings: RunSettings,
    files: Mapping[str, str],
) -> str:
    """Write ``manifest.json``: what was merged, how, and what came out.

    It holds no time, no path, no run number and no processor: the same merge gives the same bytes,
    wherever and however often interrupted it is played. What it was computed with is in
    ``environment.json`` (:func:`write_environments`).

    Returns:
        SHA-256 of the manifest.
    """
    effective = settings_for(merged.method.name, settings)
    manifest = {
        "layerweld": __version__,
        "method": merged.method.name,
        "base": {"name": base.name, "fingerprint": base.fingerprint},
        "settings": {
            "merge": effective.merge.model_dump(by_alias=True),
            "calibration": effective.calibration.model_dump(by_alias=True),
            **_own_settings(merged.method, effective),
        },
        "sites": [_site(info) for info in sites],
        "groups": [_group(figures) for figures in merged.groups],
        "prefix": merged.chain_digest,
        "files": dict(files),
        "figures": dict(merged.metrics),
    } | ({"lost": list(merged.lost)} if merged.lost else {})
    text = json.dumps(manifest, indent=2, sort_keys=True, allow_nan=False) + "\n"
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def write_environments(folder: Path, sites: Sequence[SiteInfo], settings: RunSettings) -> None:
    """Write ``environment.json``: where another run's bits may differ from this one's."""
    environments = {
        "coordinator": numeric_environment(settings.calibration.device),
        "sites": {one.site: list(one.environment) for one in sites},
    }
    text = json.dumps(environments, indent=2, sort_keys=True) + "\n"
    (folder / ENVIRONMENTS).write_text(text, encoding="utf-8")


def write_card(
    folder: Path,
    base: BaseModel,
    sites: Sequence[SiteInfo],
    settings: RunSettings,
    scores: Mapping[str, Mapping[str, Score]],
    prefix: str,
    task: str,
    merged: MergedModel,
) -> None:
    """Write the model card beside what was merged."""
    target = next(folder / name for name in ("adapter", "model") if (folder / name).is_dir())
    by_site: dict[str, dict[str, float]] = {}
    for model, per_site in scores.items():
        for site, score in per_site.items():
            by_site.setdefault(site, {})[model] = score.accuracy
    method = merged.method
    tables = (f"{method.table}.", "calibration.")
    about = {k: v for k, v in settings.flat().items() if k.startswith(tables)}
    write_model_card(
        target,
        base_name=base.name,
        sites=[summary_of(info) for info in sites],
        settings=about,
        scores=by_site,
        method=f"{method.label} ({method.source})",
        sent=_sent(method),
        prefix=prefix,
        task=task,
        missing=_missing(merged),
    )


def _sent(method: Method) -> Sent:
    if method.learns:
        return "updates and gradients"
    return "updates" if method.from_updates else "statistics"


def _missing(merged: MergedModel) -> dict[str, list[str]]:
    """Of each site that was lost, the layer groups that are merged without it."""
    return {
        site: [figures.name for figures in merged.groups if site in figures.lost]
        for site in merged.lost
    }


def run_results(
    settings: RunSettings,
    base: BaseModel,
    sites: Sequence[SiteInfo],
    methods: Sequence[MethodResult],
    chosen: str,
    form: Form,
    manifest_hash: str,
    lost: Mapping[str, str],
    ignored: Mapping[str, int],
    prefix: str,
    task: str,
) -> RunResults:
    """Everything the report shows, in one value."""
    packages = ("torch", "transformers", "peft", "lightning", "flwr")
    return RunResults(
        name=settings.name,
        base=base.name,
        sites=tuple(summary_of(info) for info in sites),
        methods=tuple(methods),
        chosen=chosen,
        form=form,
        settings=_played_settings(settings),
        manifest_hash=manifest_hash,
        lost=lost,
        ignored=dict(sorted(ignored.items())),
        versions={"layerweld": __version__} | {name: version(name) for name in packages},
        prefix=prefix,
        task=task,
    )


def method_result(merged: MergedModel, shifts: Mapping[str, Mapping[str, float]]) -> MethodResult:
    """One merged model as the report shows it."""
    groups = tuple(
        replace(figures, covariate_shift=dict(shifts.get(figures.name, {})))
        for figures in merged.groups
    )
    return MethodResult(
        name=merged.method.name,
        label=merged.method.label,
        rounds=merged.rounds,
        seconds=merged.seconds,
        bytes_up=merged.bytes_up,
        bytes_down=merged.bytes_down,
        scores=merged.scores,
        groups=groups,
        outliers=_by_site({group.name: outliers(group.influence) for group in groups}),
        opposed=_by_site({group.name: opposed(group.agreement) for group in groups}),
        figures=merged.metrics,
        lost=merged.lost,
    )


def _by_site(flagged: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The groups in which each site is flagged, from the sites that each group flags."""
    sites = sorted({site for names in flagged.values() for site in names})
    return {
        site: tuple(group for group, names in flagged.items() if site in names) for site in sites
    }


def summary_of(info: SiteInfo) -> SiteSummary:
    """A site as reports and cards show it."""
    return SiteSummary(
        name=info.site,
        samples=info.calibration_samples,
        tokens=info.tokens,
        adapter=info.kind,
        rank=max(info.ranks, default=0),
    )


def _own_settings(method: Method, settings: RunSettings) -> dict[str, Any]:
    """The method's own table, and that of LiNeS where it scaled the result."""
    flat = settings.flat()
    return {
        table: {
            k.removeprefix(f"{table}."): v for k, v in flat.items() if k.startswith(f"{table}.")
        }
        for table in _tables_of(method)
    }


def _tables_of(method: Method) -> tuple[str, ...]:
    return (method.table, "lines") if method.lines else (method.table,)


def _played_settings(settings: RunSettings) -> dict[str, Scalar]:
    """All settings of the run but the tables of methods that it did not play."""
    played = {table for method in methods_of(settings) for table in _tables_of(method)}
    unused = {method.table for method in METHODS.values()} | {"lines"}
    unused -= played | {"merge"}
    return {k: v for k, v in settings.flat().items() if k.partition(".")[0] not in unused}


def _site(info: SiteInfo) -> dict[str, Any]:
    return {
        "name": info.site,
        "samples": info.calibration_samples,
        "tokens": info.tokens,
        "skipped": info.skipped,
        "kind": info.kind,
        "ranks": dict(zip(info.layers, info.ranks, strict=True)),
    }


def _group(figures: Any) -> dict[str, Any]:
    about = asdict(figures)
    del about["covariate_shift"], about["bytes_up"], about["influence"], about["agreement"]
    for empty in [name for name in ("lost", "capped") if not about[name]]:
        del about[empty]
    return about
