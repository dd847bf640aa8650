"""The errors of ``storage``, one small tree.

::

    StorageError
    +-- NotDicom            bytes that cannot be read as a DICOM object; carries the reason in plain words
    |   +-- Mismatch        an object that is not the one that its sender announced
|   +-- Truncated       an object whose bytes end too early
    +-- IllegalTransition   a state change that the lifecycle does not have
    +-- LeaseLost           an attempt's result came after the attempt had been taken away
    +-- AlreadyThere        something that is to be made under a UID that is taken
    +-- Unknown             a row that was asked for by name and is not there
    +-- DataDirectoryInUse  another node holds this data directory
    +-- StillNeeded         a deletion that would take away what open work needs
    +-- InvalidQuery        a key or a value that nothing can be found by
"""


class StorageError(Exception):
    """Anything that ``storage`` raises on purpose."""


class NotDicom(StorageError):
    """Bytes that cannot be read as a DICOM object, or lack what identifies one."""


class Mismatch(NotDicom):
    """An object whose SOP Class or SOP Instance UID is not what its sender announced."""


class Truncated(NotDicom):
    """Bytes that end before the dataset does."""


class IllegalTransition(StorageError):
    """A state change that ``lifecycle.TRANSITIONS`` does not allow."""


class LeaseLost(StorageError):
    """A worker's attempt is no longer its own; what it brought must not be committed."""


class AlreadyThere(StorageError):
    """Something is to be made under a UID that something of the kind has already."""


class Unknown(StorageError):
    """Something asked for by name that is not stored."""


class DataDirectoryInUse(StorageError):
    """Another process holds the data directory."""


class StillNeeded(StorageError):
    """A deletion that would take away what open work still needs."""


class InvalidQuery(StorageError):
    """A key or a value that nothing can be found by; names the key, never its value."""
