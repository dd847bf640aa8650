"""Which of torchxrayvision's models can be had by name, where their files come from, and how each is built.

The core classifiers stand in the library's own table (URL, labels, operating points, resolution); of the baselines the
library keeps URL and labels inside their constructors, so what is needed of them stands here.
"""

from __future__ import annotations

import importlib
import math
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from inference.engines.torchvision_schemas import import_torchvision
from inference.errors import CardError, EngineFailure

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

__all__ = ["CatalogueEntry", "build", "cache_folder", "entry", "head_of", "library_version", "names"]

_RELEASE = "https://github.com/mlmed/torchxrayvision/releases/download/v1"


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One model of the library.

    Attributes
    ----------
    name
        As the library calls it, or, for a baseline, as this project does.
    url
        Where its file is released.
    task
        ``classification`` or ``segmentation``.
    targets
        What it answers, in order; an empty name where its weights say nothing.
    operating_points
        The library's ``op_threshs``, None where there is none; empty where the model has none at all.
    resolution
        Edge of its square input in pixels.
    activation
        What makes probabilities of what its network answers.
    pickled
        Whether the file is a whole pickled module.
    """

    name: str
    url: str
    task: Literal["classification", "segmentation"]
    targets: tuple[str, ...]
    operating_points: tuple[float | None, ...]
    resolution: int
    activation: Literal["sigmoid", "softmax"]
    pickled: bool = False

    @property
    def file(self) -> str:
        """The file's name, in the release and in the library's cache."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class _Baseline:
    module: str
    constructor: str
    file: str
    task: Literal["classification", "segmentation"]
    resolution: int
    activation: Literal["sigmoid", "softmax"]
    #: What the library expects before each weight's name in the file.
    prefix: str = ""


#: Left out are ``chexpert`` (thirty networks in a file that is not released with the library), ``riken`` (TorchScript,
#: a program and not weights), ``chestx_anatomy`` (159 structures, of which few have codes) and the autoencoders (no
#: findings).
_BASELINES = {
    "chestx-det-pspnet": _Baseline(
        "chestx_det",
        "PSPNet",
        "pspnet_chestxray_best_model_4.pth",
        "segmentation",
        512,
        "sigmoid",
        prefix="module.",
    ),
    "jfhealthcare-densenet121": _Baseline(
        "jfhealthcare",
        "DenseNet",
        "baseline_models_jfhealthcare-DenseNet121_pre_train.pth",
        "classification",
        512,
        "sigmoid",
    ),
    "xinario-view": _Baseline(
        "xinario", "ViewModel", "xinario_chestViewSplit_resnet-50.pt", "classification", 224, "softmax"
    ),
    "mira-sex": _Baseline(
        "mira", "SexModel", "mira_sex_resnet-all_epoch_13-step_7125.ckpt", "classification", 224, "softmax"
    ),
    "emory-race": _Baseline(
        "emory_hiti",
        "RaceModel",
        "resnet_race_detection_val-loss_0.157_mimic_public.pt",
        "classification",
        320,
        "softmax",
        prefix="module.",
    ),
}


#: What a model is called for short.
_ALIASES = {"pspnet": "chestx-det-pspnet"}


def names() -> tuple[str, ...]:
    """Return the names of all models that can be had."""
    return (*(name for name in _core() if name.startswith(("densenet", "resnet"))), *_BASELINES)


def entry(name: str) -> CatalogueEntry:
    """Return a model by name.

    Raises
    ------
    CardError
        If there is none of that name, with those that there are.
    """
    core, name = _core(), _ALIASES.get(name, name)
    if name in core:
        known = core[name]
        points = known.get("op_threshs", [])
        return CatalogueEntry(
            name=name,
            url=str(known["weights_url"]),
            task="classification",
            targets=tuple(known["labels"]),
            operating_points=tuple(None if math.isnan(point) else float(point) for point in points),
            resolution=int(known["input_resolution"]),
            activation="sigmoid",
            # Of the two families only the older was released as modules.
            pickled=not name.startswith("resnet"),
        )
    baseline = _BASELINES.get(name)
    if baseline is None:
        raise CardError(f"torchxrayvision has no model {name!r} that can be had here; there are {', '.join(names())}")
    return CatalogueEntry(
        name=name,
        url=f"{_RELEASE}/{baseline.file}",
        task=baseline.task,
        targets=tuple(_constructor(baseline).targets),
        operating_points=(),
        resolution=baseline.resolution,
        activation=baseline.activation,
    )


def library_version() -> str:
    """Return the version of torchxrayvision that is installed."""
    _core_models()
    import torchxrayvision

    return str(torchxrayvision.__version__)


def cache_folder() -> Path:
    """Return where the library keeps the files that it downloads."""
    return Path.home() / ".torchxrayvision" / "models_data"


def build(name: str, weights: Mapping[str, Tensor]) -> Module:
    """Build a model with weights, as the library would with its own file.

    Parameters
    ----------
    name
        One of :func:`names`.
    weights
        A state dict by bare names.

    Raises
    ------
    EngineFailure
        ``broke``, if the weights are not this network's.
    """
    wanted = entry(name)
    try:
        if wanted.name == "jfhealthcare-densenet121":
            network: Module = _jfhealthcare(weights)
        elif wanted.name in _BASELINES:
            baseline = _BASELINES[wanted.name]
            with _cached({baseline.prefix + key: value for key, value in weights.items()}, wanted.file):
                network = _constructor(baseline)()
        elif wanted.pickled:
            network = _densenet(wanted, weights)
        else:
            with _cached(weights, wanted.file):
                network = _core_models().ResNet(weights=wanted.name)
    except (RuntimeError, KeyError) as problem:
        text = " ".join(str(problem).split())[:300]
        raise EngineFailure("broke", f"the weights are not those of {name}: {text}") from problem
    if wanted.task == "segmentation":
        # Torch says at every run that a function's name is old, which nobody here can change.
        warnings.filterwarnings("ignore", message="`nn.functional.upsample` is deprecated")
    network.eval()
    return network


def head_of(network: Module) -> tuple[Module, Module] | None:
    """Return the module whose output the last layer takes the average of, and that layer; None where it is otherwise.

    The maps count as they are after the rectifier that follows the first of the two, where one does.
    """
    import torch

    inner = getattr(network, "model", None)
    if isinstance(getattr(network, "classifier", None), torch.nn.Linear):
        return network.features, network.classifier
    if inner is not None and hasattr(inner, "layer4") and hasattr(inner, "fc"):
        last = inner.fc[0] if isinstance(inner.fc, torch.nn.Sequential) else inner.fc
        return inner.layer4, last
    return None


def _densenet(wanted: CatalogueEntry, weights: Mapping[str, Tensor]) -> Module:
    """Build a core classifier without the library's own loading, which would unpickle the file here."""
    import torch

    network: Module = _core_models().DenseNet(weights=None, num_classes=len(wanted.targets))
    network.load_state_dict({key: value for key, value in weights.items() if key != "op_threshs"})
    network.op_threshs = torch.tensor(
        [math.nan if point is None else point for point in wanted.operating_points], dtype=torch.float32
    )
    network.input_resolution = wanted.resolution
    network.targets = network.pathologies = list(wanted.targets)
    return network


def _jfhealthcare(weights: Mapping[str, Tensor]) -> Module:
    """Build this one without its constructor, which fetches ImageNet's weights only to replace them by its own."""
    import json
    from types import SimpleNamespace

    import torch

    kind = _constructor(_BASELINES["jfhealthcare-densenet121"])
    place: Any = importlib.import_module(kind.__module__)
    settings = json.loads((Path(place.thisfolder) / "config" / "example.json").read_text(encoding="utf-8"))
    network: Module = kind.__new__(kind)
    torch.nn.Module.__init__(network)
    network.cfg = SimpleNamespace(**(settings | {"pretrained": False}))
    network.apply_sigmoid = False
    network.model = place.classifier.Classifier(network.cfg)
    network.model.load_state_dict(dict(weights))
    network.pathologies = network.targets
    return network


@contextmanager
def _cached(weights: Mapping[str, Tensor], file: str) -> Iterator[None]:
    """Let the library find weights, which are tensors alone, where it looks for its own download."""
    import torch

    home = os.environ.get("HOME")
    with tempfile.TemporaryDirectory(prefix="torchxrayvision-") as folder:
        place = Path(folder) / ".torchxrayvision" / "models_data"
        place.mkdir(parents=True)
        torch.save(dict(weights), place / file)
        os.environ["HOME"] = folder
        try:
            yield
        finally:
            if home is None:
                del os.environ["HOME"]
            else:
                os.environ["HOME"] = home


def _core_models() -> Any:
    import_torchvision()
    import torchxrayvision.models
    import torchxrayvision.utils

    # The library prints its guess about the first image's range; ours is what its own function gives.
    torchxrayvision.utils.warning_log["norm_check"] = True

    return torchxrayvision.models


def _core() -> dict[str, dict[str, Any]]:
    return dict(_core_models().model_urls)


def _constructor(baseline: _Baseline) -> Any:
    import_torchvision()
    module = importlib.import_module(f"torchxrayvision.baseline_models.{baseline.module}")
    return getattr(module, baseline.constructor)
