"""What a Part 10 file is, and where its dataset begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydicom.errors import InvalidDicomError
from pydicom.filereader import _read_file_meta_info as read_file_meta
from pydicom.filereader import read_partial, read_preamble

__all__ = ["Identity", "dataset_offset", "identify"]

_SOP_UIDS = [0x00080016, 0x00080018]
_SOP_INSTANCE_UID = 0x00080018


@dataclass(frozen=True, slots=True)
class Identity:
    """What a Part 10 file is: by its dataset, where that says it, else by its meta information."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    #: Why its bytes are not to be sent, in words; empty where nothing is known to be wrong with them.
    wrong: str = ""


def identify(path: Path) -> Identity | str:
    """Read what a file is; return in words why it cannot be sent as DICOM where it cannot."""
    try:
        with path.open("rb") as file:
            dataset = read_partial(file, lambda tag, _vr, _length: tag > _SOP_INSTANCE_UID, specific_tags=_SOP_UIDS)
        meta = dataset.file_meta
        uids = [
            (str(dataset.get(keyword, "") or ""), str(meta.get(f"MediaStorage{keyword}", "") or ""))
            for keyword in ("SOPClassUID", "SOPInstanceUID")
        ]
        syntax = str(meta.get("TransferSyntaxUID", "") or "")
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except InvalidDicomError:
        return "is no DICOM file: it has no DICM prefix"
    except Exception as error:  # noqa: BLE001 - hostile bytes raise anything; all of it means the same here
        return f"cannot be read as DICOM ({type(error).__name__})"
    sop_class, sop_instance = (own or said for own, said in uids)
    if not (sop_class and sop_instance and syntax):
        return "has no SOP Class, SOP Instance or Transfer Syntax UID"
    return Identity(path, sop_class, sop_instance, syntax)


def dataset_offset(path: Path) -> int:
    """Return where a file's dataset begins: after preamble, prefix and File Meta Information (PS3.10 7.1).

    Raises
    ------
    OSError
        When the file cannot be read.
    ValueError
        When it does not begin as a Part 10 file does.
    """
    try:
        with path.open("rb") as file:
            read_preamble(file, False)
            read_file_meta(file)
            return file.tell()
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - hostile bytes raise anything; all of it means the same here
        raise ValueError(f"no Part 10 file ({type(error).__name__})") from None
