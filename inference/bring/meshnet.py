"""Trained MeshNets for T1 brain MR (brainchop's TensorFlow.js files) as a model folder: an ONNX graph and its card.

Plis, Masoud, Hu et al. 2024, "Brainchop: providing an edge ecosystem for deployment of neuroimaging artificial
intelligence models". Such a net reads a head conformed as FreeSurfer conforms it: 256 voxels of 1 mm along each axis,
which grow to the left, to the feet and to the front.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from inference.bring.bundle import Described
from inference.bring.codes import ANATOMY, as_values, category_of, open_code, parse_code, suggest
from inference.bring.convgraph import chain_to_onnx
from inference.bring.tfjs import Convolution, read_chain
from inference.errors import CardError
from inference.extras import lacking

__all__ = ["MODEL_FILE", "convert_meshnet"]

MODEL_FILE = "model.onnx"
#: Bytes of one channel of 256^3 float32. A convolution reads one layer's channels and writes another's; a third is for
#: what the runtime keeps. Beside them lie the scores of some classes, their places and the volume itself. Measured
#: (``python -m benchmarks.meshnet --memory``) is half to two thirds of what comes of this.
_CHANNEL = 256**3 * 4
_LAYERS, _BESIDE = 3, 16

Scaling = Literal["auto", "minmax", "quantile"]


def convert_meshnet(
    source: Path, target: Path, *, name: str, labels: Path | None, codes: Sequence[str], scaling: Scaling = "auto"
) -> Described:
    """Write ``model.onnx`` into ``target`` and describe it.

    Parameters
    ----------
    source
        The folder of ``model.json`` and its weights.
    target
        Exists.
    name
        The model's.
    labels
        The file that names the classes; by default the only one in the folder that names as many as the net scores.
    codes
        ``label=VALUE,SCHEME,MEANING`` for classes whose name does not tell their code.
    scaling
        How values are brought to 0..1: from least to greatest, or from the 5th to the 95th percentile without a cut.
        ``auto`` takes the file's own remark, and percentiles for nets that normalise within (the publisher's choice).

    Raises
    ------
    CardError
        If the model or its labels are not understood.
    """
    try:
        import onnx
    except ModuleNotFoundError as absent:
        raise CardError(f"{source}: to convert it {lacking(absent)}") from absent

    layers, remarks = read_chain(source / "model.json")
    classes = _classes(source, labels, layers[-1].kernel.shape[0])
    given = dict(parse_code(text, classes[1:]) for text in codes)
    outputs: list[dict[str, Any]] = []
    missing: list[str] = []
    for label, called in enumerate(classes[1:], 1):
        code, category = suggest(called) or (open_code(called), ANATOMY)
        if called in given:
            code, category = given[called], category_of(given[called])
        if code == open_code(called):
            missing.append(called)
        codes_of = {"code": as_values(code), "category": as_values(category)}
        outputs.append({"label": label, "name": called, **codes_of, "measure": "volume"})
    onnx.save(chain_to_onnx(layers), str(target / MODEL_FILE))
    quantiles = scaling == "quantile" or (scaling == "auto" and _by_quantiles(layers, remarks))
    scale: dict[str, Any] = {"percentiles": [5, 95], "clip": False} if quantiles else {"percentiles": [0, 100]}
    widest = max(layer.kernel.shape[0] for layer in layers[:-1])
    values = {
        "name": name,
        "version": "1.0.0",
        "title": f"MeshNet {source.name}: {len(classes) - 1} classes on T1 MR of the head",
        "task": "segmentation",
        "engine": "onnx",
        # As its publisher runs it: at the edge between two classes a shorter float decides otherwise.
        "onnx": {"precision": "fp32"},
        "intended_use": "Research use. Labels the brain on a T1-weighted MR of the whole head, and measures volumes.",
        "limits": [
            "Not a medical device; a research model of others, brought in as it is.",
            "T1-weighted, the whole head, about 1 mm; thick slices are interpolated, which it was not trained for.",
            "Left and right are not told apart unless a label says so.",
            "Values are scaled over the whole volume: a few very bright voxels make all else dark.",
        ],
        "licence": "MIT (as its publisher states; see the source)",
        "training_data": str(remarks.get("_comment") or "not said in the file"),
        "performance": "Not said in the file, and not measured here.",
        "made_by": f"brainchop, {source.name}/model.json; converted to ONNX with overread models add meshnet",
        "inputs": [
            {
                "role": "t1",
                "kind": "volume",
                "match": {"Modality": "MR"},
                "minimum_instances": 8,
                "prefer": ["original", "thinnest", "most_slices"],
                # The whole head, in any direction: a wrist or a few slices of a brain is not what it was trained on.
                "limits": {"coverage_mm": [110, 350], "pixel_spacing_mm": [0.3, 2.0]},
            }
        ],
        "tensors": {"image": "image", "output": "labels"},
        "layout": "ncdhw",
        "preprocess": [
            {"orient": {"axes": "LIA"}},
            {"resample": {"spacing_mm": [1.0, 1.0, 1.0], "interpolation": "linear"}},
            {"crop_or_pad": {"shape": [256, 256, 256]}},
            # Its publisher's tool takes least and greatest value and quantiles of the padded cube.
            {"scale": {**scale, "over": "grid"}},
        ],
        "outputs": outputs,
        "resources": {"seconds": 900, "memory_mb": (_LAYERS * widest + _BESIDE) * _CHANNEL // 2**20 + 1024},
    }
    notes = [f"scale: {'5th to 95th percentile' if quantiles else 'least to greatest value'}"]
    return Described(values=values, open_codes=tuple(missing), remarks=tuple(notes))


def _by_quantiles(layers: Sequence[Convolution], remarks: dict[str, Any]) -> bool:
    return "quantile" in str(remarks.get("_comment", "")).lower() or any(layer.normalised for layer in layers)


def _classes(source: Path, labels: Path | None, count: int) -> list[str]:
    """Return the name of each class, background first."""
    if labels is not None:
        found = _named(labels)
        if found is None or len(found) != count:
            raise CardError(f"{labels}: expected the names of {count} classes, found {len(found or [])}")
        return found
    fitting = {}
    for file in sorted(source.glob("*.json")):
        found = _named(file)
        if found is not None and len(found) == count:
            fitting[file.name] = found
    if len({tuple(found) for found in fitting.values()}) != 1:
        told = f"{', '.join(fitting)} differ" if fitting else f"no file in it names {count} classes"
        raise CardError(f"{source}: {told}: say --labels FILE")
    return next(iter(fitting.values()))


def _named(file: Path) -> list[str] | None:
    """Return the classes that a file names: ``{"labels": [...]}`` or ``{"0": "background", ...}``; None for others."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    if isinstance(content.get("labels"), list):
        return [str(label) for label in content["labels"]]
    if content and set(content) == {str(number) for number in range(len(content))}:
        names = [content[str(number)] for number in range(len(content))]
        return [str(name) for name in names] if all(isinstance(name, str) for name in names) else None
    return None
