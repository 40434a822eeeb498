"""How much one site sends for a method: counted from the arrays that the server will expect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from layerweld.merging.adamerging import AdaMerging
from layerweld.merging.method import CHAIN, DISTILLATION, ENTROPY, FISHER, Method, Quantity
from layerweld.merging.prodistill import ProDistill
from layerweld.model.schedule import block_steps, schedule
from layerweld.plan import MergePlan
from layerweld.settings.methods import sent_by, settings_for
from layerweld.settings.run import RunSettings
from layerweld.statistics.group import ProductForm
from layerweld.transport.block_gradients import block_gradients_layout
from layerweld.transport.coefficients import coefficients_layout
from layerweld.transport.fisher import fisher_layout
from layerweld.transport.statistics import statistics_layout
from layerweld.transport.updates import updates_layout

IN_THE_HANDSHAKE = (
    "in the handshake: name, hashes, layers, ranks, versions, counts of samples and tokens, "
    "whether it has labels and a head"
)
"""What a site says of itself in any run: its :class:`layerweld.transport.site_info.SiteInfo`."""


@dataclass(frozen=True)
class Upload:
    """What one site sends for one method, in bytes of numbers without any header.

    Attributes:
        method: which.
        sends: what leaves the site.
        rounds: from the first to the last.
        num_bytes: in all rounds together.
        group_bytes: of each layer group in one round; empty for methods without groups.
        grows_with_sites: whether a site sends more where more sites take part.
    """

    method: Method
    sends: tuple[Quantity, ...]
    rounds: int
    num_bytes: int
    group_bytes: tuple[int, ...] = ()

    @property
    def grows_with_sites(self) -> bool:
        """Whether a site sends more where more sites take part."""
        return self.method.kind is ENTROPY


def upload_of(
    method: Method, settings: RunSettings, plan: MergePlan, ranks: Mapping[str, int]
) -> Upload:
    """Count one method's upload.

    Args:
        method: as :func:`layerweld.settings.methods.method_named` gives it.
        settings: of the run; where sites have a say in the number of bytes, ``min-sites`` of them
            are taken to be there.
        plan: the layers that are merged.
        ranks: LoRA rank of each layer that the site fine-tuned; 0 where the whole layer changed.
    """
    sends = sent_by(method, settings)
    if method.kind is CHAIN:
        return _of_chain(method, sends, settings, plan, ranks)
    if method.kind is FISHER:
        return Upload(method, sends, 1, fisher_layout(plan).num_bytes)
    rounds, num_bytes = 1, updates_layout(plan, ranks).num_bytes
    if method.kind is ENTROPY:
        steps = settings.table(AdaMerging).rounds
        layout = coefficients_layout(settings.min_sites, len(plan.layer_names))
        rounds, num_bytes = 1 + steps, num_bytes + steps * layout.num_bytes
    if method.kind is DISTILLATION:
        steps = settings.table(ProDistill).steps
        rounds += steps * len(block_steps(plan))
        num_bytes += steps * block_gradients_layout(plan.shapes).num_bytes
    return Upload(method, sends, rounds, num_bytes)


def _of_chain(
    method: Method,
    sends: tuple[Quantity, ...],
    settings: RunSettings,
    plan: MergePlan,
    ranks: Mapping[str, int],
) -> Upload:
    merge = settings_for(method, settings).merge
    form = ProductForm(merge.products == "dense", with_updates=merge.anchor == "mean")
    size = {g.name: statistics_layout([g], ranks, form).num_bytes for g in plan.groups}
    steps = schedule(plan, merge)
    num_bytes = sum(size[group.name] for step in steps for group in step.groups)
    return Upload(method, sends, len(steps), num_bytes, tuple(size.values()))
