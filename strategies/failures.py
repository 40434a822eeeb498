"""Why a site failed, in our own words, and what happens to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import Error

from layerweld.errors import LostSiteError, RefusedReplyError
from layerweld.runtime.incidents import Code, parse_incident
from strategies.cohort import Cohort
from strategies.notices import notice

_FLOWER_ERRORS = {
    1: "it cannot load this application, or has another one installed: see `layerweld site check`",
    2: "its app raised an error",
    3: "the message expired before the reply came",
    4: "its reply was lost",
    5: "its node is not reachable",
    7: "it refused the app bundle",
    8: "its process died",
}
_LASTING = (1, 7)  # nothing changes until somebody at the site acts

_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0  # seconds before a failed site is asked again, doubling
_STRIKES = 3  # refused replies after which asking again is pointless
_LONGEST_REASON = 500  # characters

UNREACHABLE = _FLOWER_ERRORS[5]


@dataclass
class Asked:
    """Where one site of a poll stands.

    Attributes:
        message: id of the message that is out; empty while none is.
        until: when that message's time is over, or when to ask again.
        failures: in a row.
        strikes: refused replies.
        why: of the last failure, for humans.
    """

    message: str = ""
    until: float = 0.0
    failures: int = 0
    strikes: int = 0
    why: str = ""


@dataclass(frozen=True)
class Failures:
    """What a poll does about sites that fail: ask again later, lose them, or end the run.

    Attributes:
        cohort: the sites, with the policy.
        what: the request, for humans.
        open: the sites that have not replied.
        close: called to stop waiting for a site.
        now: in seconds; this class has no clock.
    """

    cohort: Cohort
    what: str
    open: dict[str, Asked]
    close: Callable[[str], None]
    now: float

    def failed(self, site: str, error: Error) -> None:
        """The site, or Flower, replied with an error."""
        incident = parse_incident(error.reason)
        if incident is not None and incident.code is Code.ADAPTER_LOST:
            self.cohort.lost_adapter(site)
            self.ask_later(site, f"{incident.code.meaning} ({incident}); it trains it again")
            return
        why, is_lasting = why_it_failed(error)
        if self.cohort.patience.fails_fast and is_lasting:
            raise LostSiteError(f"{site} failed at the {self.what}: {why}")
        self.pause(site, why)

    def pause(self, site: str, why: str) -> None:
        """Ask again after a while, unless the policy ends the run."""
        if self.cohort.patience.lost_site == "abort":
            raise LostSiteError(f"{site} failed at the {self.what}: {why}")
        self.ask_later(site, why)
        if self.cohort.move(site):
            self.open[site].until = 0.0

    def refused(self, site: str, error: RefusedReplyError) -> None:
        """A reply was refused; after a few the policy says what happens to the site."""
        self.cohort.ignored["refused"] += 1
        asked = self.open[site]
        asked.strikes += 1
        why = str(error)[:_LONGEST_REASON]
        self.ask_later(site, why)
        if asked.strikes < _STRIKES:
            return
        if self.cohort.patience.lost_site != "continue":
            raise RefusedReplyError(f"{site}, asked {_STRIKES} times: {why}") from error
        self._lose(site, why)

    def ask_later(self, site: str, why: str) -> None:
        """Ask again after a pause that doubles."""
        asked = self.open[site]
        wait = min(_FIRST_WAIT * 2 ** min(asked.failures, 10), _LONGEST_WAIT)
        asked.failures += 1
        asked.message, asked.until = "", self.now + wait
        if why != asked.why:
            self.cohort.waiting[site] = why
            notice(f"waiting for {site} at the {self.what}: {why}")
        asked.why = why

    def give_up(self) -> None:
        """The deadline is over for all sites that have not replied."""
        whys = {site: one.why or "it never replied" for site, one in sorted(self.open.items())}
        if self.cohort.patience.lost_site == "continue":
            for site, why in whys.items():
                self._lose(site, why)
            return
        reasons = "; ".join(f"{site}: {why}" for site, why in whys.items())
        raise LostSiteError(
            f"no reply to the {self.what} within {self.cohort.patience.deadline:.0f} s from "
            f"{reasons}. Merging without a site would silently drop its task: start it again and "
            f"type the same command, and the run resumes here"
        )

    def _lose(self, site: str, why: str) -> None:
        self.cohort.lose(site, why)
        self.close(site)
        notice(f"going on without {site}: {why}")


def why_it_failed(error: Error) -> tuple[str, bool]:
    """The reason, and whether nothing changes until somebody at the site acts.

    Flower's own texts may quote an exception, and a site may write anything. Neither is shown.
    """
    incident = parse_incident(error.reason)
    if incident is None:
        code = error.code
        return _FLOWER_ERRORS.get(code, f"Flower's error {code}"), code in _LASTING
    return (
        f"{incident.code.meaning} ({incident}; its log has the details)",
        incident.code.is_lasting,
    )
