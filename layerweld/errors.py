"""Errors a user can act on. Our own mistakes stay ``ValueError`` and ``TypeError``.

Every error knows the exit code of the command that ends with it, and what to type next;
``docs/exit-codes.md`` lists them all.
"""

from typing import ClassVar

UNFORESEEN = 1
"""Exit code of an unforeseen error: it comes with a traceback, and is a bug."""


class LayerweldError(Exception):
    """Base class: catch it to catch everything that this package raises on purpose."""

    exit_code: ClassVar[int] = UNFORESEEN
    next_step: ClassVar[str] = "report it, with the traceback"


class ConfigError(LayerweldError):
    """A setting is unknown, misspelled or contradicts another."""

    exit_code = 3
    next_step = "correct the setting and type the same command again"


class AdapterError(LayerweldError):
    """An adapter or checkpoint folder cannot be read as a task vector of the base model."""

    exit_code = 4
    next_step = "give the site another adapter and type the same command again"


class AdapterLostError(AdapterError):
    """An adapter that the site trained itself is missing or damaged: it can train it again."""


class DataError(LayerweldError):
    """A site's data cannot be read, or has nothing to calibrate on."""

    exit_code = 5
    next_step = "correct the site's data and type the same command again"


class PlanError(LayerweldError):
    """The model cannot be cut into layer groups, or a layer lies outside of them."""

    exit_code = 6
    next_step = "look at `layerweld plan BASE`"


class CohortError(LayerweldError):
    """The sites do not belong together, or too few of them came."""

    exit_code = 7
    next_step = "make the named site equal to the others and type the same command again"


class LostSiteError(LayerweldError):
    """A site failed or did not reply, and the run's policy does not let it continue without it."""

    exit_code = 8
    next_step = "start the named site again and type the same command: the run resumes"


class RefusedReplyError(LayerweldError):
    """A reply is to another request, or breaks an invariant of honest statistics."""

    exit_code = 9
    next_step = "look into the named site, then type the same command: the run resumes"


class StaleReplyError(RefusedReplyError):
    """A reply to another request than the one sent: late, or replayed."""


class UnreadableReplyError(RefusedReplyError):
    """A reply that cannot be put together from what was sent, or is larger than it may be."""


class JournalError(LayerweldError):
    """The journal of an earlier run is damaged, or belongs to other settings."""

    exit_code = 10
    next_step = "do what the message says with the named file, then type the same command again"


class OutputError(LayerweldError):
    """The output folder has something else in it, or cannot be created."""

    exit_code = 11
    next_step = "type the command with another output folder"


class StorageError(LayerweldError):
    """A file cannot be written: the disk is full, or the folder is read-only."""

    exit_code = 12
    next_step = "free space or change the permissions and type the same command: the run resumes"


class InUseError(LayerweldError):
    """Another process is using the same folder."""

    exit_code = 13
    next_step = "wait for the other process to end, or choose another folder"


class DeployError(LayerweldError):
    """A folder, key, certificate or process of a coordinator or site is not as it must be."""

    exit_code = 14
    next_step = "do what the message says, then type the same command again"


class RunFailedError(LayerweldError):
    """A run reached a final state other than completed."""

    exit_code = 15
    next_step = "fix the cause and type `layerweld coordinator resume`: solved groups are kept"


class MemoryShortageError(LayerweldError):
    """A process has run out of memory, or an accelerator has."""

    exit_code = 16
    next_step = (
        "give it more memory and type the same command: the run resumes; or begin "
        "anew with a smaller `calibration.batch-size`"
    )


class UnusableMergeError(LayerweldError):
    """A merge came out with numbers that no model can use: not finite, or far too large."""

    exit_code = 17
    next_step = (
        "look into the named site, or raise `merge.ridge`, and type the same command again; "
        "what was solved before is kept"
    )


class DifferentMergeError(LayerweldError):
    """Two runs made merges that differ by more than the tolerance."""

    exit_code = 18
    next_step = "look at the differences in machines, settings and sites, or raise `--tolerance`"
