"""Every error that fedadapt raises on purpose, and the exit code each one ends a command with.

::

    FedadaptError                 1   anything below
    ├── ConfigError               2   a key, type or combination that a run file may not have
    │   ├── UnknownName           2   a name that no registry entry has
    │   └── NoDevice              2   a device to compute on that this machine does not have, or not now
    ├── DataError                 3   a data set that is missing, corrupt or does not fit
    │   └── PartitionError        3   it cannot be dealt out to the clients as asked
    ├── BackboneError             4   a backbone that cannot be made, read or verified
    ├── AttachError               5   an adapter that cannot sit on, merge into or load onto a backbone
    ├── FrameError                6   bytes that are not the frame they should be
    │   └── DigestMismatch        6   the frame belongs to another backbone, layout or codec
    ├── ClientError               7   a client's work failed, or its update was refused
    ├── RunError                  8   a run directory that is missing, in use, damaged or full
    │   ├── RunInUse              8   another process has its lock
    │   └── RoundFailed           8   in a study, no client could do its work: training diverged
    ├── EngineError               9   an engine that cannot carry messages
    └── Interrupted             130   Ctrl-C; everything committed is safe

A message is one line: what is wrong, the value, what is allowed, what to do.
"""

from __future__ import annotations


class FedadaptError(Exception):
    """The root of the tree; catching it catches every deliberate failure of fedadapt."""

    exit_code = 1


class ConfigError(FedadaptError, ValueError):
    """A configuration says something that cannot be done."""

    exit_code = 2


class UnknownName(ConfigError):
    """A name was looked up that nothing is registered under."""


class NoDevice(ConfigError):
    """A device was asked for that cannot be had here; elsewhere, or later, it may."""


class DataError(FedadaptError):
    """A data set is missing, corrupt, or does not fit what is asked of it."""

    exit_code = 3


class PartitionError(DataError):
    """Samples cannot be dealt out to the clients as asked; again, it would be the same."""


class BackboneError(FedadaptError):
    """A backbone cannot be made, read, or is not the one that was promised."""

    exit_code = 4


class AttachError(FedadaptError):
    """An adapter cannot be attached to, merged into or loaded onto a backbone."""

    exit_code = 5


class FrameError(FedadaptError):
    """Bytes that arrived are not a well-formed frame."""

    exit_code = 6


class DigestMismatch(FrameError):
    """A well-formed frame was made for another backbone, layout or codec."""


class ClientError(FedadaptError):
    """A client's local work failed, or what it sent was refused."""

    exit_code = 7


class RunError(FedadaptError):
    """A run directory is missing, in use, damaged, or cannot be written."""

    exit_code = 8


class RunInUse(RunError):
    """Another process has the lock of a run directory, and will give it back."""


class RoundFailed(RunError):
    """Every client failed in the first round of a study's cell; to run it on, or again, would give the same."""


class EngineError(FedadaptError):
    """An engine cannot carry the messages it was given."""

    exit_code = 9


class Interrupted(FedadaptError):
    """A run was asked to stop, and did after its last committed round."""

    exit_code = 130


def one_line(text: object) -> str:
    r"""Text from elsewhere as one line that can be shown: no line breaks, no commands to a terminal.

    Example:
        >>> one_line("no\nround \x1b[2Jé")
        'no round �[2Jé'
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(str(text).split()))
