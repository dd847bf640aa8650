"""The errors of ``node``, one small tree.

::

    NodeError
    +-- ConfigurationError   file, key and what was expected; the command ends with status 2
    +-- NotConfigured        a name that an operator gave and the configuration does not have
    +-- EvidenceError        a document that must not leave
    +-- WorkitemUnfit        a workitem that no try can perform: its model or its images have changed
    +-- InvalidMessage       a report that cannot be said in the receiver's format
    +-- NotTranscoded        an object that cannot be had in another transfer syntax; names the kind of error
    +-- BadIdentifier        a search or retrieve request whose identifier does not match its SOP Class
    +-- UnreadableIdentifier one whose identifier is no dataset
    +-- TooManyMatches       one that more objects match than a response can count
    +-- UnknownDestination   one that would move objects to where the node sends nothing
    +-- OperationRefused     a DIMSE-N request that cannot be served; carries the status that answers it
    +-- ModelRefused         a version of a model that may not be promoted, with the reason
    +-- AlreadyRunning       another node holds the data directory or a port
    +-- ReindexError         an index that cannot be made anew; the old one is as it was
    +-- BackupError          a backup that cannot be taken or restored; nothing is left half done
    +-- RequestError         an HTTP request that cannot be served; ``node/web/problems.py`` gives each its status
        +-- BadRequest           what was sent cannot be understood
        +-- NotAcceptable        none of the asked representations can be given
        +-- UnsupportedMedia     a body of a kind that is not taken
        +-- BodyTooLarge         a body beyond the configured limit
        +-- NoRoom               not enough disk is free to take anything
"""


def kind_and_place(error: BaseException) -> str:
    """Return an exception's type, file and line, without its text: that may hold values of a dataset."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    at = f" at {last.tb_frame.f_code.co_filename.rpartition('/')[2]}:{last.tb_lineno}" if last else ""
    return f"{type(error).__name__}{at}"


class NodeError(Exception):
    """Anything that ``node`` raises on purpose."""


class ConfigurationError(NodeError):
    """The configuration cannot be used: names file, key and what was expected."""


class NotConfigured(NodeError):
    """What an operator named is not configured: says what there is."""


class EvidenceError(NodeError):
    """An evidence document is not fit to leave the node."""


class InvalidMessage(NodeError):
    """A report cannot be said in the receiver's format; names study and message, and nothing of the patient."""


class NotTranscoded(NodeError):
    """An object could not be put into another transfer syntax: says what kind of error, and nothing of the object."""


class BadIdentifier(NodeError):
    """A search or retrieve request's Identifier does not match its SOP Class: names the key, never its value."""


class UnreadableIdentifier(NodeError):
    """A search or retrieve request's Identifier cannot be read as a dataset."""


class TooManyMatches(NodeError):
    """A retrieve request matches more objects than its responses can count."""


class UnknownDestination(NodeError):
    """A C-MOVE names a destination that is no peer with an address."""


class OperationRefused(NodeError):
    """A DIMSE-N request that cannot be served, with the status (0000,0900) that answers it."""

    def __init__(self, code: int, comment: str) -> None:
        super().__init__(comment)
        self.code = code


class ModelRefused(NodeError):
    """A version of a model may not be promoted: says what is missing, or what it has failed."""


class AlreadyRunning(NodeError):
    """Another node holds the data directory or a port."""


class BackupError(NodeError):
    """A backup cannot be taken or restored: names the file and what to do."""


class ReindexError(NodeError):
    """The index cannot be made anew: says what to do first."""


class RequestError(NodeError):
    """An HTTP request that cannot be served; the text goes to the caller and names no patient."""


class BadRequest(RequestError):
    """What was sent cannot be understood."""


class NotAcceptable(RequestError):
    """None of the representations that were asked for can be given."""


class UnsupportedMedia(RequestError):
    """A body of a kind that is not taken."""


class BodyTooLarge(RequestError):
    """A body beyond the configured limit."""


class NoRoom(RequestError):
    """Not enough disk is free to take anything."""


class WorkitemUnfit(NodeError):
    """A workitem that no try can perform: its model or its images are not what was scheduled."""
