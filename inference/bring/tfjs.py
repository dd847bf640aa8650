"""Reads a TensorFlow.js layers model (``model.json`` and its ``.bin`` files) without TensorFlow.

Only what a chain of 3-D convolutions needs is understood (MeshNet: Fedorov et al. 2017, "End-to-end learning of brain
tissue segmentation from imperfect labeling"); anything else in the file is refused by its name, never left out.
Format: the Keras functional topology as JSON, and a manifest of weights that lie one after another, float32, little
endian, in files beside it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.errors import CardError

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Convolution", "read_chain"]

ACTIVATIONS = ("linear", "relu", "elu", "gelu", "sigmoid", "tanh")
#: More than any such model holds: a file that claims more is none.
_MOST_WEIGHTS = 64 * 1024 * 1024
_MOST_JSON_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """One 3-D convolution of stride 1 that keeps the grid, and what follows it.

    Attributes
    ----------
    name
        The layer's.
    kernel
        float32, (out, in, depth, height, width).
    bias
        float32, (out,); zero where the layer has none.
    dilation
        Along depth, height and width.
    normalised
        Each channel is brought to mean 0 and variance 1 over the volume (epsilon 1e-5) before the activation. The
        exporter of these models marks such layers by ``_gn`` at the end of their names; TensorFlow.js itself knows
        no such layer, so a reader that does not know the mark computes something else.
    activation
        One of :data:`ACTIVATIONS`.
    """

    name: str
    kernel: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    dilation: tuple[int, int, int]
    normalised: bool
    activation: str


def read_chain(path: Path) -> tuple[list[Convolution], dict[str, Any]]:
    """Read a model that is one chain of 3-D convolutions.

    Parameters
    ----------
    path
        ``model.json``.

    Returns
    -------
    list of Convolution, dict
        The layers in order, and the file's remarks (keys that start with ``_``).

    Raises
    ------
    CardError
        If the file is none such, or holds a layer or an option that would change the answer and is not understood.
    """
    content = _json(path)
    try:
        topology = content["modelTopology"]["model_config"]["config"]["layers"]
        weights = _weights(path.parent, content["weightsManifest"])
        layers = _chain(path, topology, weights)
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as problem:
        raise CardError(f"{path}: not a TensorFlow.js layers model ({type(problem).__name__}: {problem})") from problem
    return layers, {key: value for key, value in content.items() if key.startswith("_")}


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            raise CardError(f"{path}: too large for a model's topology")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as problem:
        raise CardError(f"{path}: cannot be read ({type(problem).__name__}); expected a model.json") from problem
    if not isinstance(content, dict) or content.get("format") != "layers-model":
        raise CardError(f"{path}: expected a TensorFlow.js model of the format layers-model")
    return content


def _chain(path: Path, topology: list[Any], weights: dict[str, npt.NDArray[np.float32]]) -> list[Convolution]:
    layers: list[Convolution] = []
    last = ""
    for number, layer in enumerate(topology):
        kind, config = layer["class_name"], layer["config"]
        name = str(config["name"])
        before = [str(node[0]) for group in layer["inbound_nodes"] for node in group]
        if before != ([last] if number else []):
            raise CardError(f"{path}: {name}: the layers are no single chain")
        last = name
        if kind == "InputLayer":
            if number or len(config["batch_input_shape"]) != 5 or config["batch_input_shape"][-1] != 1:
                raise CardError(f"{path}: {name}: expected one input of one channel, [batch, x, y, z, 1]")
        elif kind == "Conv3D" and number:
            layers.append(_convolution(path, config, weights))
        elif kind == "Activation" and layers and layers[-1].activation == "linear":
            layers[-1] = _activated(path, layers[-1], str(config["activation"]))
        else:
            raise CardError(f"{path}: {name}: a layer {kind} here is not understood")
    if not layers:
        raise CardError(f"{path}: holds no convolution")
    if weights:
        raise CardError(f"{path}: holds weights of no layer ({', '.join(sorted(weights)[:3])})")
    return layers


def _convolution(path: Path, config: dict[str, Any], weights: dict[str, npt.NDArray[np.float32]]) -> Convolution:
    name = str(config["name"])
    kept = {"padding": "same", "data_format": "channels_last", "strides": [1, 1, 1]}
    for key, wanted in kept.items():
        if config[key] != wanted:
            raise CardError(f"{path}: {name}: {key} is {config[key]}; only {wanted} is understood")
    if config.get("groups", 1) != 1:
        raise CardError(f"{path}: {name}: a grouped convolution is not understood")
    kernel = weights.pop(f"{name}/kernel").transpose(4, 3, 0, 1, 2)
    filters, sizes = int(config["filters"]), tuple(config["kernel_size"])
    if kernel.shape[0] != filters or kernel.shape[2:] != sizes:
        raise CardError(f"{path}: {name}: the weights' shape {kernel.shape} is not the layer's")
    bias = weights.pop(f"{name}/bias") if config["use_bias"] else np.zeros(filters, np.float32)
    dilation = tuple(int(value) for value in config["dilation_rate"])
    if bias.shape != (filters,) or len(dilation) != 3:
        raise CardError(f"{path}: {name}: the bias or the dilation does not fit the layer")
    layer = Convolution(
        name=name,
        kernel=np.ascontiguousarray(kernel),
        bias=bias,
        dilation=(dilation[0], dilation[1], dilation[2]),
        normalised=name.endswith("_gn"),
        activation="linear",
    )
    return _activated(path, layer, str(config["activation"]))


def _activated(path: Path, layer: Convolution, activation: str) -> Convolution:
    if activation not in ACTIVATIONS:
        raise CardError(f"{path}: {layer.name}: the activation {activation} is not understood")
    return Convolution(
        name=layer.name,
        kernel=layer.kernel,
        bias=layer.bias,
        dilation=layer.dilation,
        normalised=layer.normalised,
        activation=activation,
    )


def _weights(folder: Path, manifest: list[Any]) -> dict[str, npt.NDArray[np.float32]]:
    """Read every weight that the manifest names, each by its shape."""
    found: dict[str, npt.NDArray[np.float32]] = {}
    for group in manifest:
        parts = []
        for name in group["paths"]:
            if Path(name).name != name:
                raise CardError(f"{folder}: {name!r} is not the plain name of a file beside model.json")
            parts.append(_bytes(folder / name))
        data = b"".join(parts)
        offset = 0
        for entry in group["weights"]:
            shape = tuple(int(size) for size in entry["shape"])
            if entry["dtype"] != "float32" or entry.get("quantization"):
                raise CardError(f"{folder}: {entry['name']}: only plain float32 weights are understood")
            if any(size < 1 for size in shape) or entry["name"] in found:
                raise CardError(f"{folder}: {entry['name']}: an impossible shape, or named twice")
            count = math.prod(shape)
            values = np.frombuffer(data, "<f4", count=count, offset=offset) if len(data) - offset >= 4 * count else None
            if values is None:
                raise CardError(f"{folder}: the weights end before {entry['name']}")
            if not np.isfinite(values).all():
                raise CardError(f"{folder}: {entry['name']}: holds values that are no numbers")
            found[str(entry["name"])] = values.reshape(shape).astype(np.float32)
            offset += 4 * count
        if offset != len(data):
            raise CardError(f"{folder}: {len(data) - offset} bytes of the weights belong to no layer")
    return found


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > 4 * _MOST_WEIGHTS:
            raise CardError(f"{path}: too large for such a model's weights")
        return path.read_bytes()
    except OSError as problem:
        raise CardError(f"{path}: cannot be read ({type(problem).__name__})") from problem
