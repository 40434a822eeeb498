"""Why a site failed, as it or Flower says it, in words of ours."""

from __future__ import annotations

from flwr.app import Error

from layerweld.runtime.incidents import parse_incident

_FLOWER_ERRORS = {
    1: "it cannot load this application, or has another one installed: see `layerweld site check`",
    2: "its app raised an error",
    3: "the message expired before it was answered",
    4: "its reply was lost",
    5: "its node is not reachable",
    7: "it refused the app bundle",
    8: "its process died",
}
_LASTING = (1, 7)  # of these: nothing changes until somebody at the site acts

UNREACHABLE = _FLOWER_ERRORS[5]


def why_it_failed(error: Error) -> tuple[str, bool]:
    """The reason, and whether nothing changes until somebody at the site acts.

    Flower's own texts may quote an exception, and a site may write what it likes; neither is shown.
    """
    incident = parse_incident(error.reason)
    if incident is None:
        code = error.code
        return _FLOWER_ERRORS.get(code, f"Flower's error {code}"), code in _LASTING
    return (
        f"{incident.code.meaning} ({incident}; its log has the details)",
        incident.code.is_lasting,
    )
