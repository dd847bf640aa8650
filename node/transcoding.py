"""An object in another transfer syntax: always an uncompressed one, and nothing but the encoding changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

__all__ = ["UNCOMPRESSED", "write_uncompressed"]

#: What an object can be turned into; the first keeps the VR of private elements.
UNCOMPRESSED = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))


def write_uncompressed(source: Path, transfer_syntax_uid: str, target: BinaryIO) -> None:
    """Write a Part 10 file anew in one of :data:`UNCOMPRESSED`.

    Samples keep their values and colours their space, as far as the decoder gives them so (PS3.5 8.2). The whole object
    is in memory meanwhile.

    Raises
    ------
    Exception
        Of any kind: decoders and hostile bytes raise anything.
    """
    dataset = pydicom.dcmread(source)
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    if syntax.is_encapsulated and "PixelData" in dataset:
        dataset.decompress(as_rgb=False, generate_instance_uid=False)
        # Decoders give a colour sample to every pixel; 4:2:2 would have fewer of them (PS3.3 C.7.6.3.1.2).
        if dataset.get("PhotometricInterpretation") == "YBR_FULL_422":
            dataset.PhotometricInterpretation = "YBR_FULL"
    elif syntax == ExplicitVRBigEndian:
        _swap_words(dataset)
    dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    pydicom.dcmwrite(target, dataset, enforce_file_format=True)


def _swap_words(dataset: Any) -> None:
    """Turn 16-bit and wider samples round: pydicom writes OW, OF and OD as it read them."""
    import numpy as np

    for elem in dataset.iterall():
        if elem.VR in ("OW", "OF", "OD", "OL", "OV", "OB or OW") and isinstance(elem.value, bytes) and elem.value:
            # Pixel data of 8 bits is made of words too when its VR is OW (PS3.5 8.1.1).
            width = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}.get(elem.VR, 1)
            if len(elem.value) % width == 0 and width > 1:
                elem.value = np.frombuffer(elem.value, f"u{width}").byteswap().tobytes()
