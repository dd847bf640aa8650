"""Trained MeshNets in TensorFlow.js layout become ONNX graphs that compute what torch does from the same bytes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference.bring.convgraph import chain_to_onnx
from inference.bring.tfjs import Convolution, read_chain
from inference.errors import CardError

MODELS = Path(__file__).resolve().parents[2].parent / "shared" / "models" / "brainchop_meshnet"
NETS = {
    "model5_gw_ae": (10, 3),
    "model11_gw_ae": (9, 3),
    "model20chan3cls": (10, 3),
    "model18cls": (10, 18),
    "model30chan18cls": (10, 18),
    "model30chan50cls": (10, 50),
    "v3_model11_50class": (10, 50),
    "model21_104class": (9, 104),
    "mindgrab": (26, 2),
}

pytestmark = pytest.mark.skipif(not MODELS.is_dir(), reason=f"the trained MeshNets are absent ({MODELS})")


def _run(model: Any, image: np.ndarray) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": image})[0])


@pytest.mark.parametrize("net", NETS)
def test_a_converted_net_computes_what_torch_does_from_the_same_weights(net: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed (pip install -e '.[torch]')")
    functional = torch.nn.functional
    layers, _ = read_chain(MODELS / net / "model.json")
    assert (len(layers), layers[-1].kernel.shape[0]) == NETS[net]
    image = np.random.default_rng(7).random((1, 1, 20, 18, 22), dtype=np.float32)
    # From the file's bytes in its own layout (depth, height, width, in, out), not from what the reader made of them.
    content = json.loads((MODELS / net / "model.json").read_text())
    data = np.fromfile(MODELS / net / content["weightsManifest"][0]["paths"][0], "<f4")
    weights: dict[str, Any] = {}
    for entry in content["weightsManifest"][0]["weights"]:
        count = int(np.prod(entry["shape"]))
        weights[entry["name"]] = torch.from_numpy(data[:count].reshape(entry["shape"]))
        data = data[count:]
    value = torch.from_numpy(image)
    for layer in content["modelTopology"]["model_config"]["config"]["layers"][1:]:
        config = layer["config"]
        if layer["class_name"] == "Activation":
            value = getattr(functional, config["activation"])(value)
            continue
        kernel = torch.einsum("dhwio->oidhw", weights[config["name"] + "/kernel"])
        bias = weights.get(config["name"] + "/bias")
        value = functional.conv3d(value, kernel, bias, padding="same", dilation=tuple(config["dilation_rate"]))
        if config["name"].endswith("_gn"):
            value = functional.instance_norm(value)
    expected = value.numpy()
    scores = _run(chain_to_onnx(layers, answer="scores"), image)
    assert np.abs(scores - expected).max() <= 2e-5 * np.abs(expected).max()
    labels = _run(chain_to_onnx(layers), image)
    assert labels.shape == image.shape
    assert labels.dtype == np.uint8
    best = expected.max(axis=1, keepdims=True)
    chosen = np.take_along_axis(expected, labels.astype(np.int64), axis=1)
    assert (best - chosen).max() <= 2e-5 * np.abs(expected).max()


def _many_classes(classes: int) -> list[Convolution]:
    rng = np.random.default_rng(1)
    return [
        Convolution(
            name=str(number),
            kernel=rng.normal(size=(out, into, size, size, size)).astype(np.float32),
            bias=rng.normal(size=out).astype(np.float32),
            dilation=(1, 1, 1),
            normalised=False,
            activation=activation,
        )
        for number, (into, out, size, activation) in enumerate([(1, 6, 3, "tanh"), (6, classes, 1, "linear")])
    ]


def test_labels_of_many_classes_are_those_of_the_highest_score() -> None:
    layers = _many_classes(21)
    image = np.random.default_rng(2).random((1, 1, 12, 13, 14), dtype=np.float32)
    labels = _run(chain_to_onnx(layers), image)
    assert len(np.unique(labels)) >= 8
    assert labels.max() > 16
    np.testing.assert_array_equal(labels[:, 0], _run(chain_to_onnx(layers, answer="scores"), image).argmax(axis=1))


def test_a_hundred_classes_take_no_more_memory_than_a_few() -> None:
    edge, mb = 80, 2**20
    image = np.zeros((1, 1, edge, edge, edge), np.float32)

    def held() -> int:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024

    def taken(classes: int) -> int:
        # Makes what the process holds now the most that it has held (proc(5)).
        Path("/proc/self/clear_refs").write_text("5")
        before = held()
        _run(chain_to_onnx(_many_classes(classes)), image)
        return held() - before

    # All scores at once would be 208 MB; how much of what was held before is used again is the allocator's affair.
    assert taken(24) < 100 * mb
    assert taken(104) < 100 * mb


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(format="graph-model"), "layers-model"),
        (lambda c: _config(c, 1).update(padding="valid"), "padding is valid"),
        (lambda c: _config(c, 1).update(strides=[2, 2, 2]), "strides"),
        (lambda c: _config(c, 2).update(activation="swish"), "activation swish is not understood"),
        (lambda c: _layers(c)[2].update(class_name="Dropout"), "Dropout here is not understood"),
        (lambda c: _layers(c)[3].update(inbound_nodes=[[["21", 0, 0, {}]]]), "no single chain"),
        (lambda c: _layers(c).pop(), "weights of no layer|no single chain|of no layer"),
        (lambda c: c["weightsManifest"][0].update(paths=["../model5_gw_ae/group1-shard1of1.bin"]), "plain name"),
        (lambda c: c["weightsManifest"][0]["weights"][0].update(dtype="uint8"), "float32"),
        (lambda c: c["weightsManifest"][0]["weights"].pop(), "bytes of the weights belong to no layer"),
        (lambda c: c["weightsManifest"][0]["weights"][0].update(shape=[3, 3, 3, 1, 50000]), "the weights end before"),
        (lambda c: c.pop("modelTopology"), "not a TensorFlow.js layers model"),
    ],
)
def test_what_is_not_understood_is_refused_and_never_left_out(tmp_path: Path, change: Any, said: str) -> None:
    shutil.copy(MODELS / "model5_gw_ae" / "group1-shard1of1.bin", tmp_path)
    content = json.loads((MODELS / "model5_gw_ae" / "model.json").read_text())
    change(content)
    (tmp_path / "model.json").write_text(json.dumps(content))
    with pytest.raises(CardError, match=said):
        read_chain(tmp_path / "model.json")


def _layers(content: dict[str, Any]) -> list[dict[str, Any]]:
    return content["modelTopology"]["model_config"]["config"]["layers"]


def _config(content: dict[str, Any], number: int) -> dict[str, Any]:
    return _layers(content)[number]["config"]
