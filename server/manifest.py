"""``manifest.json``: what was merged, how, and what came out; and what it was computed with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from layerweld import __version__
from layerweld.report.output_folder import ENVIRONMENTS
from layerweld.report.results import Form, GroupMetrics
from layerweld.runtime.numerics import numeric_environment
from layerweld.settings.methods import settings_for
from layerweld.transport.site_info import SiteInfo
from server.federation import Federation
from server.merged_model import MergedModel


def write_manifest(folder: Path, form: Form, merged: MergedModel, federation: Federation) -> str:
    """Write ``manifest.json`` beside the files of a merge, which it names with their hashes.

    It holds no time, no path, no run number and no processor: the same merge gives the same bytes,
    wherever and however often interrupted it is run. What it was computed with is in
    ``environment.json`` (:func:`write_environments`).

    Returns:
        SHA-256 of the manifest.
    """
    base = federation.base
    manifest = {
        "layerweld": __version__,
        "method": merged.method.name,
        "base": {"name": base.name, "fingerprint": base.fingerprint},
        "settings": _settings(merged, federation),
        "sites": [_site(info) for info in federation.site_infos],
        "groups": [_group(group) for group in merged.groups],
        "chain_digest": merged.chain_digest,
        "files": _hashes(folder, form),
        "metrics": dict(merged.metrics),
    } | ({"lost": list(merged.lost)} if merged.lost else {})
    text = _json(manifest)
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def write_environments(folder: Path, federation: Federation) -> None:
    """Write ``environment.json``: where another run's bits may differ from this one's."""
    environments = {
        "coordinator": numeric_environment(federation.settings.calibration.device),
        "sites": {one.site: list(one.environment) for one in federation.site_infos},
    }
    (folder / ENVIRONMENTS).write_text(_json(environments), encoding="utf-8")


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _hashes(folder: Path, form: Form) -> dict[str, str]:
    """SHA-256 of every file of the merge, by its path in the folder."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted((folder / form).rglob("*"))
        if file.is_file()
    }


def _settings(merged: MergedModel, federation: Federation) -> dict[str, Any]:
    """The tables that have a say in the merge."""
    effective = settings_for(merged.method, federation.settings)
    tables = effective.model_dump(by_alias=True)
    names = ("merge", "calibration", *merged.method.tables)
    return {name: tables[name] for name in names}


def _site(info: SiteInfo) -> dict[str, Any]:
    return {
        "name": info.site,
        "samples": info.calibration_samples,
        "tokens": info.tokens,
        "skipped": info.skipped,
        "kind": info.kind,
        "ranks": dict(zip(info.layers, info.ranks, strict=True)),
    }


def _group(group: GroupMetrics) -> dict[str, Any]:
    values = asdict(group)
    for measured in ("covariate_shift", "bytes_up", "influence", "agreement"):
        del values[measured]
    return {k: v for k, v in values.items() if v or k not in ("lost", "capped")}
