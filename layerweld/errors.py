"""Errors a user can act on. Our own mistakes stay ``ValueError`` and ``TypeError``."""


class LayerweldError(Exception):
    """Base class, so that a caller can catch everything this package raises on purpose."""


class ConfigError(LayerweldError):
    """A setting is unknown, misspelled or contradicts another."""


class AdapterError(LayerweldError):
    """An adapter or checkpoint folder cannot be read as a task vector of the base model."""


class DataError(LayerweldError):
    """A site's data cannot be read, or holds nothing to calibrate on."""


class PlanError(LayerweldError):
    """The model cannot be cut into layer groups, or a layer lies outside of them."""


class CohortError(LayerweldError):
    """The sites do not belong together, or one of them failed or stayed silent."""


class RefusedReplyError(LayerweldError):
    """A reply answers another question, or breaks an invariant of honest statistics."""


class JournalError(LayerweldError):
    """The journal of an earlier run is damaged, or belongs to other settings."""


class OutputError(LayerweldError):
    """The output folder is in use or cannot be written."""


class DeployError(LayerweldError):
    """A coordinator or site folder, key, certificate or process is not as it must be."""


class RunFailedError(LayerweldError):
    """A run reached a final state other than completed."""
