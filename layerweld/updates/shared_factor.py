"""The frozen ``A`` that sites share: what a site says of its own, and whether it sends that."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from layerweld.errors import CohortError, RefusedReplyError
from layerweld.updates.proportion import OutOfProportionError
from layerweld.updates.update import Update

_DRAWN = "drawn "


class ForeignFactorError(OutOfProportionError):
    """Some sites brought another ``A`` than most: the run can only go on without them."""


def digest_of_factors(updates: Mapping[str, Update]) -> str:
    """SHA-256 over the names and the ``A`` of all layers; empty where one has none."""
    digest = hashlib.sha256()
    if not all(update.is_low_rank for update in updates.values()):
        return ""
    for name, update in sorted(updates.items()):
        digest.update(name.encode() + update.rows.contiguous().numpy().tobytes())
    return digest.hexdigest()


def digest_of_draw(seed: int, rank: int, layers: Sequence[str]) -> str:
    """SHA-256 over what draws an ``A`` that is not trained, known before there is one."""
    return _DRAWN + hashlib.sha256(repr((seed, rank, *layers)).encode()).hexdigest()


def require_claimed_factors(claimed: str, updates: Mapping[str, Update]) -> None:
    """Refuse a site whose ``A`` is not the one that its site info has the hash of.

    What draws an ``A`` says nothing about its bytes; see :func:`require_one_factor`.

    Raises:
        RefusedReplyError: it is not.
    """
    if not claimed or claimed.startswith(_DRAWN):
        return
    if digest_of_factors(updates) != claimed:
        raise RefusedReplyError(
            "the A of its LoRA is not the one that it announced in the handshake"
        )


def require_one_factor(by_site: Mapping[str, Mapping[str, Update]]) -> None:
    """Refuse the sites that have another ``A`` than more than half of all.

    Raises:
        ForeignFactorError: with these sites.
        CohortError: no ``A`` is that of more than half of the sites, so nobody is to blame.
    """
    factors = {
        site: (
            digest_of_factors(updates),
            tuple((layer, u.shape) for layer, u in sorted(updates.items())),
        )
        for site, updates in by_site.items()
    }
    most, count = Counter(factors.values()).most_common(1)[0]
    others = sorted(site for site, factor in factors.items() if factor != most)
    if not others:
        return
    if 2 * count <= len(factors):
        raise CohortError(
            f"the method needs one frozen A at all sites, and {', '.join(sorted(factors)[:8])} "
            f"sent different ones; fine-tune again with finetune.freeze-a = true"
        )
    raise ForeignFactorError(
        dict.fromkeys(others, "its frozen A is another than that of most sites; train it anew")
    )
