"""The errors of ``node``, one small tree.

::

    NodeError
    +-- ConfigurationError   file, key and what was expected; the command ends with status 2
    +-- EvidenceError        a document that must not leave
    +-- InvalidMessage       a report that cannot be said in the receiver's format
    +-- AlreadyRunning       another node holds the data directory or a port
"""


class NodeError(Exception):
    """Anything that ``node`` raises on purpose."""


class ConfigurationError(NodeError):
    """The configuration cannot be used: names file, key and what was expected."""


class EvidenceError(NodeError):
    """An evidence document is not fit to leave the node."""


class InvalidMessage(NodeError):
    """A report cannot be said in the receiver's format; names study and message, and nothing of the patient."""


class AlreadyRunning(NodeError):
    """Another node holds the data directory or a port."""
