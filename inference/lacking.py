"""What a machine may lack for a moment: trouble that comes of it is not a job's, nor its model's."""

from __future__ import annotations

import errno
from typing import Final

__all__ = ["LACKING"]

#: What the machine lacks for the moment, whatever the job is: no try is lost by it.
LACKING: Final = {
    errno.ENOSPC: "no space is left on the disk that the engine writes to",
    errno.EDQUOT: "the quota of the disk that the engine writes to is used up",
    errno.EROFS: "the disk that the engine writes to takes nothing (it is read-only)",
    errno.EIO: "a disk answers with errors",
    errno.EMFILE: "the engine can open no more files",
    errno.ENFILE: "the machine can open no more files",
    errno.ENOMEM: "the machine has no memory free for the engine",
}
