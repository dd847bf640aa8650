"""Where a classifier looked lies where the thing lies: on the pixels of the image as it was received."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from inference.card import load_card
from inference.engine import Engine, ImageFile, Job, open_engine
from inference.errors import CardError, EngineFailure
from inference.explain import activation_maps, occlusion_maps
from inference.findings import Findings
from inference.host import EngineHost
from node.workflow import heatmaps
from tests.dicom_factory import radiograph
from tests.model_factory import classification_card, code

SIZE = 64


def blob_detector() -> bytes:
    """A classifier that looks for bright spots: a convolution, rectified, averaged, a linear layer of two outputs."""
    rows, columns = np.indices((9, 9)) - 4
    distance = np.hypot(rows, columns)
    kernel = (
        np.where(distance < 2.5, 1.0, 0.0) / (distance < 2.5).sum()
        - np.where(distance >= 3.2, 1.0, 0.0) / (distance >= 3.2).sum()
    )
    kernels = np.stack([kernel, -kernel]).astype(np.float32)[:, None]
    head = np.array([[4000.0, 0.0], [0.0, 0.001]], np.float32)
    weights = [
        numpy_helper.from_array(kernels, "kernels"),
        numpy_helper.from_array(np.array([-0.2, -0.2], np.float32), "offset"),
        numpy_helper.from_array(head.T.copy(), "head"),
        numpy_helper.from_array(np.array([-1.0, -6.0], np.float32), "bias"),
    ]
    nodes = [
        helper.make_node("Conv", ["image", "kernels", "offset"], ["edges"], pads=[4, 4, 4, 4]),
        helper.make_node("Relu", ["edges"], ["features"]),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "head", "bias"], ["score"]),
    ]
    graph = helper.make_graph(
        nodes,
        "blobs",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, SIZE, SIZE])],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", 2]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 2, SIZE, SIZE]),
        ],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


def model_folder(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(blob_detector())
    np.save(folder / "head.npy", np.array([[4000.0, 0.0], [0.0, 0.001]], np.float32))
    card = classification_card("blobs") | {
        "files": {
            name: {"sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest()}
            for name in ("model.onnx", "head.npy")
        },
        "tensors": {"image": "image", "output": "score", "features": "features"},
        "preprocess": [{"radiograph_input": {"size": SIZE}}],
        "postprocess": [{"activation": {"kind": "sigmoid"}}],
        "outputs": [
            {"index": 0, "name": "nodule", "code": code("786838002", "Nodule of lung"), "threshold": 0.5},
            {"index": 1, "name": "hole", "code": code("52988006", "Lesion"), "threshold": 0.5},
        ],
        "explain": {"method": "cam", "weights": "head.npy"},
    }
    (folder / "card.yaml").write_text(yaml.safe_dump(card | changes))
    return folder


SHAPE = (300, 420)
#: (row, column) of the nodule as the file stores its pixels, away from the middle and from every axis of symmetry.
NODULE = (95, 260)


def planted(folder: Path, **attributes: Any) -> ImageFile:
    """A radiograph with one nodule; stored as given, whatever its header says of how to show it."""
    noise = np.random.default_rng(2).normal(900, 12, SHAPE)
    rows, columns = np.indices(SHAPE)
    noise[np.hypot(rows - NODULE[0], columns - NODULE[1]) < 18] += 1500
    stored = noise.clip(0, 4095)
    if attributes.get("photometric") == "MONOCHROME1":
        stored = 4095 - stored
    path = radiograph(folder, stored.astype(np.uint16), **attributes)
    return ImageFile(path.stem, path)


def read(engine: Engine, card: Path, file: ImageFile) -> Findings:
    return engine.run(Job(card, {"radiograph": (file,)}))


def peak_of(findings: Findings) -> tuple[float, float]:
    [heat_map] = findings.heat_maps
    assert heat_map.name == "nodule"
    assert heat_map.values.shape == SHAPE
    assert heat_map.values.max() == 255
    rows, columns = np.nonzero(heat_map.values >= 250)
    return float(rows.mean()), float(columns.mean())


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"photometric": "MONOCHROME1"},
        {"PatientOrientation": ["R", "F"]},
        {"PatientOrientation": ["L", "H"]},
        {"PatientOrientation": ["F", "L"]},
        {"PatientOrientation": ["H", "R"]},
    ],
    ids=lambda attributes: str(attributes) or "as shown",
)
@pytest.mark.parametrize("step", ["radiograph_input", "torchxrayvision_input"])
def test_the_map_of_a_planted_nodule_has_its_peak_on_the_nodule(
    tmp_path: Path, attributes: dict[str, Any], step: str
) -> None:
    changes: dict[str, Any] = {"preprocess": [{step: {"size": SIZE}}]}
    card = load_card(model_folder(tmp_path / "blobs", **changes))
    engine = open_engine(card)
    findings = read(engine, card.path, planted(tmp_path, **attributes))
    assert [one.present for one in findings.classifications] == [True, False]
    row, column = peak_of(findings)
    assert abs(row - NODULE[0]) <= 7
    assert abs(column - NODULE[1]) <= 7
    engine.close()


def test_occlusion_finds_the_nodule_without_knowing_the_model(tmp_path: Path) -> None:
    card = load_card(
        model_folder(tmp_path / "blobs", explain={"method": "occlusion", "size": 8}, batch={"maximum": 16})
    )
    engine = open_engine(card)
    row, column = peak_of(read(engine, card.path, planted(tmp_path, PatientOrientation=["R", "F"])))
    assert abs(row - NODULE[0]) <= 20
    assert abs(column - NODULE[1]) <= 20
    engine.close()


def test_only_findings_that_are_present_are_explained(tmp_path: Path) -> None:
    card = load_card(model_folder(tmp_path / "blobs"))
    engine = open_engine(card)
    even = radiograph(tmp_path, np.random.default_rng(0).normal(900, 30, SHAPE).astype(np.uint16))
    outputs = tuple(one.model_copy(update={"threshold": 0.999999}) for one in card.outputs)
    strict = open_engine(card.model_copy(update={"outputs": outputs}))
    assert read(strict, card.path, ImageFile("even", even)).heat_maps == ()
    engine.close()
    strict.close()


def test_heat_maps_come_out_of_the_engines_process_and_are_kept_with_the_workitem(tmp_path: Path) -> None:
    card = load_card(model_folder(tmp_path / "blobs"))
    file = planted(tmp_path)
    engine = open_engine(card)
    here = read(engine, card.path, file).heat_maps
    engine.close()
    with EngineHost(card) as host:
        findings = host.run(Job(card.path, {"radiograph": (file,)}))
    assert [one.image for one in findings.heat_maps] == [file.key]
    assert (findings.heat_maps[0].values == here[0].values).all()
    heatmaps.keep(tmp_path / "maps", "2.25.1", findings)
    [again] = heatmaps.kept(tmp_path / "maps", "2.25.1")
    assert (again.name, again.code, again.image) == (here[0].name, here[0].code, file.key)
    assert (again.values == here[0].values).all()
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["2.25.1.npz"]
    assert heatmaps.kept(tmp_path / "maps", "2.25.2") == ()


def test_the_mean_of_a_class_activation_map_is_the_findings_score_without_its_bias() -> None:
    random = np.random.default_rng(5)
    features, weights = random.random((1, 12, 7, 7)), random.normal(size=(3, 12))
    maps = activation_maps(features, weights, [2, 0])
    scores = weights @ features[0].mean((1, 2))
    np.testing.assert_allclose(maps.mean((1, 2)), scores[[2, 0]], rtol=1e-5)
    np.testing.assert_allclose(activation_maps(maps[None], None, [1])[0], maps[1])


@pytest.mark.parametrize(
    ("features", "weights"),
    [
        (np.zeros((2, 4, 7, 7)), np.zeros((3, 4))),
        (np.zeros((1, 4, 7)), np.zeros((3, 4))),
        (np.zeros((1, 5, 7, 7)), np.zeros((3, 4))),
        (np.zeros((1, 4, 7, 7)), np.zeros((2, 4))),
        (np.zeros((1, 2, 7, 7)), None),
        (np.full((1, 4, 7, 7), np.nan), np.ones((3, 4))),
    ],
    ids=["two images", "no maps", "other weights", "too few outputs", "no weights", "not numbers"],
)
def test_features_that_do_not_fit_are_an_engines_failure(features: Any, weights: Any) -> None:
    with pytest.raises(EngineFailure):
        activation_maps(features, weights, [2])


def test_what_covers_a_pixel_is_averaged_over_all_its_squares() -> None:
    pixels = np.zeros((20, 20), np.float32)
    pixels[8:12, 8:12] = 1

    def infer(inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.asarray(inputs[:, 0].mean((1, 2)), np.float64)[:, None]

    one, many = (occlusion_maps(infer, pixels, 6, batch) for batch in (1, 7))
    np.testing.assert_allclose(one, many)
    assert one.shape == (1, 20, 20)
    assert np.unravel_index(int(one[0].argmax()), one[0].shape)[0] in range(6, 14)


@pytest.mark.parametrize("explain", [{"method": "cam", "weights": "absent.npy"}, {"method": "guess"}], ids=str)
def test_a_card_that_cannot_be_explained_is_refused(tmp_path: Path, explain: dict[str, Any]) -> None:
    with pytest.raises(CardError, match="explain"):
        load_card(model_folder(tmp_path / "blobs", explain=explain))
