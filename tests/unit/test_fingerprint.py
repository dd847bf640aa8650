"""The hash of a picture stays the same through compression and resizing, and tells patients apart."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from inference.engine import ImageFile
from inference.fingerprint import fingerprint
from inference.preprocess import radiograph_input
from inference.radiograph import read_radiograph
from storage.fingerprints import MOST_DIFFERENT, distance


@pytest.fixture(scope="module")
def chests(shared_data: Path) -> list[npt.NDArray[np.float32]]:
    found = [
        read_radiograph(ImageFile(file.stem, file))
        for file in sorted((shared_data / "cxr_dicom").glob("*.dcm"))
        # The same picture with its brightness turned round.
        if "MONOHR1" not in file.name
    ]
    for file in sorted((shared_data / "cxr_png").iterdir()):
        if "mask" not in file.name:
            found.append(np.asarray(Image.open(file).convert("L"), np.float32))
    return found


def hashed(picture: npt.NDArray[np.float32]) -> str:
    return fingerprint(radiograph_input(picture, 256))


def test_radiographs_of_different_patients_are_far_apart(chests: list[npt.NDArray[np.float32]]) -> None:
    hashes = [hashed(one) for one in chests]
    assert len(hashes) >= 5
    assert min(distance(a, b) for a, b in itertools.combinations(hashes, 2)) > 5 * MOST_DIFFERENT


def test_the_same_radiograph_compressed_resized_or_brightened_is_near(chests: list[npt.NDArray[np.float32]]) -> None:
    for picture in chests:
        low, high = np.percentile(picture, [0.5, 99.5])
        unit = np.clip((picture - low) / (high - low), 0, 1)
        image = Image.fromarray((255 * unit).astype(np.uint8))
        compressed = io.BytesIO()
        image.save(compressed, "JPEG", quality=50)
        smaller = image.resize((image.width // 3, image.height // 3), Image.Resampling.BICUBIC)
        for other in (Image.open(compressed), smaller):
            assert distance(hashed(picture), hashed(np.asarray(other, np.float32))) <= MOST_DIFFERENT // 2
        assert distance(hashed(picture), hashed(np.asarray(unit**1.2, np.float32))) <= MOST_DIFFERENT


def test_the_size_of_the_models_input_hardly_matters(chests: list[npt.NDArray[np.float32]]) -> None:
    for picture in chests:
        a, b = (fingerprint(radiograph_input(picture, size)) for size in (224, 320))
        assert distance(a, b) <= MOST_DIFFERENT // 2
