"""A model with a grid of its own: declared steps before it, and its mask back on the pixels that were received."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.onnx_ml_pb2 import ModelProto

from inference.card import load_card
from inference.engine import ImageFile, Job, open_engine
from inference.errors import EngineFailure
from inference.findings import Findings, Segmentation
from inference.marking import planes_of
from tests.dicom_factory import ct_series
from tests.model_factory import segmentation_card, write_model

SHAPE = (24, 40, 36)
SPACING = (2.5, 1.0, 1.0)


def scoring(channels: int = 3) -> ModelProto:
    """Scores for background, for what lies near 0.6 and for what lies near 1, voxel by voxel."""
    centres = helper.make_tensor("centres", TensorProto.FLOAT, [1, channels, 1, 1, 1], [0.0, 0.6, 1.0, 2.0][:channels])
    graph = helper.make_graph(
        [
            helper.make_node("Sub", ["image", "centres"], ["away"]),
            helper.make_node("Mul", ["away", "away"], ["square"]),
            helper.make_node("Neg", ["square"], ["scores"]),
        ],
        "scoring",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, "d", "h", "w"])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", channels, "d", "h", "w"])],
        [centres],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def card_of(**changes: Any) -> dict[str, Any]:
    return (
        segmentation_card(
            tensors={"image": "image", "output": "scores"},
            layout="ncdhw",
            slab=None,
            preprocess=[
                {"orient": {"axes": "RAS"}},
                {"resample": {"spacing_mm": [1.5, 1.5, 2.5]}},
                {"clip": {"low": -1000, "high": 1000}},
                {"scale": {"low": -1000, "high": 1000}},
            ],
            window={"size": [16, 16, 8], "overlap": 0.25},
            postprocess=[],
            not_analysed={},
        )
        | changes
    )


def two_boxes() -> np.ndarray:
    """HU on (slices towards the head, rows towards the back, columns towards the left)."""
    hu = np.full(SHAPE, -1000.0)
    hu[4:12, 8:20, 6:18] = 200
    hu[14:20, 20:34, 18:30] = 1000
    return hu


def run(tmp_path: Path, files: list[Path], card: dict[str, Any], model: ModelProto | None = None) -> Findings:
    path = write_model(
        tmp_path / "models", {key: value for key, value in card.items() if value is not None}, model or scoring()
    )
    engine = open_engine(load_card(path))
    try:
        return engine.run(Job(path, {"ct": tuple(ImageFile(str(number), file) for number, file in enumerate(files))}))
    finally:
        engine.close()


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


def test_a_mask_made_on_a_coarser_turned_grid_lies_on_the_pixels_that_came(tmp_path: Path) -> None:
    files = ct_series(tmp_path / "ct", two_boxes(), spacing=SPACING)
    findings = run(tmp_path, files, card_of())
    assert findings.segmentation is not None
    truth = two_boxes() > -1000
    found = findings.segmentation.labels > 0
    assert found.shape == SHAPE
    # Edges between air and bone pass through what counts as the softer label, so the boxes are told apart by place.
    for box in (slice(0, 13), slice(13, None)):
        assert dice(found[box], truth[box]) > 0.88
        middle = np.argwhere(found[box]).mean(0) - np.argwhere(truth[box]).mean(0)
        assert (np.abs(middle) <= 0.5).all(), "within half a voxel of the patient's own place"
    total = sum(one.volume_ml for one in findings.segmentation.segments)
    assert total == pytest.approx(float(truth.sum()) * 2.5 / 1000, rel=0.1)
    assert (findings.provider, findings.precision) != ("", "")


@pytest.mark.parametrize(
    "changes",
    [
        {"window": None},
        {"window": {"size": [64, 64, 64]}},
        {"window": {"size": [10, 12, 8], "overlap": 0.5, "mirror": [1, 2]}},
        {"postprocess": [{"activation": {"kind": "softmax"}}]},
    ],
    ids=["whole", "larger-than-the-volume", "mirrored", "softmax"],
)
def test_how_it_is_cut_does_not_change_what_is_found(tmp_path: Path, changes: dict[str, Any]) -> None:
    files = ct_series(tmp_path / "ct", two_boxes(), spacing=SPACING)
    usual = run(tmp_path / "usual", files, card_of()).segmentation
    other = run(tmp_path / "other", files, card_of(**changes)).segmentation
    assert usual is not None
    assert other is not None
    assert (usual.labels == other.labels).mean() > 0.999


def test_without_geometric_steps_the_mask_is_exact(tmp_path: Path) -> None:
    files = ct_series(tmp_path / "ct", two_boxes(), spacing=SPACING)
    steps = [{"clip": {"low": -1000, "high": 1000}}, {"scale": {"percentiles": [0, 100]}}]
    findings = run(tmp_path, files, card_of(preprocess=steps))
    assert findings.segmentation is not None
    truth = np.select([two_boxes() == 200, two_boxes() == 1000], [1, 2], 0)
    assert (findings.segmentation.labels == truth).all()


def test_the_volumes_of_a_tilted_gantry_are_those_of_the_mask_on_its_images(tmp_path: Path) -> None:
    """The model marks air too, and with it the wedges that make the box upright, of which no image shows anything."""
    files = ct_series(tmp_path / "ct", two_boxes(), spacing=SPACING, step=(0, 0.9, 2.5))
    steps = [{"clip": {"low": -1000, "high": 1000}}, {"scale": {"low": -1000, "high": 1000}}]
    airy = scoring(3)
    airy.graph.initializer[0].CopyFrom(helper.make_tensor("centres", TensorProto.FLOAT, [1, 3, 1, 1, 1], [0.6, 0, 1]))
    segmentation = run(tmp_path, files, card_of(preprocess=steps), airy).segmentation
    assert segmentation is not None
    for segment in segmentation.segments:
        voxels = np.count_nonzero(segmentation.labels == segment.label)
        assert segment.volume_ml == pytest.approx(voxels * np.prod(SPACING) / 1000)
        assert voxels > 100


def test_channels_over_a_threshold_get_their_own_labels_and_holes_are_filled(tmp_path: Path) -> None:
    hu = two_boxes()
    hu[6:10, 12:15, 10:13] = -1000
    files = ct_series(tmp_path / "ct", hu, spacing=SPACING)
    steps = [{"clip": {"low": -1000, "high": 1000}}, {"scale": {"low": -1000, "high": 1000}}]
    after = [{"activation": {"kind": "sigmoid"}}, {"threshold": {"value": 0.49}}, {"fill_holes": {}}]
    centred = scoring(3)
    # The first channel, for background, is dropped: one channel for each output.
    centred.graph.initializer[0].CopyFrom(helper.make_tensor("centres", TensorProto.FLOAT, [1, 2, 1, 1, 1], [0.6, 1.0]))
    findings = run(tmp_path, files, card_of(preprocess=steps, postprocess=after), centred)
    assert findings.segmentation is not None
    truth = np.select([two_boxes() == 200, two_boxes() == 1000], [1, 2], 0)
    assert (findings.segmentation.labels == truth).all()


def test_holes_are_filled_in_the_planes_of_the_images_whichever_way_these_lie(tmp_path: Path) -> None:
    """A tunnel along the patient's left is a hole in sagittal planes alone."""
    body = np.full((20, 20, 20), -1000.0)
    body[4:16, 4:16, 4:16] = 1000
    body[4:16, 8:12, 8:12] = -1000
    steps = [{"clip": {"low": -1000, "high": 1000}}, {"scale": {"low": -1000, "high": 1000}}]
    found = {}
    for name, axes in {"sagittal": (0, 1, 0, 0, 0, -1), "axial": (1, 0, 0, 0, 1, 0)}.items():
        # Stacked to the left, or turned so that the tunnel lies within the planes.
        hu = body if name == "sagittal" else body.transpose(1, 2, 0)
        files = ct_series(tmp_path / name, hu, spacing=(1, 1, 1), orientation=axes)
        findings = run(tmp_path / name, files, card_of(preprocess=steps, postprocess=[{"fill_holes": {}}]))
        assert findings.segmentation is not None
        found[name] = int(np.count_nonzero(findings.segmentation.labels)) - int(np.count_nonzero(body > 0))
    assert found == {"sagittal": 12 * 4 * 4, "axial": 0}


def test_a_voxel_that_several_channels_reach_is_given_to_none_unless_the_card_says_to_which(tmp_path: Path) -> None:
    files = ct_series(tmp_path / "ct", two_boxes(), spacing=SPACING)
    steps = [{"clip": {"low": -1000, "high": 1000}}, {"scale": {"low": -1000, "high": 1000}}]
    nested = scoring(3)
    # The first reaches 0.45 in both boxes, the second in the denser alone, where the first's score is larger.
    nested.graph.initializer[0].CopyFrom(helper.make_tensor("centres", TensorProto.FLOAT, [1, 2, 1, 1, 1], [0.8, 1.3]))

    def marked(overlap: dict[str, str]) -> Segmentation:
        after = [
            {"activation": {"kind": "sigmoid"}},
            {"threshold": {"value": 0.45, **overlap}},
            {"keep_components": {"minimum_ml": 0.5}},
        ]
        findings = run(
            tmp_path / "-".join(("m", *overlap.values())), files, card_of(preprocess=steps, postprocess=after), nested
        )
        assert findings.segmentation is not None
        return findings.segmentation

    def labels(overlap: dict[str, str]) -> np.ndarray:
        return marked(overlap).labels

    with pytest.raises(EngineFailure, match=r"threshold\.overlap: keep"):
        labels({})
    assert (labels({"overlap": "largest"}) == np.where(two_boxes() > -1000, 1, 0)).all()
    assert (labels({"overlap": "last"}) == np.select([two_boxes() == 200, two_boxes() == 1000], [1, 2], 0)).all()
    kept = marked({"overlap": "keep"})
    for label, where in ((1, two_boxes() > -1000), (2, two_boxes() == 1000)):
        planes = planes_of(kept, label)
        assert all((planes.get((str(number), 0), False) == plane).all() for number, plane in enumerate(where))
        # All of the outer one, with what lies in it: 2.5 mm3 a voxel.
        assert kept.segments[label - 1].volume_ml == pytest.approx(where.sum() * 0.0025)


def test_scores_for_labels_that_the_card_does_not_name_are_refused(tmp_path: Path) -> None:
    hu = two_boxes()
    hu[0, 0, 0] = 3000
    files = ct_series(tmp_path / "ct", hu, spacing=SPACING)
    steps = [{"scale": {"low": -1000, "high": 1000, "clip": False}}]
    with pytest.raises(EngineFailure, match="a label that its card does not name"):
        run(tmp_path, files, card_of(preprocess=steps), scoring(4))


@pytest.mark.parametrize("free", [False, True], ids=["declared", "free"])
@pytest.mark.parametrize("postprocess", [[], [{"threshold": {"value": 0.5, "overlap": "last"}}]], ids=["best", "over"])
def test_a_card_that_names_a_structure_which_the_graph_cannot_see_is_refused(
    tmp_path: Path, postprocess: list[dict[str, Any]], free: bool
) -> None:
    files = ct_series(tmp_path / "ct", two_boxes(), spacing=SPACING)
    graph = scoring(1 if postprocess else 2)
    if free:
        graph.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "any"
    with pytest.raises(EngineFailure, match=r"its card (means .* channels|names)"):
        run(tmp_path, files, card_of(postprocess=postprocess), graph)


def test_an_even_volume_is_not_analysed_where_a_step_would_divide_by_nothing(tmp_path: Path) -> None:
    files = ct_series(tmp_path / "ct", np.zeros(SHAPE), spacing=SPACING)
    findings = run(tmp_path, files, card_of(preprocess=[{"z_score": {}}]))
    assert findings.not_analysed is not None
    assert findings.not_analysed.reason == "pixels-constant"


def test_a_standardised_volume_has_no_mean_and_one_deviation(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    hu = np.rint(rng.normal(40, 300, SHAPE)).clip(-1000, 2000)
    files = ct_series(tmp_path / "ct", hu, spacing=SPACING)
    findings = run(tmp_path, files, card_of(preprocess=[{"z_score": {}}]))
    assert findings.segmentation is not None
    z = (hu - hu.mean()) / hu.std()
    expected = np.stack([-(z**2), -((z - 0.6) ** 2), -((z - 1) ** 2)]).argmax(0)
    assert (findings.segmentation.labels == expected).mean() > 0.999
