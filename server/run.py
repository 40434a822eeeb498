"""Run a federation, from its settings to its output folder."""

from __future__ import annotations

import time
from pathlib import Path

from flwr.serverapp import Grid

from layerweld.out_of_memory import raising_memory_shortage
from layerweld.report.output_folder import JOURNAL, check_output_folder
from layerweld.report.results import MethodResult, RunResults
from layerweld.report.run.site_warnings import site_warnings
from layerweld.report.scores import REFERENCES
from layerweld.runtime.disk import holding_lock, lock_of
from layerweld.runtime.numerics import numeric_environment, use_threads
from layerweld.runtime.run_state import Recorder, recording
from layerweld.settings.methods import measuring_shift
from layerweld.settings.run import RunSettings
from server.cohort_warnings import warnings_of
from server.end_of_run import end_run
from server.federation import Federation
from server.journal import RunJournal
from server.merged_model import MergedModel
from server.output import method_result, write_output
from server.requirements import check_methods
from strategies.notices import notice

_LABELS = {"base": "Base model", "individual": "Individual fine-tuning"}


def run(grid: Grid, settings: RunSettings, base: str, output: Path) -> RunResults:
    """Merge, evaluate where the sites can, and write the output folder.

    Args:
        grid: Flower's grid: in this process, a simulation's or a deployment's.
        settings: of the run.
        base: folder of the base model at the server.
        output: folder to create; one that holds the journal of an interrupted run is resumed.

    ``state.json`` in the output folder says how far the run is, and later how it ended.

    Returns:
        What the report shows.

    Raises:
        InUseError: another run is using the output folder.
        LayerweldError: the run failed. What was solved is in the journal; the same call resumes.
    """
    with holding_lock(lock_of(output), str(output)):
        check_output_folder(output)
        with recording(output) as recorder, raising_memory_shortage():
            return _run(grid, settings, base, output, recorder)


def _run(
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
    methods = [*references, *(result for _, result in merges)]
    results = write_output(output, federation, merges[0][0], methods)
    recorder.complete()
    journal.remove()
    end_run(federation.grid, federation.cohort)
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
        for warning in site_warnings(result):
            notice(f"warning: {warning}")
        merges.append((merged, result))
    return merges


def reference_results(federation: Federation) -> list[MethodResult]:
    """Scores of the base model and each site's own: what merges are compared with."""
    if not federation.sites_can_evaluate:
        return []
    return [reference_result(federation, kind) for kind in REFERENCES]


def reference_result(federation: Federation, kind: str) -> MethodResult:
    """The scores of the base model, or of each site's own model, at the sites.

    Args:
        federation: whose sites can evaluate.
        kind: one of ``REFERENCES``.
    """
    started = time.perf_counter()
    scores = federation.evaluate(kind)
    seconds = time.perf_counter() - started
    return MethodResult(kind, _LABELS[kind], 0, seconds, 0, 0, scores)
