"""A foreign model, a trained MeshNet, brought in by its command and run by its card on real MR of a head."""

from __future__ import annotations

import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
import yaml
from pydicom import dcmread
from pydicom.uid import MRImageStorage
from typer.testing import CliRunner

from inference.bring.codes import open_names
from inference.card import load_card
from inference.engine import ImageFile, Job, open_engine
from inference.errors import CardError
from inference.grid import Grid
from inference.nifti import read_nifti
from node.evidence.documents import make_documents, model_of
from tests.dicom_factory import ct_series
from tests.evidence_factory import NODE, NOW

MODELS = Path(__file__).resolve().parents[2].parent / "shared" / "models" / "brainchop_meshnet"
pytestmark = pytest.mark.skipif(not MODELS.is_dir(), reason=f"the trained MeshNets are absent ({MODELS})")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node's folder, whose database is made once."""
    return tmp_path_factory.mktemp("home")


def _add(folder: Path, source: Path, *options: str) -> Any:
    from node.cli import app

    values = {"data_dir": str(folder / "var"), "models": str(folder / "none"), "routes": [], "destinations": {}}
    (folder / "none").mkdir(exist_ok=True)
    (folder / "node.yaml").write_text(yaml.safe_dump(values))
    arguments = ["models", "add", "meshnet", str(source), "--no-check", "--config", str(folder / "node.yaml")]
    return CliRunner().invoke(app, [*arguments, *options])


def _series(folder: Path, block: np.ndarray, grid: Grid) -> tuple[tuple[ImageFile, ...], np.ndarray]:
    """A DICOM series of a volume, cut across its first axis; gives its images and the planes as they were written."""
    columns = grid.affine[:3, :3]
    if np.linalg.det(columns[:, [2, 1, 0]]) < 0:
        # Planes are stacked along the normal that their rows and columns have.
        block, grid = (
            block[::-1],
            Grid(
                grid.shape,
                grid.affine @ np.array([[-1, 0, 0, grid.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
            ),
        )
        columns = grid.affine[:3, :3]
    spacing = grid.spacing_mm
    paths = ct_series(
        folder,
        block,
        spacing=spacing,
        orientation=(*(columns[:, 2] / spacing[2]), *(columns[:, 1] / spacing[1])),
        origin=tuple(grid.affine[:3, 3]),
        intercept=0.0,
        SOPClassUID=MRImageStorage,
        Modality="MR",
        RescaleType=None,
        KVP=None,
        ConvolutionKernel=None,
    )
    return tuple(ImageFile(path.stem, path) for path in paths), block


def test_a_meshnet_labels_a_real_head_on_the_pixels_that_came(home: Path, tmp_path: Path) -> None:
    import onnxruntime

    added = _add(home, MODELS / "model5_gw_ae")
    assert added.exit_code == 0, added.output
    folder = shutil.copytree(home / "var" / "models" / "meshnet-model5-gw-ae" / "1.0.0", tmp_path / "net")
    card = load_card(folder)
    assert open_names(card) == ()
    assert [(o.label, o.code.value, o.code.meaning) for o in card.outputs] == [
        (1, "389080008", "White Matter"),
        (2, "389081007", "Gray Matter"),
    ]
    # Of the head, a block of 72 mm; of the card, everything but the size of the field.
    content = yaml.safe_load((folder / "card.yaml").read_text())
    step = next(step for step in content["preprocess"] if "crop_or_pad" in step)
    assert step["crop_or_pad"]["shape"] == [256, 256, 256]
    step["crop_or_pad"]["shape"] = [72, 72, 72]
    content["inputs"][0]["limits"]["coverage_mm"] = [70, 75]
    (folder / "card.yaml").write_text(yaml.safe_dump(content))
    head, grid = read_nifti(MODELS / "sample_t1_crop.nii.gz")
    block = head[90:162, 70:142, 80:152]
    place = grid.affine.copy()
    place[:3, 3] = grid.to_lps((90, 70, 80))
    images, planes = _series(tmp_path / "mr", block.astype(np.int64), Grid((72, 72, 72), place))

    findings = open_engine(load_card(folder)).run(Job(folder / "card.yaml", {"t1": images}))

    assert findings.not_analysed is None
    assert findings.segmentation is not None
    # By hand, in the file's own axes, which are the net's (left, inferior, anterior), the first one fastest.
    values = block.transpose(2, 1, 0).astype(np.float32)
    values = (values - values.min()) / (values.max() - values.min())
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    by_hand = session.run(None, {"image": values[None, None]})[0][0, 0].transpose(2, 1, 0)
    expected = by_hand if (planes == block).all() else by_hand[::-1]
    found = findings.segmentation.labels
    assert set(np.unique(expected)) == {0, 1, 2}
    assert (found != expected).mean() < 1e-3
    volumes = [segment.volume_ml for segment in findings.segmentation.segments]
    assert volumes == pytest.approx([np.count_nonzero(found == label) / 1000 for label in (1, 2)], rel=1e-3)
    # And into a SEG over the same pixels.
    sources = [image.path for image in images]
    document = make_documents(findings, model_of(card), sources, node=NODE, revision=1, now=NOW)[0]
    segmentation = highdicom.seg.Segmentation.from_dataset(dcmread(BytesIO(document.data)))
    described = (segmentation.get_segment_description(number) for number in segmentation.segment_numbers)
    assert [one.segmented_property_type.value for one in described] == ["389080008", "389081007"]
    planes_of = [image.key for image in images]
    masks = segmentation.get_pixels_by_source_instance(planes_of, combine_segments=True)
    np.testing.assert_array_equal(masks, found)


def test_what_is_no_head_is_refused_before_the_net_runs(home: Path) -> None:
    wrist = sorted((MODELS.parents[1] / "data" / "mr_series" / "dcm4che_MR16").glob("*.dcm"))
    assert wrist
    assert _add(home, MODELS / "model5_gw_ae").exit_code == 0
    card = load_card(home / "var" / "models" / "meshnet-model5-gw-ae" / "1.0.0")
    images = tuple(ImageFile(path.stem, path) for path in wrist)
    findings = open_engine(card).run(Job(card.path, {"t1": images}))
    assert findings.not_analysed is not None
    assert findings.not_analysed.reason in ("coverage", "pixel-spacing")
    assert findings.seconds == 0


def test_labels_that_no_file_names_are_asked_for_and_what_the_standard_does_not_name_stays_open(home: Path) -> None:
    silent = _add(home, MODELS / "model11_gw_ae")
    assert isinstance(silent.exception, CardError)
    assert "--labels FILE" in str(silent.exception)
    named = _add(
        home,
        MODELS / "model11_gw_ae",
        "--labels",
        str(MODELS / "model5_gw_ae" / "colormap3.json"),
        "--name",
        "eleven",
    )
    assert named.exit_code == 0, named.output
    parcels = _add(home, MODELS / "model30chan18cls", "--code", "VentralDC=87563008,SCT,Diencephalon")
    assert parcels.exit_code == 0, parcels.output
    card = load_card(home / "var" / "models" / "meshnet-model30chan18cls" / "1.0.0")
    assert len(card.outputs) == 17
    assert open_names(card) == ()
    assert {output.name: output.code.value for output in card.outputs}["Inferior-Lateral-Ventricle"] == "53118009"
    many = _add(home, MODELS / "model21_104class")
    assert many.exit_code == 0, many.output
    card = load_card(home / "var" / "models" / "meshnet-model21-104class" / "1.0.0")
    assert "ctx-lh-cuneus" in open_names(card)
    assert "Brain-Stem" not in open_names(card)
    assert '--code "ctx-lh-cuneus=VALUE,SCHEME,MEANING"' in many.output


def test_the_publishers_own_scaling_is_taken(home: Path) -> None:
    scales = {}
    for number, (name, options) in enumerate(
        {"mindgrab": (), "model20chan3cls": (), "model5_gw_ae": ("--scaling", "quantile")}.items()
    ):
        added = _add(home, MODELS / name, "--name", f"net{number}", *options)
        assert added.exit_code == 0, added.output
        card = load_card(home / "var" / "models" / f"net{number}" / "1.0.0")
        scales[name] = next(step.scale for step in card.preprocess if step.scale)
    for scale in scales.values():
        assert scale.percentiles == (5, 95)
        assert not scale.clip
