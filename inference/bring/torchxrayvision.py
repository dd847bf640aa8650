"""Brings a model of torchxrayvision in: its file, its weights, an ONNX graph or the weights themselves, and a card.

::

    wanted = entry("densenet121-res224-all")
    brought = bring(wanted, obtain(wanted), folder)

What comes of it answers as the library does, which is tried before anything is left on the disk: the largest difference
of any probability, over random and real images, is at most :data:`TOLERANCE`. It runs where torch is installed (the
extras ``torch`` and ``convert``); what it makes as ONNX runs without.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from inference.bring.chest_codes import ANATOMY, FINDINGS
from inference.errors import CardError, EngineFailure

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.engines.torchxrayvision_catalogue import CatalogueEntry

__all__ = ["TOLERANCE", "Brought", "bring", "download", "obtain"]

#: The largest difference of a probability between the library and what is made of its model.
TOLERANCE = 1e-4
_MOST_BYTES = 4 * 1024**3
_SEED = 20260101
#: Of the random images each is tried, or each second one where every pixel of the answer is compared.
_EVERY = {"classification": 1, "segmentation": 2}

#: Told how many bytes have come, and of how many (0 where the server does not say).
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Brought:
    """What was made: its version, the largest difference from the library, and over how many images."""

    version: str
    difference: float
    images: int


def obtain(
    wanted: CatalogueEntry,
    source: Path | None = None,
    *,
    cache: Path | None = None,
    mirror: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Return a model's released file: a given one, that in the library's cache, or a fresh download into it.

    Parameters
    ----------
    source
        A file that is there already.
    cache
        Where the library keeps its downloads; its own place by default.
    mirror
        A place to fetch from in the place of the one that the library names: the file's name is added to it.

    Raises
    ------
    CardError
        If there is no such file, or it cannot be fetched; with what to do.
    """
    if source is not None:
        if not source.is_file():
            raise CardError(f"{source}: there is no such file")
        return source
    if cache is None:
        from inference.engines.torchxrayvision_catalogue import cache_folder

        cache = cache_folder()
    target = cache / wanted.file
    if not target.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        download(f"{mirror.rstrip('/')}/{wanted.file}" if mirror else wanted.url, target, progress)
    return target


def download(url: str, target: Path, progress: Progress | None = None) -> None:
    """Fetch a file; nothing stands under its name before all of it is there.

    Raises
    ------
    CardError
        If the server does not give it, or breaks off.
    """
    import httpx

    part = target.with_name(target.name + ".part")
    try:
        with (
            httpx.stream("GET", url, follow_redirects=True, timeout=httpx.Timeout(30.0, connect=10.0)) as answer,
            part.open("wb") as file,
        ):
            answer.raise_for_status()
            total = int(answer.headers.get("content-length") or 0)
            for chunk in answer.iter_bytes(1 << 20):
                file.write(chunk)
                if file.tell() > _MOST_BYTES:
                    raise CardError(f"{url}: has more than {_MOST_BYTES // 1024**3} GB")
                if progress is not None:
                    progress(file.tell(), total)
            if total and file.tell() != total:
                raise CardError(f"{url}: broke off after {file.tell()} of {total} bytes")
        part.replace(target)
    except httpx.HTTPStatusError as refused:
        raise CardError(f"{url}: the server answered {refused.response.status_code}") from refused
    except httpx.HTTPError as problem:
        raise CardError(
            f"{url}: cannot be fetched ({type(problem).__name__}). Fetch it on another machine and give it with --from"
        ) from problem
    finally:
        part.unlink(missing_ok=True)


def bring(
    wanted: CatalogueEntry,
    file: Path,
    folder: Path,
    *,
    name: str | None = None,
    native: bool = False,
    images: Sequence[npt.NDArray[np.float32]] = (),
) -> Brought:
    """Make a model, with its card, of a released file; it is one only once it has answered as the library does.

    Parameters
    ----------
    wanted
        Which of the library's models ``file`` holds.
    folder
        Where it is made: empty, and removed by whoever gave it where this raises.
    name
        The model's name here; the library's by default.
    native
        Keep the weights for the engine ``torchxrayvision``, in the place of an ONNX graph.
    images
        Real radiographs to try, float32 (resolution, resolution), -1024 to 1024, beside the random ones.

    Raises
    ------
    EngineFailure
        If the file is not what it should be, or the answers differ.
    """
    from inference.engines.torchxrayvision_catalogue import build, head_of
    from inference.engines.torchxrayvision_export import export, save_weights

    weights = _weights(wanted, file)
    network = build(wanted.name, weights)
    linear = head_of(network)
    if native:
        save_weights(weights, folder / "model.pt")
    else:
        export(network, linear, wanted.resolution, folder / "model.onnx")
    if linear is not None:
        np.save(folder / "head.npy", linear[1].weight.detach().numpy(), allow_pickle=False)
    card = _card(wanted, name or wanted.name, _sha256(file), folder, native=native, explained=linear is not None)
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=110), encoding="utf-8")
    trials = [*list(_random_images(wanted.resolution))[:: _EVERY[wanted.task]], *images]
    difference = _difference(wanted, network, path, trials)
    if not difference <= TOLERANCE:
        raise EngineFailure(
            "broke",
            f"{wanted.name}: what was made differs from the library by {difference:.2g} over {len(trials)} images; "
            f"at most {TOLERANCE:g} is allowed",
        )
    return Brought(str(card["version"]), difference, len(trials))


def _weights(wanted: CatalogueEntry, file: Path) -> dict[str, Any]:
    """Return a released file's weights by bare names; whole modules are read in a process that is thrown away."""
    if wanted.pickled:
        from inference.engines.unpickling import module_weights

        return module_weights(file)
    from inference.engines.checkpoint import read_checkpoint

    weights = read_checkpoint(file)
    # Lightning's checkpoints hold the network under this name.
    if weights and all(key.startswith("model.") for key in weights):
        return {key.removeprefix("model."): value for key, value in weights.items()}
    return weights


def _random_images(resolution: int) -> Iterator[npt.NDArray[np.float32]]:
    """Yield noise of several scales, brightness gradients and a flat field, all from -1024 to 1024."""
    random = np.random.default_rng(_SEED)
    for cell in (1, 8, 56):
        coarse = random.uniform(-1024, 1024, (-(-resolution // cell), -(-resolution // cell)))
        yield np.kron(coarse, np.ones((cell, cell)))[:resolution, :resolution].astype(np.float32)
    ramp = np.linspace(-1024, 1024, resolution, dtype=np.float32)
    yield np.asarray(np.add.outer(ramp, -ramp) / 2, np.float32)
    yield np.full((resolution, resolution), -300, np.float32)


def _difference(
    wanted: CatalogueEntry, network: Any, card_path: Path, images: Sequence[npt.NDArray[np.float32]]
) -> float:
    """Return the largest difference of a probability between the library and the card's own way, also in one batch."""
    from inference.card import load_card
    from inference.classify import probabilities
    from inference.engines import onnx, torchxrayvision
    from inference.engines.torchxrayvision_export import answers_of
    from inference.postprocess import probabilities_of
    from inference.segment2d import scores_of

    card = load_card(card_path)
    # One thread: the arithmetic is compared, and threads that wait for each other on a busy machine take minutes.
    card = card.model_copy(update={"resources": card.resources.model_copy(update={"threads": 1})})
    batch = np.stack(images)[:, None]
    expected = answers_of(network, batch)
    if not wanted.operating_points:
        expected = probabilities_of(expected, wanted.activation, axis=1)
    model = (torchxrayvision if card.engine == "torchxrayvision" else onnx).open_model(card)
    try:
        singles = np.concatenate([model.infer({"image": one[None]})["output"] for one in batch])
        together = model.infer({"image": batch})["output"]
    finally:
        model.close()
    worst = 0.0
    for answers in (singles, together):
        found = (scores_of if card.task == "segmentation" else probabilities)(card, answers)
        # A value that is not a number must not pass as no difference.
        worst = max(worst, float(np.abs(found - expected).max(initial=0.0)) if np.isfinite(found).all() else np.inf)
    return worst


def _card(
    wanted: CatalogueEntry, name: str, digest: str, folder: Path, *, native: bool, explained: bool
) -> dict[str, Any]:
    """Return the card as YAML-ready values."""
    from inference.engines.torchxrayvision_catalogue import library_version

    stretched = bool(wanted.operating_points)
    steps: list[dict[str, Any]] = []
    if not (native and stretched):
        steps.append({"activation": {"kind": wanted.activation}})
        if stretched:
            steps.append({"calibrate": {"thresholds": list(wanted.operating_points)}})
    if wanted.task == "segmentation":
        steps.append({"threshold": {"value": 0.5}})
    tensors = {"image": "image", "output": "score"}
    card: dict[str, Any] = {
        "name": name,
        "version": f"{library_version()}+{digest[:8]}" + ("-native" if native else ""),
        "title": f"torchxrayvision {wanted.name}",
        "task": wanted.task,
        "engine": "torchxrayvision" if native else "onnx",
        "files": {
            file.name: {"sha256": _sha256(file)} for file in sorted(folder.iterdir()) if file.name != "card.yaml"
        },
        "demonstration": False,
        **_documentation(wanted, digest),
        "inputs": [
            {
                "role": "radiograph",
                "kind": "radiograph",
                "match": {
                    "Modality": ["CR", "DX"],
                    "not": {"ViewPosition": ["LL", "RL", "LATERAL", "LLD", "RLD"]},
                },
                "minimum_instances": 1,
                "select": "each",
                "limits": {"age_years": [18, 120], "unknown": {"age_years": "allow"}, "plausible": "chest-radiograph"},
            }
        ],
        "tensors": tensors | ({"features": "features"} if explained else {}),
        "preprocess": [{"torchxrayvision_input": {"size": wanted.resolution}}],
        "postprocess": steps,
        "outputs": _structures(wanted) if wanted.task == "segmentation" else _outputs(wanted),
        "resources": {"seconds": 120, "memory_mb": 4096 if native else 2048},
    }
    if wanted.task == "segmentation":
        card["layout"] = "nchw"
        # Its maps are large: one image at a time.
        card["resources"] = {"seconds": 240, "memory_mb": 6144, "concurrency": 1}
    if native:
        card["torchxrayvision"] = {"model": wanted.name}
    if explained:
        card["explain"] = {"method": "cam", "weights": "head.npy"}
    return card


def _outputs(wanted: CatalogueEntry) -> list[dict[str, Any]]:
    outputs: list[dict[str, Any]] = []
    for index, target in enumerate(wanted.targets):
        # An output without a name, or without an operating point where the others have one, was never trained.
        if not target or (wanted.operating_points and wanted.operating_points[index] is None):
            continue
        value, scheme, meaning = FINDINGS.get(target, (target.upper().replace(" ", "")[:16], "99OVERREAD", target))
        outputs.append(
            {
                "index": index,
                "name": target.replace("_", " ").lower(),
                "code": {"value": value, "scheme": scheme, "meaning": meaning},
                "threshold": 0.5,
            }
        )
    return outputs


def _structures(wanted: CatalogueEntry) -> list[dict[str, Any]]:
    outputs = []
    for label, target in enumerate(wanted.targets, start=1):
        value, scheme, meaning = ANATOMY[target]
        outputs.append(
            {
                "label": label,
                "name": target.lower(),
                "code": {"value": value, "scheme": scheme, "meaning": meaning},
                "category": {"value": "91723000", "scheme": "SCT", "meaning": "Anatomical Structure"},
                "measure": "area",
            }
        )
    return outputs


def _about_anatomy(wanted: CatalogueEntry) -> dict[str, Any]:
    return {
        "intended_use": (
            "Research use only. Marks where a public model sees structures of the chest on a frontal radiograph of an "
            "adult. Not a medical device; not for any decision about a patient, and no measurement to rely on."
        ),
        "limits": [
            "Frontal views of the whole chest of adults alone; lateral views are left out by View Position.",
            "Structures lie over one another and are marked so: each for itself, where its probability reaches 0.5.",
            "An area is that of a shadow: it depends on magnification, position and breath, and is no organ's size.",
            f"The image is cropped to its middle square and shrunk to {wanted.resolution} pixels: what lies outside is "
            "not marked, and an edge is no finer than that.",
            "Sides are those that the model's authors name; check them on your own images.",
            "Never evaluated by this project on patients.",
        ],
        "training_data": (
            "ChestX-Det: 3,578 images of NIH ChestX-ray14 with 14 structures drawn. Lian et al., A Structure-Aware "
            "Relation Network for Thoracic Diseases Detection and Segmentation, IEEE TMI 2021; arXiv 2104.10326."
        ),
    }


def _documentation(wanted: CatalogueEntry, digest: str) -> dict[str, Any]:
    return {
        "intended_use": (
            "Research use only. Answers of a public model about frontal chest radiographs of adults, beside a "
            "radiologist's reading and never in its place. Not a medical device; not for any decision about a patient."
        ),
        "limits": [
            "Frontal views of the whole chest of adults alone; lateral views are left out by View Position.",
            "An output is present where its probability, stretched so that the operating point of the library lies "
            "at 0.5, reaches 0.5; that point was chosen on the library's own test data, not on yours.",
            "Labels were mined from reports, so the model repeats their errors; answers differ between hospitals, "
            "devices and patient groups.",
            f"The image is cropped to its middle square and shrunk to {wanted.resolution} pixels: what lies outside, "
            "or is finer, is not seen.",
            "Never evaluated by this project on patients.",
        ],
        "licence": "Apache-2.0 (torchxrayvision and its released weights); the training data have terms of their own",
        "training_data": (
            f"As the library's authors say for {wanted.name}: public chest radiograph collections (NIH ChestX-ray14, "
            "PadChest, CheXpert, MIMIC-CXR, Google, OpenI, RSNA, in the parts that the model's name says). "
            "Cohen et al., TorchXRayVision: a library of chest X-ray datasets and models, MIDL 2022; arXiv 2111.00595."
        ),
        **(_about_anatomy(wanted) if wanted.task == "segmentation" else {}),
        "performance": "As published by the library's authors; not measured by this project.",
        "made_by": f"overread models pull torchxrayvision:{wanted.name}; {wanted.url}, SHA-256 {digest}",
    }


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
