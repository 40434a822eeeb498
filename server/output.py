"""Write what a run made: the merged adapter or model, the manifest, the report, the tables."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from layerweld import __version__
from layerweld.errors import OutputError
from layerweld.formats.export import write_adapter, write_model
from layerweld.formats.model_card import Sent, write_model_card
from layerweld.model.base_model import BaseModel
from layerweld.report.run_report import write_report
from layerweld.report.run_results import Form, MethodResult, RunResults, Score, SiteSummary
from layerweld.report.run_tables import write_accuracy_csv
from layerweld.runtime.disk import move, reported, sync_below
from layerweld.runtime.numerics import numeric_environment
from layerweld.runtime.run_state import is_state
from layerweld.settings.methods import METHODS, Method, methods_of, settings_for
from layerweld.settings.run import RunSettings, Scalar
from layerweld.statistics.influence import opposed, outliers
from layerweld.transport.site_info import SiteInfo
from layerweld.updates.update import LowRankUpdate
from server.merged_model import MergedModel

JOURNAL = "journal"
ENVIRONMENTS = "environment.json"
"""What decided the last digits, at the coordinator and at each site."""

# In the order in which they are moved into the folder; the manifest says that all of them are.
_PRODUCTS = (
    "adapter", "model", "accuracy.csv", "results.json", "report.html", ENVIRONMENTS,
    "manifest.json",
)  # fmt: skip


def check_output_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but what an interrupted run has left.

    That is its state, its journal, and perhaps some of its products.

    Raises:
        OutputError: the folder holds something else, or cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; choose another output folder")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    there = sorted(name for name in names if not is_state(name))
    if there and not (JOURNAL in there and {*there} <= {JOURNAL, *_PRODUCTS}):
        foreign = [name for name in there if name not in {JOURNAL, *_PRODUCTS}]
        raise OutputError(
            f"{folder} is not empty (it holds {(foreign or there)[0]!r}); choose another output "
            f"folder, or move what it holds away"
        )
    parent = next(p for p in (folder, *folder.resolve().parents) if p.exists())
    if not os.access(parent, os.W_OK):
        raise OutputError(f"{folder} cannot be created: {parent} is not writable")


@contextmanager
def finished_together(folder: Path) -> Iterator[Path]:
    """Give a folder to write all products into; they move to ``folder`` once all are written.

    What is there when this returns, no power cut takes away: the journal may go.

    Raises:
        StorageError: the disk is full; the products so far are removed, the journal stays.
    """
    staging = folder / JOURNAL / "products"
    with reported(folder):
        shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
        staging.mkdir(parents=True)
        try:
            yield staging
            sync_below(staging)
            for name in _PRODUCTS:
                _replace(staging / name, folder / name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _replace(product: Path, target: Path) -> None:
    if not product.exists():
        return
    if target.is_dir():
        shutil.rmtree(target)  # moved here by a run that was killed before it was finished
    move(product, target)


def write_merge(
    folder: Path, merged: MergedModel, base: BaseModel, prefix: str, task: str
) -> dict[str, str]:
    """Write the merged adapter, or the merged model where it is not a LoRA.

    Returns:
        SHA-256 of every file written, by its path in the folder.
    """
    low_rank = {k: u for k, u in merged.updates.items() if isinstance(u, LowRankUpdate)}
    if len(low_rank) == len(merged.updates) and not merged.remainder:
        target = folder / "adapter"
        write_adapter(target, low_rank, base, prefix, task)
    else:
        target = folder / "model"
        write_model(target, merged.updates, merged.remainder, base)
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
        "sites": [_site(introduction) for introduction in sites],
        "groups": [_group(figures) for figures in merged.groups],
        "prefix": merged.prefix,
        "files": dict(files),
        "figures": dict(merged.figures),
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
        sites=[summary_of(introduction) for introduction in sites],
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


def write_results(folder: Path, results: RunResults) -> None:
    """Write ``results.json``, ``accuracy.csv`` and ``report.html``."""
    text = json.dumps(asdict(results), indent=2, sort_keys=True, default=str, allow_nan=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    if any(method.scores for method in results.methods):
        write_accuracy_csv(results, folder / "accuracy.csv")
    write_report(results, folder / "report.html")


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
        sites=tuple(summary_of(introduction) for introduction in sites),
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
        figures=merged.figures,
        lost=merged.lost,
    )


def _by_site(flagged: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The groups in which each site is flagged, from the sites that each group flags."""
    sites = sorted({site for names in flagged.values() for site in names})
    return {
        site: tuple(group for group, names in flagged.items() if site in names) for site in sites
    }


def summary_of(introduction: SiteInfo) -> SiteSummary:
    """A site as reports and cards show it."""
    return SiteSummary(
        name=introduction.site,
        samples=introduction.samples,
        tokens=introduction.tokens,
        adapter=introduction.kind,
        rank=max(introduction.ranks, default=0),
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


def _site(introduction: SiteInfo) -> dict[str, Any]:
    return {
        "name": introduction.site,
        "samples": introduction.samples,
        "tokens": introduction.tokens,
        "skipped": introduction.skipped,
        "kind": introduction.kind,
        "ranks": dict(zip(introduction.layers, introduction.ranks, strict=True)),
    }


def _group(figures: Any) -> dict[str, Any]:
    about = asdict(figures)
    del about["covariate_shift"], about["bytes_up"], about["influence"], about["agreement"]
    for empty in [name for name in ("lost", "capped") if not about[name]]:
        del about[empty]
    return about
