"""Play one run from its settings to its output folder."""

from __future__ import annotations

import time
from pathlib import Path

from flwr.serverapp import Grid

from layerweld.out_of_memory import naming_memory
from layerweld.report.output_folder import JOURNAL, check_output_folder, finished_together
from layerweld.report.results import Form, MethodResult, RunResults, Score
from layerweld.report.run.files import write_results
from layerweld.report.scores import REFERENCES
from layerweld.runtime.disk import lock_of, only_here
from layerweld.runtime.numerics import numeric_environment, use_threads
from layerweld.runtime.run_state import Recorder, recording
from layerweld.settings.methods import measuring_shift
from layerweld.settings.run import RunSettings
from server.cohort_warnings import of_most, warnings_of
from server.farewell import dismiss
from server.federation import Federation
from server.journal import RunJournal
from server.merge_warnings import influence_warnings
from server.merged_model import MergedModel
from server.output import (
    method_result,
    run_results,
    write_card,
    write_environments,
    write_manifest,
    write_merge,
)
from server.requirements import check_methods
from strategies.notices import notice

_LABELS = {"base": "Base model", "individual": "Individual fine-tuning"}


def play(grid: Grid, settings: RunSettings, base: str, output: Path) -> RunResults:
    """Merge, evaluate where the sites can, and write the output folder.

    Args:
        grid: Flower's grid: in this process, a simulation's or a deployment's.
        settings: of the run.
        base: folder of the base model at the server.
        output: folder to create; one that holds the journal of an interrupted run is resumed.

    ``state.json`` in the output folder says meanwhile how far it is, and how it ended afterwards.

    Returns:
        What the report shows.

    Raises:
        InUseError: another run works in the output folder.
        LayerweldError: as the class says. What was solved is in the journal; the same call resumes.
    """
    with only_here(lock_of(output), str(output)):
        check_output_folder(output)
        with recording(output) as recorder, naming_memory():
            return _play(grid, settings, base, output, recorder)


def _play(
    grid: Grid, settings: RunSettings, base: str, output: Path, recorder: Recorder
) -> RunResults:
    use_threads(settings.calibration.threads)
    journal = RunJournal(output / JOURNAL)
    federation = Federation(grid, settings, base, journal)
    recorder.waiting_for = federation.waiting.copy
    federation.introduce()
    check_methods(federation.methods, settings, federation.site_infos)
    here = numeric_environment(settings.calibration.device)
    for warning in warnings_of(federation.site_infos, federation.plan, here):
        notice(f"warning: {warning}")
    federation.fine_tune()
    federation.begin_journal()
    merges = _merge_all(federation)
    references = reference_results(federation)
    results = _write(federation, merges, references, output)
    recorder.complete()
    journal.remove()
    dismiss(federation.grid, federation.cohort)
    return results


def _merge_all(federation: Federation) -> list[tuple[MergedModel, MethodResult]]:
    other_params = federation.average_other_params()
    merges = []
    measured = measuring_shift(federation.settings)
    for method in federation.methods:
        merged = federation.merge(method, other_params)
        if federation.sites_can_evaluate:
            merged.scores.update(federation.evaluate("merged", merged))
        shifts = federation.measure_shift(merged) if method in measured else {}
        result = method_result(merged, shifts)
        for warning in influence_warnings(result):
            notice(f"warning: {warning}")
        merges.append((merged, result))
    return merges


def reference_results(federation: Federation) -> list[MethodResult]:
    """The base model and each site's own: what merges are measured against."""
    if not federation.sites_can_evaluate:
        return []
    return [reference_result(federation, kind) for kind in REFERENCES]


def reference_result(federation: Federation, kind: str) -> MethodResult:
    """What the base model, or each site's own, scores at the sites.

    Args:
        federation: whose sites can evaluate.
        kind: one of ``REFERENCES``.
    """
    started = time.perf_counter()
    scores = federation.evaluate(kind)
    seconds = time.perf_counter() - started
    return MethodResult(kind, _LABELS[kind], 0, seconds, 0, 0, scores)


def _write(
    federation: Federation,
    merges: list[tuple[MergedModel, MethodResult]],
    references: list[MethodResult],
    output: Path,
) -> RunResults:
    chosen = merges[0][0]
    prefix = of_most(info.name_prefix for info in federation.site_infos)
    task = of_most(info.task for info in federation.site_infos)
    sites, settings, base = federation.site_infos, federation.settings, federation.base
    methods = [*references, *(result for _, result in merges)]
    scores: dict[str, dict[str, Score]] = {
        method.label: dict(method.scores) for method in (*references, merges[0][1]) if method.scores
    }
    with finished_together(output) as folder:
        files = write_merge(folder, chosen, base, prefix, task)
        manifest_hash = write_manifest(folder, chosen, base, sites, settings, files)
        write_card(folder, base, sites, settings, scores, prefix, task, chosen)
        form: Form = "adapter" if (folder / "adapter").is_dir() else "model"
        results = run_results(
            settings,
            base,
            sites,
            methods,
            chosen.method.name,
            form,
            manifest_hash,
            federation.lost,
            federation.ignored,
            prefix,
            task,
        )
        write_results(folder, results)
        write_environments(folder, sites, settings)
    return results
