"""ONNX files on ONNX Runtime and OpenVINO: what is refused when they are loaded, and what runs them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from inference.card import Card, load_card
from inference.engine import ImageFile, Job, Model, open_engine
from inference.engines import onnx as onnx_engine
from inference.engines import openvino as openvino_engine
from inference.engines.choice import Choice, Way, read_choice, write_choice
from inference.engines.machine import CACHE_VARIABLE, computes_bf16
from inference.engines.onnxfile import describe
from inference.errors import CardError, EngineFailure
from tests.dicom_factory import radiograph
from tests.model_factory import classification_card, segmentation_card, thresholding, write_model
from tests.small_nets import convolutions, quantised

SIZE = 32


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return convolutions(seed=1).SerializeToString()


def card_of(folder: Path, model: onnx.ModelProto | bytes, **changes: Any) -> Card:
    changes = {"preprocess": [{"radiograph_input": {"size": SIZE}}]} | changes
    return load_card(write_model(folder, classification_card(**changes), model))


def opened(card: Card) -> Model:
    module = onnx_engine if card.engine == "onnx" else openvino_engine
    return module.open_model(card)


def image(seed: int = 0, count: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).random((count, 1, SIZE, SIZE), dtype=np.float32)


def job(card: Card, folder: Path) -> Job:
    pixels = np.random.default_rng(0).integers(0, 4000, (64, 64))
    return Job(card.path, {"radiograph": (ImageFile("1.2.3", radiograph(folder / "images", pixels)),)})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(CACHE_VARIABLE, str(folder))
    return folder


# --- what is refused when it is loaded


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
@pytest.mark.parametrize(
    "bytes_of_file",
    [b"", b"garbage" * 100, b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\x3a\x7f" + b"\0" * 20],
    ids=["empty", "text", "endless-number", "length-beyond-end"],
)
def test_bytes_that_are_no_onnx_are_refused_with_the_file_and_what_to_do(
    tmp_path: Path, engine: str, bytes_of_file: bytes
) -> None:
    card = card_of(tmp_path, bytes_of_file, engine=engine)
    with pytest.raises(EngineFailure, match=r"model.onnx is no ONNX file .*: export the model again"):
        opened(card)


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_an_unknown_operator_is_refused_by_its_name(tmp_path: Path, engine: str) -> None:
    model = convolutions(seed=1)
    model.graph.node[1].op_type = "Frobnicate"
    model.graph.node[1].domain = "acme"
    model.opset_import.append(helper.make_opsetid("acme", 1))
    with pytest.raises(EngineFailure, match=r"model.onnx cannot be loaded: .*Frobnicate"):
        opened(card_of(tmp_path, model, engine=engine))


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
@pytest.mark.parametrize(
    "place", ["../secret.bin", "/etc/hostname", "weights.bin", "linked.bin", "deep/../../secret.bin"]
)
def test_weights_outside_what_the_card_has_hashed_are_never_read(tmp_path: Path, engine: str, place: str) -> None:
    (tmp_path / "levels" / "deep").mkdir(parents=True)
    for name in ("secret.bin", "levels/weights.bin"):
        (tmp_path / name).write_bytes(b"\0" * 4096)
    (tmp_path / "levels" / "linked.bin").symlink_to("../secret.bin")
    card = card_of(tmp_path, with_external_weights(place), engine=engine)
    with pytest.raises(EngineFailure, match=r"keeps weights in .* which is no file of this card: list it under files"):
        opened(card)


def test_weights_in_a_subgraph_of_a_subgraph_are_found_too(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["out"])],
        "inner",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [4])],
        [external("../../x.bin", [4])],
    )
    middle = helper.make_graph(
        [helper.make_node("If", ["yes"], ["mid"], then_branch=inner, else_branch=inner)],
        "middle",
        [],
        [helper.make_tensor_value_info("mid", TensorProto.FLOAT, [4])],
    )
    constant = helper.make_node("Constant", [], ["c"])
    attribute = constant.attribute.add()
    attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
    attribute.t.CopyFrom(external("elsewhere.bin", [4]))
    graph = helper.make_graph(
        [constant, helper.make_node("If", ["yes"], ["y"], then_branch=middle, else_branch=middle)],
        "outer",
        [helper.make_tensor_value_info("yes", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    assert set(describe(tmp_path / "m.onnx").external) == {"../../x.bin", "elsewhere.bin"}


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_weights_in_a_file_that_the_card_lists_are_read(tmp_path: Path, engine: str) -> None:
    card = write_model(tmp_path, classification_card(engine=engine, preprocess=[{"radiograph_input": {"size": SIZE}}]),
                       with_external_weights("weights.bin"))  # fmt: skip
    weights = np.full(1, 2.0, np.float32).tobytes()
    (card.parent / "weights.bin").write_bytes(weights)
    values = yaml.safe_load(card.read_text())
    values["files"]["weights.bin"] = {"sha256": hashlib.sha256(weights).hexdigest()}
    card.write_text(yaml.safe_dump(values))
    answer = opened(load_card(card)).infer({"image": image()})["output"]
    np.testing.assert_allclose(answer, [[2 * image().mean()]], rtol=1e-4)


def test_a_wrong_hash_is_refused_before_any_runtime_sees_the_file(tmp_path: Path, classifier: bytes) -> None:
    path = write_model(tmp_path, classification_card(), classifier)
    (path.parent / "model.onnx").write_bytes(classifier[:-1] + b"\0")
    with pytest.raises(CardError, match=r"files.model.onnx.sha256: expected [0-9a-f]{64}, the file has"):
        load_card(path)


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"preprocess": [{"radiograph_input": {"size": 64}}]}, r"tensors.image: .*shape \(any, 1, 32, 32\); .*64, 64"),
        ({"tensors": {"image": "image", "output": "nothing"}}, r"tensors.output: .* has no output 'nothing' .*maps"),
        ({"tensors": {"image": "image", "output": "image"}}, r"tensors.output: .* has no output 'image'"),
        ({"tensors": {"image": "picture", "output": "probability"}}, r"tensors.image: .* has no input 'picture'"),
        (
            {"tensors": {"image": "image", "output": "probability", "features": "probability"}},
            r"tensors.features: .*shape \(any, 3\); its card means \(images, channels, rows, columns\)",
        ),
    ],
)
def test_a_card_that_lies_about_its_tensors_is_refused_with_the_key(
    tmp_path: Path, classifier: bytes, engine: str, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(EngineFailure, match=reason):
        opened(card_of(tmp_path, classifier, engine=engine, **changes))


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_an_answer_in_text_or_in_a_sequence_is_refused_by_its_type(tmp_path: Path, engine: str) -> None:
    model = convolutions(seed=1)
    del model.graph.output[:]
    model.graph.node.append(helper.make_node("Cast", ["probability"], ["words"], to=TensorProto.STRING))
    model.graph.node.append(helper.make_node("SequenceConstruct", ["probability"], ["several"]))
    model.graph.output.append(helper.make_tensor_value_info("words", TensorProto.STRING, [None, 3]))
    model.graph.output.append(helper.make_tensor_sequence_value_info("several", TensorProto.FLOAT, None))
    for name in ("words", "several"):
        card = card_of(tmp_path / name, model, engine=engine, tensors={"image": "image", "output": name})
        with pytest.raises(EngineFailure, match=r"a classification means float32|cannot be loaded: ") as caught:
            opened(card)
        assert "TypeError" not in caught.value.text


def test_a_card_that_names_more_findings_than_the_file_has_is_refused(tmp_path: Path, classifier: bytes) -> None:
    outputs = [classification_card()["outputs"][0] | {"index": 7}]
    with pytest.raises(EngineFailure, match=r"shape \(any, 3\); its card means \(images, 8 or more\)"):
        opened(card_of(tmp_path, classifier, outputs=outputs))


def test_a_card_of_another_task_than_the_file_is_refused(tmp_path: Path, classifier: bytes) -> None:
    tensors = {"image": "image", "output": "probability"}
    card = load_card(write_model(tmp_path, segmentation_card(tensors=tensors), classifier))
    with pytest.raises(
        EngineFailure, match=r"tensors.image: .*its card means \(slices, rows, columns\), all of them free"
    ):
        opened(card)
    labels = load_card(write_model(tmp_path / "other", segmentation_card(), retyped_labels()))
    with pytest.raises(EngineFailure, match=r"tensors.output: .*'labels' as int64; a segmentation means uint8"):
        opened(labels)


def test_a_tensor_larger_than_the_cards_memory_is_refused_before_it_is_made(tmp_path: Path) -> None:
    model = convolutions(seed=1, size=60_000)
    with pytest.raises(EngineFailure, match=r"declares 'image' with 13732 MB at least, more than resources.memory_mb"):
        opened(card_of(tmp_path, model, preprocess=[{"radiograph_input": {"size": 4096}}]))


def test_several_onnx_files_or_none_are_refused(tmp_path: Path, classifier: bytes) -> None:
    path = write_model(tmp_path, classification_card(), classifier)
    values = yaml.safe_load(path.read_text())
    (path.parent / "model.onnx").rename(path.parent / "model.bin")
    values["files"] = {"model.bin": values["files"]["model.onnx"]}
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(EngineFailure, match=r"expected exactly one .onnx file, found 0"):
        opened(load_card(path))


# --- what runs it


def test_both_engines_give_the_same_answers_and_say_what_they_are(tmp_path: Path, classifier: bytes) -> None:
    answers = {}
    for engine in ("onnx", "openvino"):
        model = opened(card_of(tmp_path / engine, classifier, engine=engine))
        answers[model.provider, model.precision] = model.infer({"image": image(count=3)})["output"]
        model.close()
    assert set(answers) == {("onnxruntime:CPU", "fp32"), ("openvino:CPU", "fp32")}
    np.testing.assert_allclose(*answers.values(), atol=1e-5)


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_feature_maps_come_out_beside_the_answer(tmp_path: Path, classifier: bytes, engine: str) -> None:
    tensors = {"image": "image", "output": "probability", "features": "maps"}
    answers = opened(card_of(tmp_path, classifier, engine=engine, tensors=tensors)).infer({"image": image()})
    assert {role: answer.shape for role, answer in answers.items()} == {"output": (1, 3), "features": (1, 8, 32, 32)}
    pooled = answers["features"].mean(axis=(2, 3))
    assert np.isfinite(pooled).all()
    assert pooled.std() > 0


def test_an_answer_of_openvino_is_not_overwritten_by_the_next_run(tmp_path: Path, classifier: bytes) -> None:
    model = opened(card_of(tmp_path, classifier, engine="openvino"))
    first = model.infer({"image": image(1)})["output"]
    copy = first.copy()
    model.infer({"image": image(2)})
    np.testing.assert_array_equal(first, copy)


def test_a_provider_that_is_not_here_is_passed_over_or_refused_where_nothing_is_left(
    tmp_path: Path, classifier: bytes
) -> None:
    model = opened(card_of(tmp_path / "a", classifier, onnx={"providers": ["tensorrt", "cuda", "cpu"]}))
    assert model.provider == "onnxruntime:CPU"
    with pytest.raises(EngineFailure, match=r"onnx.providers: none of tensorrt, cuda is here: .* or allow cpu"):
        opened(card_of(tmp_path / "b", classifier, onnx={"providers": ["tensorrt", "cuda"]}))
    preferred = opened(card_of(tmp_path / "c", classifier, onnx={"providers": ["openvino", "cpu"]}))
    assert preferred.provider == "openvino:CPU"


def test_a_declared_bf16_is_used_where_the_processor_has_it_and_said_truly_where_not(
    tmp_path: Path, classifier: bytes
) -> None:
    card = card_of(tmp_path, classifier, onnx={"providers": ["openvino"], "precision": "bf16"})
    model = opened(card)
    assert model.precision == ("bf16" if computes_bf16() else "fp32")
    exact = opened(card_of(tmp_path / "exact", classifier)).infer({"image": image()})["output"]
    np.testing.assert_allclose(model.infer({"image": image()})["output"], exact, atol=0.02)


def test_findings_say_what_really_ran(tmp_path: Path, classifier: bytes) -> None:
    card = card_of(tmp_path, classifier, onnx={"providers": ["openvino"]})
    findings = open_engine(card).run(job(card, tmp_path))
    assert findings.not_analysed is None
    assert (findings.provider, findings.precision) == ("openvino:CPU", "fp32")


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_an_answer_that_is_not_a_number_makes_no_finding(tmp_path: Path, engine: str) -> None:
    model = convolutions(seed=1)
    bias = next(one for one in model.graph.initializer if one.name == "bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(3, np.nan, np.float32), "bias"))
    card = card_of(tmp_path, model, engine=engine)
    with pytest.raises(EngineFailure, match=r"not a number"):
        open_engine(card).run(job(card, tmp_path))


# --- integers


def test_a_quantised_file_is_known_and_runs_on_both_engines(tmp_path: Path) -> None:
    symmetric = quantised(convolutions(seed=1), [image(n) for n in range(4)], symmetric=True)
    exact = opened(card_of(tmp_path / "exact", convolutions(seed=1))).infer({"image": image(9)})["output"]
    for engine in ("onnx", "openvino"):
        model = opened(card_of(tmp_path / engine, symmetric, engine=engine, **{engine: {"precision": "int8"}}))
        assert model.precision == "int8"
        np.testing.assert_allclose(model.infer({"image": image(9)})["output"], exact, atol=0.05)


def test_asymmetric_integers_never_reach_openvino(tmp_path: Path, cache: Path) -> None:
    unsigned = quantised(convolutions(seed=1), [image(n) for n in range(4)], symmetric=False)
    card = card_of(tmp_path / "a", unsigned, engine="openvino", openvino={"precision": "int8"})
    with pytest.raises(EngineFailure, match=r"unsigned or asymmetric integers, which may end OpenVINO's process"):
        opened(card)
    card = card_of(tmp_path / "b", unsigned, onnx={"providers": ["openvino", "cpu"], "precision": "int8"})
    assert opened(card).provider == "onnxruntime:CPU"


@pytest.mark.parametrize(
    ("made", "declared", "reason"),
    [
        ("fp32", "int8", "is a model in fp32, and the card says int8"),
        ("int8", "fp32", "computes with integers, and the card says fp32"),
    ],
)
def test_a_card_that_lies_about_integers_is_refused(
    tmp_path: Path, classifier: bytes, made: str, declared: str, reason: str
) -> None:
    model = classifier if made == "fp32" else quantised(convolutions(seed=1), [image()], symmetric=True)
    with pytest.raises(EngineFailure, match=reason):
        opened(card_of(tmp_path, model, onnx={"precision": declared}))


# --- what was measured


def test_a_measured_choice_is_followed_and_bounded_by_the_card(tmp_path: Path, classifier: bytes, cache: Path) -> None:
    card = card_of(tmp_path / "auto", classifier)
    assert opened(card).provider == "onnxruntime:CPU"
    assert write_choice(card, "model.onnx", Choice(Way("openvino", "bf16")))
    assert read_choice(card, "model.onnx") == Choice(Way("openvino", "bf16"))
    assert opened(card).provider == "openvino:CPU"
    exact = opened(card_of(tmp_path / "exact", classifier, onnx={"precision": "fp32"}))
    assert (exact.provider, exact.precision) == ("onnxruntime:CPU", "fp32")
    named = opened(card_of(tmp_path / "named", classifier, onnx={"providers": ["cpu"]}))
    assert named.provider == "onnxruntime:CPU"


def test_a_compiled_model_is_kept_and_a_folder_of_others_is_not_used(
    tmp_path: Path, classifier: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = card_of(tmp_path / "m", classifier, engine="openvino")
    opened(card)
    assert list((cache / "openvino").glob("*.blob"))
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv(CACHE_VARIABLE, str(shared))
    opened(card)
    assert not list(shared.iterdir())


def test_a_damaged_choice_counts_as_none(tmp_path: Path, classifier: bytes, cache: Path) -> None:
    card = card_of(tmp_path / "auto", classifier)
    write_choice(card, "model.onnx", Choice(Way("openvino", "fp32")))
    (kept,) = (cache / "choices").iterdir()
    for damage in ("", "[]", '{"way": {"provider": "../x", "precision": "fp32"}, "measured": []}'):
        kept.write_text(damage)
        assert read_choice(card, "model.onnx") is None
        assert opened(card).provider == "onnxruntime:CPU"


def external(place: str, shape: list[int]) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", place), ("offset", "0"), ("length", str(4 * int(np.prod(shape))))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def with_external_weights(place: str) -> onnx.ModelProto:
    """The mean of each image, times a weight that lies in another file."""
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "one"], ["column"]),
        helper.make_node("Mul", ["column", "w"], ["probability"]),
    ]
    graph = helper.make_graph(
        nodes,
        "outside",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, SIZE, SIZE])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n", 1])],
        [
            external(place, [1]),
            numpy_helper.from_array(np.array([1, 2, 3]), "axes"),
            numpy_helper.from_array(np.array([1]), "one"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def retyped_labels() -> onnx.ModelProto:
    """A segmentation whose labels are int64."""
    model = thresholding()
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.UINT8:
                attribute.i = TensorProto.INT64
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    return model
