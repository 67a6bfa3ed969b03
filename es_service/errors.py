"""The error tree. Every error that a user can cause names the field or file and the remedy.

    ServiceError
    ├── ConfigError (ValueError)        a field of the config, before any actor starts
    ├── DataError (ValueError)          a corpus that is missing, too small or not the one of the run
    ├── RunError                        a run that does not exist, exists already, or is in use
    ├── JournalError                    a damaged or foreign journal; names the byte offset
    ├── KeyframeError                   a keyframe that is damaged or belongs elsewhere
    ├── StepsError                      a damaged or foreign steps file; names the byte offset
    ├── DivergenceError                 replicas and canonical parameters disagree
    │   └── WrongStepError              an update that does not follow from its votes was applied
    ├── MessageError (ValueError)       a payload from a peer that is not well formed
    └── BackendError (RuntimeError)     a backend that cannot be had here, or a kernel's bad argument

All are built from positional strings only, so that they survive pickling across Ray.
"""

__all__ = [
    "BackendError",
    "ConfigError",
    "DataError",
    "DivergenceError",
    "JournalError",
    "KeyframeError",
    "MessageError",
    "RunError",
    "ServiceError",
    "StepsError",
    "WrongStepError",
]


class ServiceError(Exception):
    """Base of every error that this project raises on purpose."""


class ConfigError(ServiceError, ValueError):
    """A config value that cannot be used; the message names the field and the remedy."""


class DataError(ServiceError, ValueError):
    """A corpus that is missing, too small for the config, or not the one that the run began with."""


class RunError(ServiceError):
    """A run directory that is missing, taken, locked or not writable."""


class JournalError(ServiceError):
    """A journal that cannot be trusted; the message names the file and the byte offset."""


class KeyframeError(ServiceError):
    """A keyframe or export that is damaged or belongs to another run."""


class StepsError(ServiceError):
    """A steps file that cannot be used; the message names the file and the byte offset."""


class DivergenceError(ServiceError):
    """Replicas agree with each other and not with the canonical parameters: the run pauses."""


class WrongStepError(DivergenceError):
    """Workers agreed on an update that does not follow from its votes, and it was applied: the run pauses."""


class MessageError(ServiceError, ValueError):
    """A payload from a peer that is malformed, too large or out of range."""


class BackendError(ServiceError, RuntimeError):
    """A backend that this machine cannot run, or an array that a kernel cannot take."""
