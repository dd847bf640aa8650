"""OpenVINO's own format: the pair of .xml and .bin runs as its ONNX file does, on several streams, or is refused."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import yaml

from inference.card import Card, load_card
from inference.engine import ImageFile, Job
from inference.engines.onnx import OnnxModel
from inference.engines.openvino import OpenVinoModel, open_model
from inference.errors import EngineFailure
from inference.host import EngineHost
from tests.dicom_factory import radiograph
from tests.model_factory import classification_card, finding, write_model
from tests.small_nets import convolutions

SIZE = 32
NET = convolutions(seed=1)


def card_of(folder: Path, files: dict[str, bytes], **changes: Any) -> Card:
    """A card over the files of an IR, named as they are given."""
    place = folder / "levels"
    place.mkdir(parents=True)
    for name, content in files.items():
        (place / name).write_bytes(content)
    outputs = [finding(n) for n in range(3)]
    values = classification_card(
        engine="openvino",
        files={name: {"sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()},
        preprocess=[{"radiograph_input": {"size": SIZE}}],
        outputs=outputs,
    )
    (place / "card.yaml").write_text(yaml.safe_dump(values | changes), encoding="utf-8")
    return load_card(place)


@pytest.fixture(scope="module")
def ir(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The small classifier as OpenVINO's converter writes it: weights in halves unless told otherwise."""
    folder = tmp_path_factory.mktemp("ir")
    (folder / "model.onnx").write_bytes(NET.SerializeToString())
    openvino.save_model(openvino.convert_model(folder / "model.onnx"), folder / "model.xml")
    return {name: (folder / name).read_bytes() for name in ("model.xml", "model.bin")}


def images(count: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).random((count, 1, SIZE, SIZE), dtype=np.float32)


def test_an_ir_answers_as_the_onnx_file_that_it_was_made_from(tmp_path: Path, ir: dict[str, bytes]) -> None:
    sized = {"preprocess": [{"radiograph_input": {"size": SIZE}}]}
    exact = OnnxModel(load_card(write_model(tmp_path / "onnx", classification_card(**sized), NET)))
    tensors = {"image": "image", "output": "probability", "features": "maps"}
    model = open_model(card_of(tmp_path / "ir", ir, tensors=tensors))
    assert (model.provider, model.precision) == ("openvino:CPU", "fp32")
    answers = model.infer({"image": images(3)})
    assert answers["features"].shape == (3, 8, SIZE, SIZE)
    # The weights went through halves.
    np.testing.assert_allclose(answers["output"], exact.infer({"image": images(3)})["output"], atol=2e-3)


def test_studies_at_once_run_on_streams_of_their_own_and_get_their_own_answers(
    tmp_path: Path, ir: dict[str, bytes]
) -> None:
    card = card_of(
        tmp_path,
        ir,
        openvino={"streams": 2},
        resources={"seconds": 60, "memory_mb": 2048, "threads": 2, "concurrency": 2},
        batch={"maximum": 1},
    )
    model = open_model(card)
    assert isinstance(model, OpenVinoModel)
    assert model.streams == 2
    jobs = []
    for number in range(6):
        pixels = np.kron(np.random.default_rng(number).integers(0, 4000, (6, 6)), np.ones((12, 12)))
        image = ImageFile(str(number), radiograph(tmp_path / "images", pixels))
        jobs.append(Job(card.path, {"radiograph": (image,)}))
    said: dict[int, list[float]] = {}

    def probabilities(number: int) -> list[float]:
        return [one.probability for one in host.run(jobs[number]).classifications]

    def run(numbers: range) -> None:
        said.update((number, probabilities(number)) for number in numbers)

    with EngineHost(card) as host:
        host.load()
        threads = [threading.Thread(target=run, args=(range(start, 6, 2),)) for start in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        alone = {number: probabilities(number) for number in range(6)}
    assert said.keys() == alone.keys()
    assert len({tuple(one) for one in said.values()}) == 6
    for number, values in alone.items():
        assert said[number] == pytest.approx(values, abs=1e-5)


Change = Callable[[dict[str, bytes]], dict[str, bytes]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda files: {"model.xml": files["model.xml"]}, r"exactly one \.bin file, found 0"),
        (
            lambda files: {"model.xml": files["model.xml"], "weights.bin": files["model.bin"]},
            r"goes with a \.bin of the same name, found weights\.bin",
        ),
        (lambda files: files | {"model.xml": b"garbage" * 100}, "is no OpenVINO IR"),
        (lambda files: files | {"model.xml": b""}, "is no OpenVINO IR"),
        (lambda files: files | {"model.xml": files["model.xml"][:900]}, "cannot be loaded"),
        (lambda files: files | {"model.bin": files["model.bin"][:100]}, "cannot be loaded"),
        (lambda files: files | {"model.bin": b""}, "cannot be loaded"),
        (
            lambda files: files | {"model.xml": files["model.xml"].replace(b'"Convolution"', b'"Frobnicate"')},
            "cannot be loaded: .*Frobnicate",
        ),
        (
            lambda files: files | {"model.xml": files["model.xml"].replace(b"probability", b"likelihood")},
            "has no output",
        ),
    ],
    ids=["no-bin", "other-bin", "text", "empty", "cut", "weights-cut", "no-weights", "operator", "tensor"],
)
def test_an_ir_that_is_not_whole_or_not_what_the_card_says_is_refused(
    tmp_path: Path, ir: dict[str, bytes], change: Change, words: str
) -> None:
    with pytest.raises(EngineFailure, match=words):
        open_model(card_of(tmp_path, change(ir)))
