"""What a model's input tensor holds: the same as ever, in a fraction of the time; and decoding by the short way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate, generate_frames

from inference.card import load_card
from inference.codecs import DIRECT_SYNTAXES, decode_directly
from inference.engine import ImageFile
from inference.errors import InputRefused
from inference.imagefile import count_of, open_image, stored_values
from inference.preprocess import centre_crop, padded_square, radiograph_input
from inference.radiograph import Turn, radiograph_of, read_radiograph
from tests.dicom_factory import radiograph

FOLDER = Path(__file__).resolve().parents[2] / "conf" / "models" / "chest-radiograph-demo"


def as_trained(pixels: np.ndarray[Any, Any], size: int = 256) -> np.ndarray[Any, Any]:
    """The input as the shipped model was trained with: every step in double precision over the whole image."""
    values = pixels.astype(np.float64)
    low, high = np.percentile(values, [0.5, 99.5])
    scaled = np.clip((values - low) / (high - low), 0, 1).astype(np.float32)
    edge = max(scaled.shape)
    square = np.zeros((edge, edge), np.float32)
    top, left = (edge - scaled.shape[0]) // 2, (edge - scaled.shape[1]) // 2
    square[top : top + scaled.shape[0], left : left + scaled.shape[1]] = scaled
    return np.clip(np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BILINEAR)), 0, 1)


@pytest.fixture(scope="module")
def picture() -> np.ndarray[Any, Any]:
    return np.random.default_rng(3).gamma(2.0, 300.0, (301, 240)).round()


@pytest.mark.parametrize(
    ("dtype", "scale", "offset"),
    [
        (np.uint16, 1, 0),
        (np.uint16, 3, 60),
        (np.int16, 1, -9000),
        (np.int16, 9, -32768),
        (np.float32, 1, 0),
        (np.float32, 1, -1024),
        (np.float32, 0.37, 5),
        (np.float32, 40, 0),
        (np.float64, 1, 0.5),
    ],
    ids=str,
)
def test_the_input_is_what_the_shipped_model_was_trained_with(
    picture: np.ndarray[Any, Any], dtype: type, scale: float, offset: float
) -> None:
    pixels = (picture * scale + offset).astype(dtype)
    np.testing.assert_allclose(radiograph_input(pixels), as_trained(pixels), atol=3e-6)


def test_the_shipped_models_findings_on_real_radiographs_do_not_move(shared_data: Path) -> None:
    import onnxruntime

    card = load_card(FOLDER)
    session = onnxruntime.InferenceSession(str(FOLDER / "chest-radiograph-demo.onnx"))

    def probabilities(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        feed = {card.tensors["image"]: np.asarray(image, np.float32).reshape(1, 1, 256, 256)}
        return np.asarray(session.run(None, feed)[0])

    for path in sorted((shared_data / "cxr_dicom").glob("*.dcm")):
        pixels = read_radiograph(ImageFile(path.stem, path))
        moved = np.abs(probabilities(radiograph_input(pixels)) - probabilities(as_trained(pixels))).max()
        assert moved < 1e-5, path.name


@pytest.mark.parametrize("shape", [(301, 240), (240, 301), (240, 241), (7, 7)], ids=str)
def test_a_padded_square_and_a_centre_crop_lie_around_the_same_middle(shape: tuple[int, int]) -> None:
    whole, inside = padded_square(*shape), centre_crop(*shape)
    assert whole.edge == max(shape)
    assert inside.edge == min(shape)
    for square in (whole, inside):
        assert abs(square.row + square.edge / 2 - shape[0] / 2) <= 1
        assert abs(square.column + square.edge / 2 - shape[1] / 2) <= 1


@pytest.mark.parametrize("turn", [Turn(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)], ids=str)
def test_what_was_turned_for_display_can_be_turned_back(turn: Turn) -> None:
    stored = np.arange(12).reshape(3, 4)
    assert (turn.to_source(turn.to_display(stored)) == stored).all()


@pytest.mark.parametrize(
    ("photometric", "attributes", "low", "high"),
    [
        ("MONOCHROME2", {}, 0, 4095),
        ("MONOCHROME2", {"RescaleSlope": "2", "RescaleIntercept": "-10", "RescaleType": "US"}, -10, 8180),
        ("MONOCHROME2", {"RescaleSlope": "-1", "RescaleIntercept": "4095", "RescaleType": "US"}, 0, 4095),
        ("MONOCHROME1", {}, 700 - 4095, 700),
        ("MONOCHROME2", {"PixelRepresentation": 1}, -2048, 2047),
    ],
)
def test_a_radiograph_says_between_which_values_its_pixels_may_lie(
    tmp_path: Path, photometric: str, attributes: dict[str, Any], low: float, high: float
) -> None:
    pixels = np.linspace(100, 600, 30 * 20).astype(np.uint16).reshape(30, 20)
    path = radiograph(tmp_path, pixels, photometric=photometric, **attributes)
    found = radiograph_of(open_image(ImageFile("x", path)))
    assert (found.low, found.high) == (low, high)


def test_decoding_by_the_short_way_gives_the_values_that_pydicom_gives(shared_data: Path) -> None:
    decoded = 0
    for path in sorted((shared_data / "transfer_syntax").glob("*.dcm")):
        try:
            dataset = open_image(ImageFile(path.stem, path))
        except Exception:  # noqa: BLE001 - some lack a preamble
            continue
        if dataset.file_meta.TransferSyntaxUID not in DIRECT_SYNTAXES or count_of(dataset, "SamplesPerPixel") != 1:
            continue
        directly = _directly(dataset, path)
        if directly is None:
            continue
        decoded += 1
        expected = dataset.pixel_array
        assert directly.dtype == expected.dtype, path.name
        assert (directly == expected).all(), path.name
        assert (stored_values(dataset) == expected).all(), path.name
    assert decoded >= 4


def test_a_header_that_is_not_that_of_the_pixels_is_left_to_pydicom(shared_data: Path, tmp_path: Path) -> None:
    path = next((shared_data / "transfer_syntax").glob("*JPEGProcess14SV1*"))
    dataset = open_image(ImageFile(path.stem, path))
    dataset.Rows = 100
    assert _directly(dataset, path) is None
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputRefused, match="truncated"):
        stored_values(open_image(ImageFile("cut", cut)))


def test_a_codestream_that_breaks_off_within_a_whole_file_is_refused(shared_data: Path, tmp_path: Path) -> None:
    path = next((shared_data / "transfer_syntax").glob("*JPEGProcess14SV1*"))
    dataset = dcmread(path)
    codestream = next(generate_frames(dataset.PixelData, number_of_frames=1))
    half = len(codestream) // 4 * 2
    for name, fragments in {"whole": [codestream], "cut": [codestream[:half]]}.items():
        dataset.PixelData = encapsulate(fragments)
        dataset.save_as(tmp_path / f"{name}.dcm")
    whole = stored_values(open_image(ImageFile("whole", tmp_path / "whole.dcm")))
    assert (whole == dcmread(path).pixel_array).all()
    with pytest.raises(InputRefused, match="truncated"):
        stored_values(open_image(ImageFile("cut", tmp_path / "cut.dcm")))


def _directly(dataset: Any, path: Path) -> np.ndarray[Any, Any] | None:
    return decode_directly(
        path,
        rows=dataset.Rows,
        columns=dataset.Columns,
        bits_allocated=dataset.BitsAllocated,
        bits_stored=dataset.BitsStored,
        signed=dataset.PixelRepresentation == 1,
    )
