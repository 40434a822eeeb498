"""What a run reports of its merges, and its output folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from layerweld import __version__
from layerweld.formats.export import write_adapter, write_model
from layerweld.model.base_model import BaseModel
from layerweld.report.model_card import write_model_card
from layerweld.report.output_folder import finished_together
from layerweld.report.results import Form, MethodResult, RunResults, SiteSummary
from layerweld.report.run.files import write_results
from layerweld.settings.methods import TABLES, methods_of
from layerweld.settings.run import RunSettings, Scalar
from layerweld.statistics.influence import opposed, outliers
from layerweld.transport.site_info import SiteInfo
from layerweld.updates.update import all_low_rank
from server.cohort_warnings import of_most
from server.federation import Federation
from server.manifest import write_environments, write_manifest
from server.merged_model import MergedModel

_PACKAGES = ("torch", "transformers", "peft", "lightning", "flwr")


def write_output(
    output: Path, federation: Federation, merged: MergedModel, methods: Sequence[MethodResult]
) -> RunResults:
    """Write all that a run makes, or nothing.

    Args:
        output: the run's output folder.
        federation: the run.
        merged: what is written out.
        methods: all that the report shows.

    Raises:
        StorageError: the disk is full; the journal stays.
        UnusableMergeError: the merge holds numbers that no model can use.
    """
    prefix = of_most(info.name_prefix for info in federation.site_infos)
    task = of_most(info.task for info in federation.site_infos)
    with finished_together(output) as folder:
        form = _write_merge(folder, merged, federation.base, prefix, task)
        results = RunResults(
            name=federation.settings.name,
            base=federation.base.name,
            sites=tuple(map(site_summary, federation.site_infos)),
            methods=tuple(methods),
            chosen=merged.method.name,
            form=form,
            settings=_settings_in_use(federation.settings),
            manifest_hash=write_manifest(folder, form, merged, federation),
            lost=federation.lost,
            ignored=dict(sorted(federation.ignored.items())),
            versions={"layerweld": __version__} | {name: version(name) for name in _PACKAGES},
            prefix=prefix,
            task=task,
        )
        write_model_card(folder / form, results, merged.method)
        write_results(folder, results)
        write_environments(folder, federation)
    return results


def _write_merge(
    folder: Path, merged: MergedModel, base: BaseModel, prefix: str, task: str
) -> Form:
    """Write the merged adapter, or the merged model where it is not a LoRA, into a folder of it."""
    factored = all_low_rank(merged.updates.values())
    if factored and not merged.other_params:
        low_rank = dict(zip(merged.updates, factored, strict=True))
        write_adapter(folder / "adapter", low_rank, base, prefix, task)
        return "adapter"
    write_model(folder / "model", merged.updates, merged.other_params, base)
    return "model"


def method_result(merged: MergedModel, shifts: Mapping[str, Mapping[str, float]]) -> MethodResult:
    """One merged model as the report shows it.

    Args:
        merged: with its scores.
        shifts: covariate shift by layer group and site; empty where it was not measured.
    """
    groups = tuple(
        replace(group, covariate_shift=dict(shifts.get(group.name, {}))) for group in merged.groups
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
        metrics=merged.metrics,
        lost=merged.lost,
    )


def site_summary(info: SiteInfo) -> SiteSummary:
    """A site as reports and cards show it."""
    return SiteSummary(
        name=info.site,
        samples=info.calibration_samples,
        tokens=info.tokens,
        adapter=info.kind,
        rank=max(info.ranks, default=0),
    )


def _by_site(flagged: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The groups in which each site is flagged, from the sites that each group flags."""
    sites = sorted({site for names in flagged.values() for site in names})
    return {
        site: tuple(group for group, names in flagged.items() if site in names) for site in sites
    }


def _settings_in_use(settings: RunSettings) -> dict[str, Scalar]:
    """All settings of the run but the tables of methods that it does not run."""
    used = {table for method in methods_of(settings) for table in method.tables}
    unused = TABLES - used - {"merge"}
    return {k: v for k, v in settings.flat().items() if k.partition(".")[0] not in unused}
