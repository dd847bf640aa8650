"""A model in a lower precision: its report on real cases, and the way that is measured to be the fastest here."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from inference.agreement import Agreement, Bounds, compare
from inference.bring.quantise import quantise
from inference.card import Card, load_card
from inference.cases import jobs_in
from inference.cautions import cautions
from inference.engine import open_engine
from inference.engines.choice import Way, read_choice
from inference.engines.distance import distance
from inference.engines.machine import CACHE_VARIABLE, computes_bf16
from inference.engines.onnx import open_model
from inference.engines.onnxfile import describe
from inference.engines.tune import DIFFERENCE, tune
from inference.errors import CardError, EngineFailure
from inference.proof import unproven
from node.cli import app
from tests.dicom_factory import ct_series, radiograph
from tests.model_factory import classification_card, finding, segmentation_card, thresholding, write_model
from tests.small_nets import convolutions, labelling
from tests.unit.test_detect import detector

SIZE = 32


def silent(what: str, done: int, total: int) -> None:
    assert 0 <= done <= total


def silent_count(done: int) -> None:
    assert done > 0


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("radiographs")
    rng = np.random.default_rng(0)
    for number in range(8):
        # Pictures of different contrast, so that the findings differ.
        coarse = rng.integers(0, 4000, (6, 6)) ** (1 + number / 8)
        radiograph(folder, np.kron(coarse / coarse.max() * 4000, np.ones((12, 12))))
    (folder / "notes.txt").write_text("not DICOM")
    ct_series(folder / "ct", np.zeros((3, 8, 8)))
    return folder


def classifier(folder: Path, model: Any = None, **changes: Any) -> Card:
    outputs = [finding(n) for n in range(3)]
    changes = {"preprocess": [{"radiograph_input": {"size": SIZE}}], "outputs": outputs} | changes
    return load_card(write_model(folder, classification_card(**changes), model or convolutions(seed=3)))


def finder(folder: Path, model: Any, **changes: Any) -> Card:
    return classifier(
        folder,
        model,
        **changes,
        task="detection",
        onnx={"precision": "fp32"},
        tensors={"image": "image", "boxes": "boxes", "scores": "scores", "classes": "classes"},
        preprocess=[{"radiograph_input": {"size": 64}}],
        outputs=[finding(n) for n in (1, 2)],
    )


def test_a_model_is_quantised_with_a_report_on_cases_that_did_not_calibrate(tmp_path: Path, radiographs: Path) -> None:
    card = classifier(tmp_path)
    jobs = jobs_in(card, radiographs)
    assert len(jobs) == 8
    made = quantise(card, jobs, tmp_path / "new", precision="int8", progress=silent)
    assert made.passed, made.summary
    assert made.agreement.cases == 4
    assert 0 < made.agreement.largest_difference < 0.02
    new = load_card(made.path)
    assert (new.version, new.onnx and new.onnx.precision) == ("1.0.0-int8", "int8")
    assert new.digest != card.digest
    assert describe(new.directory / "model.onnx").integers == "symmetric"
    report = json.loads((tmp_path / "new" / "report.json").read_text())
    assert report["passed"] is True
    assert report["files"]["model.onnx"] == new.files["model.onnx"].sha256
    assert report["made_from"]["digest"] == card.digest
    assert report["calibration"] == {"cases": 4, "held_out": True, "feeds": 4, "method": "minmax"}
    findings = open_engine(new).run(jobs[0])
    assert (findings.precision, len(findings.classifications)) == ("int8", 3)


def test_a_report_outside_its_bounds_has_not_passed_and_says_by_how_much(tmp_path: Path, radiographs: Path) -> None:
    card = classifier(tmp_path)
    made = quantise(card, jobs_in(card, radiographs), tmp_path / "new", bounds=Bounds(difference=1e-7), progress=silent)
    report = json.loads((tmp_path / "new" / "report.json").read_text())
    assert not made.passed
    assert report["passed"] is False
    assert "allowed 1e-07" in report["summary"]
    # All plans were tried, and the best of them stands.
    assert report["calibration"]["method"].split(",")[0] in ("minmax", "percentile")


def test_what_is_lowered_is_promoted_only_with_a_report_that_has_passed_for_its_files(
    tmp_path: Path, radiographs: Path
) -> None:
    card = classifier(tmp_path)
    assert unproven(card) == ""
    made = load_card(quantise(card, jobs_in(card, radiographs), tmp_path / "new", progress=silent).path)
    assert unproven(made) == ""
    assert cautions(made)[-1].startswith("compared with the exact model on 4 cases only: take 20 or more")
    report = made.directory / "report.json"
    said = json.loads(report.read_text())
    for content, why in (
        ("{", "cannot be read"),
        (json.dumps(said | {"passed": False, "summary": "too far"}), "says that it has not passed: too far"),
        (json.dumps(said | {"passed": "true"}), "has not passed"),
        (json.dumps(said | {"files": {"model.onnx": "0" * 64}}), "is about another model.onnx"),
        (json.dumps(said | {"files": {"other.onnx": "0" * 64}}), "does not name model.onnx"),
        (json.dumps({"passed": True}), "does not name model.onnx"),
    ):
        report.write_text(content)
        assert why in unproven(made)
    report.write_text(json.dumps(said | {"agreement": {"cases": 20}}))
    assert not [line for line in cautions(made) if "compared" in line]
    report.unlink()
    assert "declares int8, and no report.json shows that it answers as the exact model does" in unproven(made)
    silently = classifier(tmp_path / "silently", (made.directory / "model.onnx").read_bytes())
    assert "has model.onnx, which computes with integers" in unproven(silently)


def test_an_ir_that_was_quantised_needs_a_report_and_a_plain_one_none(tmp_path: Path) -> None:
    from openvino import Model, opset13, save_model

    def ir(name: str, *, quantised: bool) -> Card:
        # Pictures come in bytes, which makes nothing of a model an integer.
        image = opset13.parameter([1, 3, 8, 8], np.uint8, name="image")
        weights = opset13.constant(np.full((1, 3, 8, 8), 2, np.int8 if quantised else np.float32))
        scaled = opset13.multiply(opset13.convert(image, "f32"), opset13.convert(weights, "f32"))
        file = tmp_path / name / classification_card()["name"] / "model.xml"
        file.parent.mkdir(parents=True)
        save_model(Model([scaled], [image], name), file)
        return classifier(tmp_path / name, files={"model.xml": {"sha256": sha256(file.read_bytes()).hexdigest()}})

    assert unproven(ir("plain", quantised=False)) == ""
    assert "has model.xml, which computes with integers" in unproven(ir("quantised", quantised=True))


def test_halves_keep_the_tensors_that_the_card_names(tmp_path: Path, radiographs: Path) -> None:
    card = classifier(tmp_path)
    made = quantise(card, jobs_in(card, radiographs), tmp_path / "new", precision="fp16", progress=silent)
    assert made.passed, made.summary
    assert describe(made.path.parent / "model.onnx").precision == "fp16"
    silently = classifier(tmp_path / "silently", (made.path.parent / "model.onnx").read_bytes())
    assert "has model.onnx, which holds its weights in fp16, and no report.json" in unproven(silently)
    assert open_engine(load_card(made.path)).run(jobs_in(card, radiographs)[0]).precision == "fp16"


def test_bf16_changes_the_card_and_no_byte_of_the_file(tmp_path: Path, radiographs: Path) -> None:
    card = classifier(tmp_path)
    if not computes_bf16():
        with pytest.raises(CardError, match="this processor has no bf16, so nothing can be measured"):
            quantise(card, jobs_in(card, radiographs), tmp_path / "new", precision="bf16", progress=silent)
        return
    made = quantise(card, jobs_in(card, radiographs), tmp_path / "new", precision="bf16", progress=silent)
    new = load_card(made.path)
    assert new.files == card.files
    assert new.onnx is not None
    assert new.onnx.precision == "bf16"
    assert 0 < made.agreement.largest_difference < 0.02


def test_a_segmentation_is_compared_by_dice(tmp_path: Path) -> None:
    hu = np.full((12, 16, 16), -500.0)
    hu[3:9, 4:12, 2:9] = 800
    folder = tmp_path / "ct"
    for number in range(2):
        ct_series(folder / str(number), hu + 20 * number)
    card = load_card(
        write_model(
            tmp_path,
            segmentation_card(
                tensors={"image": "image", "output": "scores"},
                layout="ncdhw",
                slab=None,
                window={"size": [8, 16, 16]},
                preprocess=[{"clip": {"low": -1000, "high": 1000}}, {"scale": {"low": -1000, "high": 1000}}],
                postprocess=[],
                outputs=segmentation_card()["outputs"][:1],
            )
            | {"not_analysed": {}},
            labelling(),
        )
    )
    made = quantise(card, jobs_in(card, folder), tmp_path / "new", progress=silent)
    assert made.agreement.dice.keys() == {"right lung"}
    assert made.agreement.dice["right lung"] > 0.98
    assert made.passed, made.summary


@pytest.mark.parametrize(
    ("box", "probability", "alike", "difference"),
    [((10, 10, 30, 30), 0.9, 1.0, 0.0), ((12, 10, 32, 30), 0.8, 1.0, 0.1), ((40, 40, 60, 60), 0.9, 0.0, 0.0)],
)
def test_a_detector_is_compared_by_where_its_boxes_lie(
    tmp_path: Path, radiographs: Path, box: tuple[float, ...], probability: float, alike: float, difference: float
) -> None:
    graphs = (detector([[10, 10, 30, 30]], [0.9], [1]), detector([list(box)], [probability], [1]))
    cards = [finder(tmp_path / str(number), graph) for number, graph in enumerate(graphs)]
    one, two = (open_model(card) for card in cards)
    made = compare(cards[0], one, two, jobs_in(cards[0], radiographs)[:1], progress=silent_count)
    assert (made.cases, made.alike, made.boxes, made.found_nothing) == (1, alike, 2, False)
    assert made.largest_difference == pytest.approx(difference, abs=1e-6)


def test_a_report_on_cases_without_a_single_box_has_not_passed(tmp_path: Path, radiographs: Path) -> None:
    seeing, unsure = (finder(tmp_path / str(score), detector([[10, 10, 30, 30]], [score], [1])) for score in (0.9, 0.1))
    for card, passed in ((seeing, True), (unsure, False)):
        jobs = jobs_in(card, radiographs)[:2]
        made = quantise(card, jobs, card.directory / "new", precision="fp16", progress=silent)
        assert (made.passed, "nothing was found in any case" in made.summary) == (passed, not passed)


@pytest.mark.parametrize(
    ("agreement", "failing"),
    [
        (Agreement(cases=0, not_analysed=3), "no case could be analysed"),
        (Agreement(cases=1, not_analysed=0, largest_difference=float("nan")), "largest difference nan"),
        (Agreement(cases=1, not_analysed=0, alike=0.5), "50.00% of the findings on the same side"),
        (Agreement(cases=1, not_analysed=0, alike=0.5, boxes=2), "50.00% of the boxes that the other way has too"),
        (Agreement(cases=1, not_analysed=0, found_nothing=True), "nothing was found in any case"),
        (Agreement(cases=1, not_analysed=0, dice={"lung": 0.9}), "Dice of lung 0.9000, needed 0.98"),
    ],
)
def test_each_bound_fails_by_itself(agreement: Agreement, failing: str) -> None:
    assert failing in "; ".join(agreement.failings(Bounds()))


def test_what_cannot_be_quantised_is_refused_and_leaves_nothing(tmp_path: Path, radiographs: Path) -> None:
    card = classifier(tmp_path)
    jobs = jobs_in(card, radiographs)
    with pytest.raises(CardError, match="no case in the calibration folder is what this model reads"):
        quantise(card, [], tmp_path / "new", progress=silent)
    (tmp_path / "there").mkdir()
    with pytest.raises(CardError, match="is there already"):
        quantise(card, jobs, tmp_path / "there", progress=silent)
    made = quantise(card, jobs, tmp_path / "new", precision="fp16", progress=silent)
    with pytest.raises(CardError, match="is in fp16 already; quantise the fp32 version"):
        quantise(load_card(made.path), jobs, tmp_path / "again", progress=silent)
    plain = load_card(write_model(tmp_path / "plain", segmentation_card(), thresholding()))
    series = jobs_in(plain, radiographs)
    with pytest.raises(CardError, match="can be quantised"):
        quantise(plain, series, tmp_path / "none", progress=silent)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".") or path.name in ("again", "none")]


# --- measuring


def test_a_way_that_answers_otherwise_is_never_taken(tmp_path: Path) -> None:
    # Each runtime has random numbers of its own, the same for each process of it.
    model = convolutions(seed=3)
    last = model.graph.node.pop()
    last.input[0] = "moved"
    model.graph.node.append(onnx.helper.make_node("RandomUniformLike", ["logit"], ["by"], low=-4.0, high=4.0, seed=1.0))
    model.graph.node.append(onnx.helper.make_node("Add", ["logit", "by"], ["moved"]))
    model.graph.node.append(last)
    choice = tune(classifier(tmp_path, model), tmp_path / "cache")
    assert choice.way == Way("cpu", "fp32")
    assert len(choice.measured) > 1
    assert all("its answers differ by" in one.problem for one in choice.measured[1:])


def test_a_model_that_openvino_cannot_convert_stays_on_onnx_runtime(tmp_path: Path) -> None:
    path = Path(__file__).resolve().parents[2] / "conf" / "models" / "lung-ct"
    choice = tune(load_card(path), tmp_path / "cache")
    assert choice.way == Way("cpu", "fp32")
    assert all("cannot be loaded" in one.problem for one in choice.measured[1:])


def test_a_detector_is_tuned_by_its_boxes_and_stays_as_it_is_where_it_finds_none(tmp_path: Path) -> None:
    sees = detector([[10, 10, 30, 30], [5, 5, 9, 9]], [0.9, 0.2], [1, 2])
    blind = detector([[10, 10, 30, 30]], [0.9], [1])
    blind.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.int64), "none"))
    for output, node in zip(blind.graph.output, list(blind.graph.node)[-3:], strict=True):
        node.output[0] = f"all {output.name}"
        blind.graph.node.append(onnx.helper.make_node("Slice", [node.output[0], "none", "none"], [output.name]))
        output.type.tensor_type.shape.dim[0].dim_param = "n"
    exact, other = tune(finder(tmp_path / "sees", sees), tmp_path / "cache").measured
    assert (exact.way, other.way) == (Way("cpu", "fp32"), Way("openvino", "fp32"))
    assert (other.problem, other.milliseconds > 0) == ("", True)
    assert other.difference < 1e-4
    choice = tune(finder(tmp_path / "blind", blind), tmp_path / "cache")
    assert choice.way == Way("cpu", "fp32")
    assert "nothing could be compared: measure on --images" in choice.measured[1].problem


def test_a_model_without_a_choice_is_told_of(tmp_path: Path) -> None:
    card = classifier(tmp_path, onnx={"providers": ["cpu"]})
    config = tmp_path / "node.yaml"
    config.write_text(json.dumps({"data_dir": str(tmp_path / "var"), "routes": []}))
    shown = CliRunner().invoke(app, ["models", "tune", str(card.directory), "--json", "--config", str(config)])
    assert (shown.exit_code, json.loads(shown.stdout)) == (0, {})
    assert "levels@1.0.0: nothing to choose: its card says what runs it" in shown.stderr


def test_how_far_answers_lie_apart_is_what_the_card_makes_of_them(tmp_path: Path) -> None:
    def said(boxes: list[list[float]], scores: list[float], classes: list[int]) -> dict[str, np.ndarray[Any, Any]]:
        return {"boxes": np.array(boxes), "scores": np.array(scores), "classes": np.array(classes)}

    finds = finder(tmp_path / "finds", detector([[0, 0, 1, 1]], [0.9], [1]))
    exact = said([[16, 16, 32, 32], [0, 0, 8, 8]], [0.9, 0.2], [1, 2])
    for other, apart in (
        (said([[0, 0, 8, 8], [16, 16, 32, 32]], [0.2, 0.9], [2, 1]), 0.0),
        (said([[16, 16, 32, 32.64]], [0.898], [1]), 0.01),
        (said([[16, 16, 32, 32]], [0.6], [1]), 0.3),
        (said([[16, 16, 32, 32]], [0.9], [2]), 1.0),
        (said([[16, 16, 32, 32], [40, 40, 50, 50]], [0.9, 0.8], [1, 1]), 0.375),
        (said(np.zeros((0, 4)).tolist(), [], []), 1.0),
        (said([[16, 16, 32, float("nan")]], [0.9], [1]), float("inf")),
    ):
        assert distance(finds, exact, other) == pytest.approx(apart)
        assert distance(finds, other, exact) == pytest.approx(apart)
    # Below every threshold the likeliest box counts.
    assert distance(finds, said([[0, 0, 8, 8]], [0.2], [2]), said([[0, 0, 8, 8]], [0.25], [2])) == pytest.approx(0.05)
    # However its boxes are written: each pair is 20 by 20 pixels at (10, 10), and the same moved right by 6.4.
    for number, (form, normalised, box, moved) in enumerate(
        [
            ("xyxy", False, [10, 10, 30, 30], [16.4, 10, 36.4, 30]),
            ("xyxy", True, [10, 10, 30, 30], [16.4, 10, 36.4, 30]),
            ("xywh", True, [10, 10, 20, 20], [16.4, 10, 20, 20]),
            ("cxcywh", False, [20, 20, 20, 20], [26.4, 20, 20, 20]),
        ]
    ):
        boxes = {"form": form, "normalised": normalised}
        card = finder(tmp_path / f"form-{number}", detector([[0, 0, 1, 1]], [0.9], [1]), boxes=boxes)
        one, two = (said([[edge / (64 if normalised else 1) for edge in each]], [0.9], [1]) for each in (box, moved))
        assert distance(card, one, two) == pytest.approx(0.1)
    # A box that is as far off by its middle and its size is twice as far off by an edge.
    assert distance(card, one, said([[26.4, 20, 32.8, 20]], [0.9], [1])) == pytest.approx(0.2)
    output = {key: value for key, value in classification_card()["outputs"][0].items() if key != "threshold"}
    ratio = output | {"index": 1, "unit": {"value": "1", "scheme": "UCUM", "meaning": "no units"}}
    measures = classifier(tmp_path / "measures", task="measurement", outputs=[ratio])
    values = [{"output": np.array([given])} for given in ([7, 0.5], [9, 0.51], [9, float("nan")], [9])]
    assert [distance(measures, values[0], one) for one in values] == pytest.approx([0, 0.02, np.inf, np.inf])
    share = classifier(
        tmp_path / "share", task="measurement", outputs=[ratio], postprocess=[{"activation": {"kind": "sigmoid"}}]
    )
    assert distance(share, {"output": np.array([[0, 0.0]])}, {"output": np.array([[0, 0.1]])}) == pytest.approx(
        0.05, abs=1e-4
    )
    # What is reported is stretched about its operating point, and so is the difference.
    sure = classifier(tmp_path / "sure", postprocess=[{"calibrate": {"thresholds": [0.01, 0.5, None]}}])
    one, two = ({"output": np.array([[value, 0.4, 0.9]])} for value in (0.002, 0.008))
    assert distance(sure, one, two) == pytest.approx(0.3)
    assert distance(sure, one, {"output": np.array([[1.2, 0.4, 0.9]])}) == float("inf")


def test_a_model_that_cannot_run_at_all_is_no_choice(tmp_path: Path) -> None:
    card = classifier(tmp_path, tensors={"image": "image", "output": "nothing"})
    with pytest.raises(EngineFailure, match="has no output 'nothing'"):
        tune(card, tmp_path / "cache")


def test_the_commands_make_a_version_and_a_choice_that_is_followed(
    tmp_path: Path, radiographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = classifier(tmp_path / "models")
    config = tmp_path / "node.yaml"
    config.write_text(json.dumps({"data_dir": str(tmp_path / "var"), "models": str(tmp_path / "models"), "routes": []}))
    new = tmp_path / "new"
    arguments = ["models", "quantise", "levels", "--calibration", str(radiographs), "--output", str(new)]
    run = CliRunner().invoke(app, [*arguments, "--config", str(config)])
    assert run.exit_code == 0, run.output
    assert "passed; 4 cases; largest difference" in " ".join(run.output.split())
    assert load_card(new).name == card.name
    assert CliRunner().invoke(app, [*arguments, "--limit", "1e-9", "--config", str(config)]).exit_code != 0
    tuning = ["models", "tune", "levels", "--images", str(radiographs), "--json", "--config", str(config)]
    shown = CliRunner().invoke(app, tuning)
    assert shown.exit_code == 0, shown.output
    chosen = json.loads(shown.stdout)["levels@1.0.0"]
    ways = {f"{one['way']['provider']}/{one['way']['precision']}": one for one in chosen["measured"]}
    assert set(ways) == {"cpu/fp32", "openvino/fp32", *(["openvino/bf16"] if computes_bf16() else [])}
    assert all(one["milliseconds"] > 0 and one["difference"] <= DIFFERENCE for one in ways.values())
    # What was measured is what the next process of the engine does, in the node's own folder.
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "var" / "engines"))
    kept = read_choice(card, "model.onnx")
    assert kept is not None
    assert chosen["way"] == {"provider": kept.way.provider, "precision": kept.way.precision}
    assert open_model(card).provider == {"cpu": "onnxruntime:CPU", "openvino": "openvino:CPU"}[kept.way.provider]
