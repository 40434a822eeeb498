"""The sites of a run as the server reaches them: at which node each one is, and who is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from layerweld.errors import LostSiteError, RefusedReplyError
from layerweld.settings.run import LostSite, RunSettings
from layerweld.transport.site_info import FOUND_OUT_BY_TRAINING, SiteInfo, differing
from layerweld.updates.proportion import OutOfProportionError, Part, refuse_parts_out_of_proportion
from strategies.notices import notice


@dataclass(frozen=True)
class Patience:
    """What is tolerated from a site: how long it is waited for, and how large its numbers may be.

    Attributes:
        timeout: seconds that a site may take for one message.
        deadline: seconds after which a round no longer waits.
        lost_site: the policy, as in :attr:`layerweld.settings.run.RunSettings.lost_site`.
        min_sites: with fewer no run continues.
        fails_fast: whether a failure that somebody at the site must fix ends the run at once:
            in the handshake, when nothing has been computed yet that waiting would save.
        max_size: how many times the median of the others' a site's numbers may be.
    """

    timeout: float
    deadline: float
    lost_site: LostSite
    min_sites: int
    fails_fast: bool = False
    max_size: float = 30.0

    @classmethod
    def of(cls, settings: RunSettings) -> Patience:
        """What the run's settings say."""
        return cls(
            settings.timeout,
            settings.deadline,
            settings.lost_site,
            settings.min_sites,
            max_size=settings.merge.max_size,
        )

    @classmethod
    def of_handshake(cls, settings: RunSettings) -> Patience:
        """Of the handshake: it is over after one message's time, and leaves no site out."""
        return cls(settings.timeout, settings.timeout, "wait", settings.min_sites, fails_fast=True)


class Cohort:
    """The sites being merged.

    Flower's node ids change when a site restarts without a registered key; names do not. An unknown
    node is a returning site if its site info is exactly that site's.

    Args:
        nodes: Flower's node id of each site, by the site's name.
        site_infos: each site's info, by name; a site without one cannot return under another node
            id.
        run: identifies the run.
        patience: how long sites are waited for.
        waiting: kept up to date: why each site that has not replied yet is asked again, by name;
            an empty text if it has said nothing so far.
    """

    def __init__(
        self,
        nodes: Mapping[str, int],
        site_infos: Mapping[str, SiteInfo],
        run: str,
        patience: Patience,
        waiting: dict[str, str] | None = None,
    ) -> None:
        self.site_infos = dict(site_infos)
        self.run = run
        self.patience = patience
        self.lost: dict[str, str] = {}
        """Why each lost site was given up, by name."""
        self.waiting = {} if waiting is None else waiting
        self.ignored: Counter[str] = Counter()
        """Replies that were dropped, by kind: ``foreign``, ``duplicate``, ``stale`` (to another
        request), ``refused``, ``unknown site``."""
        self.untrained: set[int] = set()
        """Nodes of sites that have lost the adapter that they trained: each trains it again, and
        is the same then, before anything else is asked of it."""
        self._nodes = dict(nodes)
        self._turned_away: set[int] = set()
        self._returned: dict[str, int] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The sites that are still in, sorted."""
        return tuple(sorted(self._nodes.keys() - self.lost.keys()))

    def node_of(self, site: str) -> int:
        """The node where a site was seen last."""
        return self._nodes[site]

    def site_at(self, node: int) -> str | None:
        """The site at a node."""
        return next((site for site in self.names if self._nodes[site] == node), None)

    def unknown_among(self, nodes: set[int]) -> set[int]:
        """Nodes that belong to no site, and were not turned away before."""
        known = {*self._nodes.values(), *self._returned.values()}
        return nodes - known - self._turned_away

    def turn_away(self, node: int) -> None:
        """Never ask this node again."""
        self._turned_away.add(node)
        self.ignored["unknown site"] += 1

    def recognise(self, info: SiteInfo) -> str:
        """The site of a node with this info.

        A site that has lost the adapter that it trained is recognised by everything else.

        Raises:
            RefusedReplyError: it is no site's, or that site's info was another at first.
        """
        known = self.site_infos.get(info.site)
        if known is None or info.site in self.lost:
            raise RefusedReplyError(f"{info.site!r} is not a site of this run")
        if (known.kind == "none") != (info.kind == "none"):
            # It fine-tuned before its first reply was lost, or has lost what it trained.
            known_only = {name: getattr(known, name) for name in FOUND_OUT_BY_TRAINING}
            info = replace(info, **known_only)
        others = differing(known, info)
        if others:
            raise RefusedReplyError(
                f"{info.site} returned with another {', '.join(others)} than it began "
                f"with; start it with the same model, data, adapter and versions"
            )
        return info.site

    def lost_adapter(self, site: str) -> None:
        """Note that a site has lost its adapter, if it had trained one: it must train again."""
        if self._has_trained(site):
            self.untrained.add(self.node_of(site))

    def trained_again(self, info: SiteInfo, site: str, node: int) -> None:
        """Accept the adapter that a site has trained again: it must be the same, to the bit.

        Raises:
            RefusedReplyError: it is another one.
        """
        require_same_training(self.site_infos[site], info)
        self.untrained.discard(node)

    def note(self, info: SiteInfo, node: int) -> None:
        """Note that a site has said who it is at a new node.

        If it has lost the adapter that it trained, the node is one of the :attr:`untrained`.
        """
        self._returned[info.site] = node
        if info.kind == "none" and self._has_trained(info.site):
            self.untrained.add(node)

    def _has_trained(self, site: str) -> bool:
        known = self.site_infos.get(site)
        return known is not None and known.kind != "none"

    def move(self, site: str) -> bool:
        """From now on use the node that :meth:`note` has noted, if there is one."""
        if site not in self._returned:
            return False
        self._nodes[site] = self._returned.pop(site)
        return True

    def lose(self, site: str, why: str) -> None:
        """Give a site up for the rest of the run.

        Raises:
            LostSiteError: too few sites would be left.
        """
        self.lost[site] = why
        if len(self.names) < max(1, self.patience.min_sites):
            raise LostSiteError(
                f"{site}: {why}; {len(self.names)} sites would be left, and min-sites is "
                f"{self.patience.min_sites}"
            )

    def require_proportion(self, sites: Mapping[str, Mapping[str, Part]], what: str) -> None:
        """Refuse parts that are many times as large as the other sites'.

        Raises:
            OutOfProportionError: one has; the message names the site and the part.
        """
        refuse_parts_out_of_proportion(sites, self.patience.max_size, what)

    def part_with(self, error: OutOfProportionError) -> None:
        """Continue without the sites that an error names, if the policy allows that.

        They would send the same again, so nothing is asked again.

        Raises:
            OutOfProportionError: the policy does not allow it.
            LostSiteError: too few sites would be left.
        """
        if self.patience.lost_site != "continue":
            raise error
        for site, why in sorted(error.reasons.items()):
            self.lose(site, why)
            notice(f"going on without {site}: {why}")


def require_same_training(begun: SiteInfo, now: SiteInfo) -> None:
    """Refuse a site that lost the adapter that it had trained, and has trained another one.

    Raises:
        RefusedReplyError: it has; the message says what to do.
    """
    others = differing(begun, now)
    if others:
        raise RefusedReplyError(
            f"it lost the adapter that it had trained for this run, and trained another one (other "
            f"{', '.join(others)}), as other hardware or versions do: put its cache folder back "
            f"from a copy and type the same command, or begin the run anew"
        )
