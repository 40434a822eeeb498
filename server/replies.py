"""What a site's reply to the server's own requests must hold; anything else is refused."""

from __future__ import annotations

from flwr.app import RecordDict

from layerweld.errors import RefusedReplyError
from layerweld.report.results import Score
from layerweld.transport.evaluation import decode_accuracy
from layerweld.transport.site_info import (
    FOUND_OUT_BY_TRAINING,
    SiteInfo,
    decode_site_info,
    differing,
)


def read_site_info(_site: str, content: RecordDict) -> SiteInfo:
    """Who the site is."""
    return decode_site_info(content)


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


def read_score(_site: str, content: RecordDict) -> Score:
    """Held-out accuracy at one site.

    Raises:
        RefusedReplyError: it is not a share, or not a number of samples.
    """
    return Score(*decode_accuracy(content))
