"""The objects that are sent: CT slices that differ in their UIDs, and one huge multi-frame object."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.uid import MultiFrameGrayscaleWordSecondaryCaptureImageStorage as MultiFrameGrayscale

from tests.dicom_factory import ct_series

__all__ = ["unique_uid", "write_multiframe", "write_objects"]

_SERIES_SLICES = 200
_numbers = itertools.count()


def unique_uid(length: int = 60) -> str:
    """Return a UID that this process has not given before, always of the same length."""
    return f"2.25.1{next(_numbers):0{length - 6}d}"


def write_objects(folder: Path, count: int, side: int) -> Path:
    """Write one CT study, in series of 200 slices, of square slices with 16 bits a pixel; noise, as after a scan."""
    noise = np.random.default_rng(side).integers(-1000, 1000, (1, side, side))
    study, series, instance = (unique_uid() for _ in range(3))
    template = ct_series(folder, noise, study_uid=study, series_uid=series)[0]
    dataset = pydicom.dcmread(template)
    template.unlink()
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = instance
    held = io.BytesIO()
    pydicom.dcmwrite(held, dataset)
    content = held.getvalue()
    for number in range(count):
        if number % _SERIES_SLICES == 0:
            following = unique_uid()
            content, series = content.replace(series.encode(), following.encode()), following
        following = unique_uid()
        content, instance = content.replace(instance.encode(), following.encode()), following
        (folder / f"{number:06d}.dcm").write_bytes(content)
    return folder


def write_multiframe(path: Path, size: int) -> None:
    """Write a multi-frame object with so many bytes of pixels, all zero and none of them on the disk."""
    rows = columns = 1024
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = MultiFrameGrayscale
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = unique_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = unique_uid(), unique_uid()
    dataset.PatientID, dataset.PatientName, dataset.Modality = "HUGE", "Huge^Object", "OT"
    dataset.Rows, dataset.Columns = rows, columns
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation, dataset.SamplesPerPixel = 15, 0, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.NumberOfFrames = size // (rows * columns * 2)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    with path.open("ab") as file:
        # (7FE0,0010) OW with its length (PS3.5 7.1.2), then a hole.
        file.write(b"\xe0\x7f\x10\x00OW\0\0" + size.to_bytes(4, "little"))
        file.truncate(file.tell() + size)
