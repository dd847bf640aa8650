"""torchxrayvision's anatomy segmentation: brought in by name, its masks as the library would draw them.

The released file cannot be downloaded here. The network is the library's own class with seeded weights, of the same
parts and with fewer channels: at its own width a run takes five seconds.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import yaml
from typer.testing import CliRunner

from inference.card import Card, load_card
from inference.engine import ImageFile, Job, open_engine
from inference.explain import Frame
from inference.findings import Findings
from inference.imagefile import open_image
from inference.preprocess import centre_crop
from inference.radiograph import radiograph_of
from inference.segment2d import masks_on_source
from node.evidence.documents import make_documents, model_of
from tests.evidence_factory import NODE, NOW, errors_of

torch = pytest.importorskip("torch", reason="torch is not installed (the extra torch)")
pytestmark = pytest.mark.filterwarnings("ignore:`nn.functional.upsample` is deprecated")


def narrow(classes: int) -> Any:
    """The library's network with few channels, and one layer of each kind."""
    from torchxrayvision.baseline_models.chestx_det.ptsemseg import pspnet

    network = pspnet.pspnet(classes, block_config=[1, 1, 1, 1])
    network.convbnrelu1_1 = pspnet.conv2DBatchNormRelu(3, 16, 3, 2, 1, False)
    network.convbnrelu1_2 = pspnet.conv2DBatchNormRelu(16, 16, 3, 1, 1, False)
    network.convbnrelu1_3 = pspnet.conv2DBatchNormRelu(16, 32, 3, 1, 1, False)
    network.res_block2 = pspnet.residualBlockPSP(1, 32, 16, 64, 1, 1)
    network.res_block3 = pspnet.residualBlockPSP(1, 64, 32, 128, 2, 1)
    network.res_block4 = network.res_block5 = torch.nn.Identity()
    network.convbnrelu4_aux, network.aux_cls = torch.nn.Identity(), torch.nn.Identity()
    network.pyramid_pooling = pspnet.pyramidPooling(128, [6, 3, 2, 1])
    network.cbr_final = pspnet.conv2DBatchNormRelu(256, 16, 3, 1, 1, False)
    network.classification = torch.nn.Conv2d(16, classes, 1)
    return network


@pytest.fixture(scope="module")
def library() -> Iterator[Any]:
    """The library, whose network is a narrow one."""
    from inference.engines.torchvision_schemas import import_torchvision

    import_torchvision()
    from torchxrayvision.baseline_models import chestx_det

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(chestx_det, "pspnet", narrow)
        yield chestx_det
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def released(library: Any, real: ImageFile, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A file as it is released, and the network as the library itself makes it of that file."""
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("release")
    path = folder / "pspnet_chestxray_best_model_4.pth"
    save(narrow(14), path)
    network = library.PSPNet(cache_dir=str(folder))
    last = network.model.classification
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spread, middle = torch.std_mean(network(as_the_library_reads(real))[0], dim=(1, 2))
        # So that the probabilities of each structure lie all over 0 to 1 on a real image.
        last.weight.mul_((3 / spread)[:, None, None, None])
        last.bias.copy_((last.bias - middle) * 3 / spread)
    save(network.model, path)
    return path, library.PSPNet(cache_dir=str(folder))


def save(network: Any, path: Path) -> None:
    torch.save({f"module.{name}": value for name, value in network.state_dict().items()}, path)


def as_the_library_reads(file: ImageFile) -> Any:
    import torchxrayvision as xrv

    dataset = pydicom.dcmread(file.path)
    image = xrv.utils.normalize(dataset.pixel_array, 2**dataset.BitsStored - 1)
    cropped = torch.from_numpy(xrv.datasets.XRayCenterCrop()(image[None]))[None]
    return torch.nn.functional.interpolate(cropped, size=(512, 512), mode="bilinear", antialias=True)


@pytest.fixture(scope="module")
def real(shared_data: Path) -> ImageFile:
    path = sorted((shared_data / "cxr_dicom").glob("torchxrayvision*.dcm"))[0]
    return ImageFile(str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID), path)


@pytest.fixture(scope="module")
def pulled(released: tuple[Path, Any], real: ImageFile, tmp_path_factory: pytest.TempPathFactory) -> tuple[Card, str]:
    from node.cli import app

    folder = tmp_path_factory.mktemp("node")
    (folder / "none").mkdir()
    values = {"data_dir": str(folder / "var"), "models": str(folder / "none"), "routes": [], "destinations": {}}
    (folder / "node.yaml").write_text(yaml.safe_dump(values))
    arguments = ["models", "pull", "torchxrayvision:pspnet", "--config", str(folder / "node.yaml")]
    ran = CliRunner().invoke(app, [*arguments, "--from", str(released[0]), "--images", str(real.path)])
    assert ran.exit_code == 0, ran.output
    [path] = (folder / "var" / "models" / "chestx-det-pspnet").glob("*/card.yaml")
    return load_card(path), ran.output


def run(card: Card, file: ImageFile) -> Findings:
    engine = open_engine(card)
    try:
        return engine.run(Job(card.path, {"radiograph": (file,)}))
    finally:
        engine.close()


@pytest.fixture(scope="module")
def found(pulled: tuple[Card, str], real: ImageFile) -> Findings:
    return run(without_limits(pulled[0]), real)


def without_limits(card: Card) -> Card:
    """What these pictures are is not the matter here."""
    role = {"role": "radiograph", "kind": "radiograph", "select": "each"}
    resources = card.resources.model_copy(update={"threads": 1})
    inputs = (type(card.inputs[0]).model_validate(role),)
    return card.model_copy(update={"inputs": inputs, "resources": resources})


def expected_masks(card: Card, network: Any, file: ImageFile) -> tuple[np.ndarray, np.ndarray]:
    """The library's probabilities of its own reading of a file, and its masks on the file's pixels."""
    with torch.inference_mode():
        scores = torch.sigmoid(network(as_the_library_reads(file)))[0].numpy()
    radiograph = radiograph_of(open_image(file))
    return scores, masks_on_source(card, scores, Frame(radiograph, centre_crop(*radiograph.pixels.shape)))


def test_the_card_names_fourteen_structures_with_codes_that_were_looked_up(pulled: tuple[Card, str]) -> None:
    from pydicom.sr._concepts_dict import concepts

    card = pulled[0]
    assert (card.engine, card.task, card.layout) == ("onnx", "segmentation", "nchw")
    assert [one.label for one in card.outputs] == list(range(1, 15))
    assert {card.outputs[4].name, card.outputs[8].name} == {"left lung", "heart"}
    assert len({one.code for one in card.outputs}) == 14
    page = (Path(__file__).resolve().parents[2] / "docs" / "models" / "torchxrayvision.md").read_text()
    known = {value for meanings in concepts["SCT"].values() for value in meanings}
    for one in card.outputs:
        assert one.code.value in page
        assert one.code.scheme == "99OVERREAD" or one.code.value in known | {"44029006", "3341006"}
        assert len(one.code.value) <= 16
    assert "over 4 images (1 real)" in pulled[1]


def test_masks_on_a_real_radiograph_are_those_of_the_library(
    pulled: tuple[Card, str], found: Findings, released: tuple[Path, Any], real: ImageFile
) -> None:
    scores, expected = expected_masks(pulled[0], released[1], real)
    assert scores.min() < 0.1
    assert scores.max() > 0.9
    assert found.segmentation is not None
    assert found.segmentation.labels.shape == expected.shape
    # A pixel whose probability is 0.5 may fall to either side.
    assert np.mean(found.segmentation.labels != expected) < 1e-4
    assert all(expected[0].size > (one.pixels or 0) > 0 for one in found.segmentation.segments)


def test_its_documents_are_valid_and_hold_the_masks(
    pulled: tuple[Card, str], found: Findings, real: ImageFile, tmp_path: Path
) -> None:
    documents = make_documents(found, model_of(pulled[0]), [real.path], node=NODE, revision=1, now=NOW)
    assert [errors_of(one, tmp_path) for one in documents] == [[], []]
    dataset = pydicom.dcmread(BytesIO(documents[0].data))
    assert found.segmentation is not None
    masks = {
        segment.name: mask > 0
        for segment, mask in zip(found.segmentation.segments, found.segmentation.labels, strict=True)
    }
    names = [item.SegmentLabel for item in dataset.SegmentSequence]
    assert names == [name for name, mask in masks.items() if mask.any()]
    for name, frame in zip(names, dataset.pixel_array, strict=True):
        assert (frame == masks[name]).all()


def test_the_native_engine_answers_bit_by_bit_as_the_library(
    released: tuple[Path, Any], real: ImageFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inference.bring import torchxrayvision as bringing
    from inference.engines.torchxrayvision import open_model
    from inference.engines.torchxrayvision_catalogue import entry

    image = np.random.default_rng(3).uniform(-1024, 1024, (512, 512)).astype(np.float32)
    monkeypatch.setattr(bringing, "_random_images", lambda size: [image])
    assert bringing.bring(entry("pspnet"), released[0], tmp_path, native=True).difference <= 1e-6
    card = without_limits(load_card(tmp_path))
    assert card.engine == "torchxrayvision"
    model = open_model(card)
    answer = model.infer({"image": image[None, None]})["output"]
    model.close()
    with torch.inference_mode():
        assert (answer == released[1](torch.from_numpy(image[None, None])).numpy()).all()
    assert run(card, real).provider == "torch:CPU"
