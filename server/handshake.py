"""Whether the sites belong together: decided from their site infos, before anything is computed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from flwr.app import RecordDict

from layerweld import __version__
from layerweld.errors import CohortError, RefusedReplyError
from layerweld.formats.lora_config import TASKS
from layerweld.plan import MergePlan
from layerweld.transport.site_info import (
    FOUND_OUT_BY_TRAINING,
    SiteInfo,
    decode_site_info,
    differing,
)
from layerweld.untrusted.names import SITE_NAME
from layerweld.untrusted.text import quoted
from layerweld.updates.bounds import most_claimed

_SAME_VERSIONS = ("layerweld", "torch", "transformers")
_SAME_APP = "install the same version of the app everywhere"


def check_cohort(
    site_infos: Sequence[SiteInfo],
    *,
    base: str,
    tokenizer: str,
    plan: MergePlan,
    settings: str,
    prefix: str,
    versions: Mapping[str, str],
) -> None:
    """Refuse a mixed cohort, by name of the site and of the field.

    Args:
        site_infos: one per node.
        base: fingerprint of the server's base model.
        tokenizer: fingerprint of its tokenizer or image processor.
        plan: of the whole model.
        settings: digest of the settings.
        prefix: what a head class puts before the names of the base model's layers.
        versions: the server's own, by package. Everything that must be equal is compared with the
            server's: compared with each other, a site that lies could get an honest one named.

    Raises:
        CohortError: two sites have one name, or a site differs in something that must be equal.
    """
    for info in site_infos:
        if not re.fullmatch(SITE_NAME, info.site):
            raise CohortError(
                f"a node calls itself {info.site!r}, which cannot name a site: give it a "
                f"`name` of at most 63 letters, digits and ._-"
            )
    names = [info.site for info in site_infos]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise CohortError(
            f"two nodes call themselves {twice!r}; every site needs its own name: change one `name`"
        )
    expected = {"base": base, "tokenizer": tokenizer, "plan": plan.digest, "settings": settings}
    means = {
        "base": "another base model: copy the same folder to every site",
        "tokenizer": "another tokenizer or image processor: copy the whole base model folder there",
        "plan": "another merge plan: install the same transformers version everywhere",
        "settings": "other settings: " + _SAME_APP,
    }
    for info in sorted(site_infos, key=lambda one: one.site):
        for field, value in expected.items():
            theirs = getattr(info, field)
            if theirs != value:
                raise CohortError(
                    f"site {info.site}, {field}: {_short(theirs)} instead of {_short(value)}; "
                    f"{means[field]}"
                )
    for info in site_infos:
        check_layers(info, plan, prefix)
    for info in site_infos:
        _check_versions(info, versions)
    _check_rows(site_infos)


def check_layers(info: SiteInfo, plan: MergePlan, prefix: str) -> None:
    """Refuse layers that the model does not have, ranks that no LoRA needs, and foreign names.

    These decide how much a site may send later, and the names of the merged adapter's layers.

    Args:
        info: of the site.
        plan: of the whole model.
        prefix: what a head class puts before the names of its layers.

    Raises:
        CohortError: the site says such a thing.
    """
    if info.kind not in ("lora", "full", "none"):
        raise CohortError(f"site {info.site}, kind: {info.kind!r} is unknown; {_SAME_APP}")
    if info.task not in ("", *TASKS):
        raise CohortError(f"site {info.site}, task: {info.task!r} is unknown; {_SAME_APP}")
    if info.name_prefix not in ("", prefix):
        raise CohortError(
            f"site {info.site}, prefix: {info.name_prefix!r} before its layers' "
            f"names, and this base model has {prefix!r} or nothing; give the site an adapter of "
            f"this base model"
        )
    if len(info.layers) != len(info.ranks):
        raise CohortError(
            f"site {info.site}, ranks: {len(info.ranks)} for {len(info.layers)} layers; {_SAME_APP}"
        )
    _check_ranks(info, plan)


def _check_ranks(info: SiteInfo, plan: MergePlan) -> None:
    """Refuse layers that the model does not have or that come twice, and ranks of another kind.

    Rank 0 means that a layer changed as a whole: in a whole model all do, in an adapter none does.
    The merge relies on this, because factored and dense products cannot be summed.
    """
    site, kind, layers = info.site, info.kind, info.layers
    most = {s.name: most_claimed(s.d_out, g.d_in) for g in plan.groups for s in g.layers}
    if not layers:
        raise CohortError(
            f"site {site}, layers: none, but every adapter or model has some; {_SAME_APP}"
        )
    unknown = next((layer for layer in layers if layer not in most), None)
    if unknown is not None:
        raise CohortError(
            f"site {site}, layers: the model has no {quoted(unknown)} inside its blocks; "
            f"give the site an adapter of the layers that `layerweld plan BASE` lists"
        )
    if len({*layers}) < len(layers):
        raise CohortError(f"site {site}, layers: one comes twice; {_SAME_APP}")
    for layer, rank in zip(layers, info.ranks, strict=True):
        if kind == "full" and rank != 0:
            raise CohortError(
                f"site {site}, ranks: {rank} for {layer!r}, but a whole model has 0; {_SAME_APP}"
            )
        if kind != "full" and not 1 <= rank <= most[layer]:
            raise CohortError(
                f"site {site}, ranks: {rank} for {layer!r}, but there it is at most "
                f"{most[layer]}; give the site an adapter of a rank from 1 to {most[layer]}"
            )


def own_versions() -> dict[str, str]:
    """The server's versions of the packages that must be the same everywhere."""
    others = _SAME_VERSIONS[1:]
    return {"layerweld": __version__, **{package: version(package) for package in others}}


def _short(digest: str) -> str:
    return digest[:12] or "none"


def _check_versions(info: SiteInfo, versions: Mapping[str, str]) -> None:
    pairs = [entry.partition("=") for entry in info.versions]
    for package in _SAME_VERSIONS:
        said = [value for name, _, value in pairs if name == package]
        if len(said) != 1:
            raise CohortError(
                f"site {info.site}, {package}: {len(said)} versions instead of one; {_SAME_APP}"
            )
        if _minor(said[0]) != _minor(versions[package]):
            raise CohortError(
                f"site {info.site}, {package}: version {quoted(_minor(said[0]))} instead "
                f"of {_minor(versions[package])!r}; install the server's everywhere"
            )


def _minor(version_said: str) -> str:
    return ".".join(version_said.split("+")[0].split(".")[:2])


def _check_rows(site_infos: Sequence[SiteInfo]) -> None:
    for info in site_infos:
        drawn, samples = info.calibration_samples, info.samples
        if not 1 <= drawn <= samples or info.tokens < 1:
            raise CohortError(
                f"site {info.site} claims {drawn} calibration samples of {samples} and "
                f"{info.tokens} tokens; give the site samples that can be read"
            )


def merged_layers(site_infos: Sequence[SiteInfo], plan: MergePlan) -> MergePlan:
    """The plan of the layers that at least one site has fine-tuned.

    Raises:
        PlanError: one of them lies outside of the model's blocks.
    """
    return plan.restricted_to({layer for one in site_infos for layer in one.layers})


def read_trained(content: RecordDict, before: SiteInfo) -> SiteInfo:
    """Who the site is once it has an adapter: the same as before, except for what training decides.

    Raises:
        RefusedReplyError: it is another site, or still has no adapter.
    """
    info = decode_site_info(content)
    others = [field for field in differing(before, info) if field not in FOUND_OUT_BY_TRAINING]
    if others or info.kind == "none":
        raise RefusedReplyError(f"after fine-tuning it has another {', '.join(others)}")
    if before.kind == "none":
        _require_planned(before, info)
    return info


def _require_planned(before: SiteInfo, info: SiteInfo) -> None:
    """Require the LoRA that was announced: the run's methods were checked against it."""
    planned = dict(zip(before.layers, before.ranks, strict=True))
    trained = list(zip(info.layers, info.ranks, strict=False))
    if info.kind != "lora" or len(trained) != len(planned) or dict(trained) != planned:
        raise RefusedReplyError(
            "after fine-tuning it does not have a LoRA of the layers and ranks that it announced"
        )
