"""Whether pixels show the chest of a human from the front: asked of the picture, never of a name or an identifier."""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from PIL import Image
from pydicom.uid import generate_uid

from inference.card import load_card
from inference.engine import ImageFile, Job, open_engine
from inference.findings import Findings
from inference.plausible import chest_radiograph, one_tone
from inference.radiograph import radiograph_pixels
from phantoms.radiograph import FINDINGS, TEST, TRAINING, make_radiograph
from tests.dicom_factory import radiograph
from training.plausibility.data import varied
from training.plausibility.evaluate import picture
from training.plausibility.projection import projected

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "conf" / "models" / "chest-radiograph-demo"
Picture = npt.NDArray[np.float32]


def reason(image: npt.NDArray[Any]) -> str:
    return chest_radiograph(image).reason


def analysed(path: Path) -> Findings:
    card = load_card(DEMO)
    return open_engine(card).run(Job(card.path, {"radiograph": (ImageFile("image", path),)}))


def resized(image: npt.NDArray[Any], rows: int, columns: int) -> npt.NDArray[Any]:
    shape = Image.fromarray(np.asarray(image)).resize((columns, rows), Image.Resampling.BICUBIC)
    return np.asarray(shape)


@pytest.fixture(scope="module")
def dog(shared_data: Path) -> pydicom.Dataset:
    return pydicom.dcmread(shared_data / "seg" / "highdicom__dx_image.dcm")


@pytest.fixture(scope="module")
def chests(shared_data: Path) -> dict[str, Picture]:
    """Real radiographs: none of them was ever trained on."""
    files = [*(shared_data / "cxr_dicom").glob("*.dcm"), *(shared_data / "cxr_png").glob("*")]
    pictures = {file.name: picture(file) for file in files if "mask" not in file.name and "Fake" not in file.name}
    return {name: image for name, image in pictures.items() if image is not None}


def test_a_dogs_thorax_labelled_dx_chest_gets_no_finding(dog: pydicom.Dataset, tmp_path: Path) -> None:
    assert (dog.Modality, dog.SeriesDescription) == ("DX", "CHEST")
    path = tmp_path / "dog.dcm"
    dog.save_as(path)
    findings = analysed(path)
    assert findings.not_analysed is not None
    assert findings.classifications == ()


@pytest.mark.parametrize("shape", [(2000, 2000), (2500, 2000), (1602, 2000), (2000, 1700)])
def test_nor_where_it_is_renamed_and_resampled_to_2000_pixels(
    dog: pydicom.Dataset, tmp_path: Path, shape: tuple[int, int]
) -> None:
    shown = resized(radiograph_pixels(dog), *shape)
    path = radiograph(
        tmp_path,
        np.clip(shown * 16, 0, 4095),
        modality="DX",
        study_uid=generate_uid(),
        PatientName="Human^Honest",
        PatientID="H-1",
        ViewPosition="PA",
        PatientOrientation=["L", "F"],
    )
    findings = analysed(path)
    assert findings.not_analysed is not None
    assert findings.not_analysed.reason in {"not-a-frontal-chest", "turned-image", "negative-image"}
    assert findings.classifications == ()


def ways() -> Iterator[tuple[str, Callable[[Picture], npt.NDArray[Any]]]]:
    yield "mirrored", lambda p: p[:, ::-1]
    yield "on its head", lambda p: p[::-1]
    yield "turned", np.rot90
    yield "turned back", lambda p: np.rot90(p, -1)
    yield "negative", lambda p: -p
    yield "cropped", lambda p: p[10:-10, 10:-10]
    yield "the chest alone", lambda p: p[20:160, 30:170]
    yield "turned, cut out and enlarged", lambda p: resized(np.rot90(p)[29:174, 30:157], 1450, 1270)
    yield "the negative of what stands on its head, cut out", lambda p: -p[-35:34:-1, -43:42:-1]
    yield "dark", lambda p: (p - p.min() + 1) ** 0.4
    yield "bright", lambda p: (p - p.min()) ** 2.5
    yield "windowed", lambda p: np.clip(p, *np.percentile(p, [15, 85]))
    yield "a jpeg", encoded
    yield "square", lambda p: resized(p, 2000, 2000)
    yield "noisy", lambda p: p + np.random.default_rng(0).normal(0, p.std() / 3, p.shape)


def encoded(image: Picture) -> npt.NDArray[Any]:
    held = io.BytesIO()
    low, high = float(image.min()), float(image.max())
    Image.fromarray(((image - low) / (high - low) * 255).astype(np.uint8)).save(held, "JPEG", quality=40)
    return np.asarray(Image.open(held), np.float32)


@pytest.mark.parametrize(("how", "way"), list(ways()), ids=[name for name, _ in ways()])
def test_the_dog_is_refused_however_it_is_shown(
    dog: pydicom.Dataset, how: str, way: Callable[[Picture], npt.NDArray[Any]]
) -> None:
    assert not chest_radiograph(way(radiograph_pixels(dog))).plausible, how


def test_real_chests_pass_as_they_are_and_in_other_windows_crops_and_sizes(chests: dict[str, Picture]) -> None:
    assert len(chests) >= 5
    rng = np.random.default_rng(3)
    passed = []
    for name, image in chests.items():
        rows, columns = image.shape
        low, high = np.percentile(image, [3, 97])
        cut = image[rows // 20 : -rows // 20, columns // 20 : -columns // 20]
        shown = (image, image[:, ::-1], cut, np.clip(image, low, high), resized(image, 2500, 2000), image[::3, ::3])
        assert [reason(one) for one in shown] == [""] * 6, name
        passed += [chest_radiograph(varied(image, rng)).plausible for _ in range(12)]
    # Far more than a radiography room does to them: cut, padded, turned, stretched, noisy, blurred, all at once.
    assert np.mean(passed) >= 0.95


def test_a_negative_a_turned_and_a_side_view_are_told_apart(chests: dict[str, Picture], shared_data: Path) -> None:
    # Its header says MONOCHROME1 over the pixels of a MONOCHROME2 radiograph.
    fake = pydicom.dcmread(shared_data / "cxr_dicom" / "torchxrayvision__Fake_MONOHR1.dcm")
    assert reason(radiograph_pixels(fake)) == "negative-image"
    for name, image in chests.items():
        assert reason(-image) == "negative-image", name
        assert reason(np.rot90(image)) == "turned-image", name
        assert reason(image[::-1]) == "turned-image", name


@pytest.fixture(scope="module")
def ct(shared_data: Path) -> tuple[Picture, tuple[float, float]]:
    """A real CT of a chest in HU, head first, rows from front to back, and the distance of slices and pixels in mm."""
    folder = shared_data / "ct_thorax_series" / "Lung_Dx-A0002_B40f"
    slices = sorted(map(pydicom.dcmread, folder.glob("*.dcm")), key=lambda one: -float(one.ImagePositionPatient[2]))
    hu = np.stack([one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept) for one in slices])
    return hu[:, ::2, ::2], (8.0, 2 * float(slices[0].PixelSpacing[0]))


def test_of_a_real_chest_projected_from_ct_the_front_passes_and_the_side_does_not(
    ct: tuple[Picture, tuple[float, float]],
) -> None:
    assert reason(projected(*ct, "frontal")) == ""
    side = projected(*ct, "lateral")
    assert reason(side) == "not-a-frontal-chest"
    assert not chest_radiograph(side[:, ::-1]).plausible


def test_many_coronal_slices_of_a_chest_are_refused_since_soft_tissue_has_one_tone_in_them(
    ct: tuple[Picture, tuple[float, float]], chests: dict[str, Picture]
) -> None:
    hu, spacing = ct
    planes = [resized(hu[:, place].astype(np.float32), 1024, 1024) for place in range(60, 200, 5)]
    verdicts = [chest_radiograph(plane) for plane in planes]
    # But for their tones these would pass: two lungs beside a mediastinum, from the front.
    assert sum("one tone" in verdict.text for verdict in verdicts) >= 3
    assert sum(verdict.plausible for verdict in verdicts) <= 5
    assert np.median([one_tone(plane) for plane in planes]) > 0.29
    assert max(one_tone(image) for image in (*chests.values(), projected(hu, spacing, "frontal"))) < 0.2


def test_the_synthetic_radiographs_of_the_demonstration_pass() -> None:
    # Those of demo/studies.py, then others with every finding in both styles.
    for seed, findings in ((4, ("pneumothorax",)), (2, ())):
        assert reason(make_radiograph(seed, findings).pixels) == ""
    refused = [
        (seed, finding, style.name)
        for style in (TRAINING, TEST)
        for seed, finding in enumerate([*FINDINGS, *FINDINGS], 40)
        if reason(make_radiograph(seed, [finding], shape=(320, 288), style=style).pixels)
    ]
    assert refused == []


def test_what_is_no_chest_is_refused(shared_data: Path) -> None:
    """Slices, ultrasound, other bones, whole bodies, photographs and patterns, called a radiograph of the chest."""
    folders = ("transfer_syntax", "mr_series", "us_multiframe", "enhanced_multiframe", "ct_thorax_series")
    judged, taken = 0, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for file in sorted(file for one in folders for file in (shared_data / one).rglob("*") if file.is_file()):
            image = picture(file) if file.suffix in (".dcm", "") and "xml" not in file.name else None
            if image is not None and min(image.shape) >= 64:
                judged += 1
                taken += [file.name] if chest_radiograph(image).plausible else []
    assert judged > 100
    assert len(taken) <= 0.02 * judged, taken
    assert not [name for name in taken if "RG3" in name]


@pytest.mark.parametrize(
    "image",
    [
        np.random.default_rng(0).normal(size=(512, 448)),
        np.tile(np.linspace(0, 1, 512), (512, 1)),
        np.add.outer(np.arange(512) // 32, np.arange(512) // 32) % 2,
        np.zeros((300, 300)),
        np.full((300, 300), np.nan),
    ],
    ids=["noise", "ramp", "board", "nothing", "no numbers"],
)
def test_patterns_are_refused(image: npt.NDArray[Any]) -> None:
    assert not chest_radiograph(image).plausible


def test_a_matrix_that_no_detector_has_is_refused_whatever_it_shows(chests: dict[str, Picture]) -> None:
    image = next(iter(chests.values()))
    assert reason(image[::20, ::20]) == "matrix"
    assert reason(resized(image, 3000, 900)) == "matrix"


def test_a_large_radiograph_costs_no_more_than_a_small_one_needs(chests: dict[str, Picture]) -> None:
    large = resized(next(iter(chests.values())), 2500, 2000).astype(np.float32)
    chest_radiograph(large)
    taken = []
    for _ in range(20):
        began = time.process_time()
        chest_radiograph(large)
        taken.append(time.process_time() - began)
    # Some 6 ms; a way that looked at every pixel would take ten times as long.
    assert min(taken) < 0.030
