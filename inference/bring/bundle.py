"""The card of a MONAI bundle, from what its metadata says; what the metadata cannot say stays open and is named.

Bundles are described at https://monai.readthedocs.io/en/latest/mb_specification.html: ``configs/metadata.json``,
``configs/inference.json`` (or ``.yaml``), ``models/model.pt`` (or ``model.ts``), ``LICENSE``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inference.bring.codes import ABNORMAL, ANATOMY, as_values, category_of, open_code, parse_code, suggest
from inference.errors import CardError

__all__ = ["Described", "describe_bundle"]

_MOST_BYTES = 4 * 1024 * 1024
_MODALITIES = {"CT": "CT", "MR": "MR", "MRI": "MR", "PET": "PT", "PT": "PT"}
_CONFIGS = ("configs/inference.json", "configs/inference.yaml", "configs/inference.yml")
_WEIGHTS = ("models/model.pt", "models/model.pth", "models/model.ckpt")
_SCRIPT = "models/model.ts"
#: Which of several series that match is read: by what they are, until an engineer says better. A volume of MR may well
#: be sagittal, and thinner than the axial series beside it.
_PREFER = {"CT": ["axial", "original", "thinnest", "most_slices"]}
_PREFER_ELSE = ["original", "thinnest", "most_slices"]
#: More than anything abnormal in a body measures.
_MOST_ML = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A card's values (all but its files), and what an engineer must still say or look at."""

    values: dict[str, Any]
    open_codes: tuple[str, ...]
    remarks: tuple[str, ...]

    def called(self, version: str) -> Described:
        """Return the same under another version, or as it is where none is given."""
        return replace(self, values={**self.values, "version": version}) if version else self


def describe_bundle(
    root: Path, files: Sequence[str], *, folder: str, name: str | None, codes: Sequence[str], modality: str | None
) -> Described:
    """Derive the card of a bundle for the segmentation of volumes.

    Parameters
    ----------
    root
        The bundle's folder.
    files
        Its files, relative to ``root``.
    folder
        Where the bundle will lie beside its card.
    name
        The model's name; by default it is made from the bundle's.
    codes
        ``label=VALUE,SCHEME,MEANING`` for labels whose code the label's name does not tell.
    modality
        Where the metadata does not name one.

    Raises
    ------
    CardError
        If this is no such bundle, naming the file and the key.
    """
    if "configs/metadata.json" not in files:
        raise CardError(f"{root}: no configs/metadata.json; expected a MONAI bundle")
    config = next((file for file in _CONFIGS if file in files), None)
    if config is None:
        raise CardError(f"{root}: none of {', '.join(_CONFIGS)}; expected a MONAI bundle that can infer")
    weights = next((file for file in _WEIGHTS if file in files), None)
    script = _SCRIPT if weights is None and _SCRIPT in files else None
    if weights is None and script is None:
        raise CardError(
            f"{root}: no weights: expected one of {', '.join((*_WEIGHTS, _SCRIPT))} (bundles are often distributed "
            "without them, with large_files.yml naming where they are)"
        )
    about = _metadata(root / "configs" / "metadata.json")
    try:
        source, target = about["network_data_format"]["inputs"], about["network_data_format"]["outputs"]
        key, image = next(iter(source.items()))
        prediction, answer = next(iter(target.items()))
        channels = {int(place): str(label) for place, label in answer["channel_def"].items()}
        shape = list(image["spatial_shape"])
    except (KeyError, TypeError, ValueError, StopIteration, AttributeError) as problem:
        raise CardError(
            f"{root}/configs/metadata.json: network_data_format is not as MONAI's schema has it"
        ) from problem
    if answer.get("format") != "segmentation" or len(shape) != 3:
        raise CardError(
            f"{root}: gives {answer.get('format')!r} from {len(shape)}-D images; bundles that segment volumes are run"
        )
    labels, background = _labels(root, channels)
    outputs, open_codes = _outputs(labels, codes)
    inputs, remarks = _inputs(root, image, modality)
    values = {
        "name": name or _slug(str(about.get("name") or root.name)),
        "version": str(about.get("version", "0.0.0")),
        "title": str(about.get("description") or about.get("name") or root.name)[:200],
        "task": "segmentation",
        "engine": "monai-bundle",
        "monai_bundle": {
            "root": folder,
            "config": config,
            **({"weights": weights} if weights else {"script": script}),
            "image": key,
            "prediction": prediction,
            "background": background,
            **({"overlap": "keep"} if _for_themselves(root / config, channels, background) else {}),
        },
        "intended_use": str(about.get("intended_use") or "The bundle does not say."),
        "limits": [f"Trained and made for: {about.get('image_classes') or 'not said'}", *_read_as(image)],
        "licence": _licence(root, files, about),
        "training_data": f"{about.get('data_source') or 'not said'} ({about.get('data_type') or 'no type said'})",
        "performance": about.get("eval_metrics") or "not said",
        "made_by": f"{about.get('authors') or 'not said'}; MONAI {about.get('monai_version') or 'version not said'}",
        "inputs": inputs,
        "outputs": outputs,
        "resources": {"seconds": 600, "memory_mb": 8192},
    }
    return Described(values=values, open_codes=tuple(open_codes), remarks=tuple(remarks))


def _metadata(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise CardError(f"{path}: too large for a bundle's metadata")
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise CardError(f"{path}: cannot be read ({type(problem).__name__}); expected a bundle's metadata") from problem
    if not isinstance(about, dict):
        raise CardError(f"{path}: expected a mapping of keys")
    return about


def _labels(root: Path, channels: dict[int, str]) -> tuple[dict[int, str], bool]:
    """Return the labels that mean something, and whether channel 0 is the background."""
    if sorted(channels) != list(range(len(channels))) or not channels:
        raise CardError(f"{root}/configs/metadata.json: outputs.channel_def does not number its channels 0, 1, ...")
    background = len(channels) > 1 and channels[0].strip().lower() in ("background", "bg", "unknown", "other")
    shift = 0 if background else 1
    labels = {place + shift: label for place, label in channels.items() if place or not background}
    if max(labels) > 255:
        raise CardError(f"{root}: {len(labels)} labels; a mask holds at most 255")
    if len(set(labels.values())) != len(labels):
        raise CardError(f"{root}/configs/metadata.json: outputs.channel_def names a label twice")
    return labels, background


def _for_themselves(config: Path, channels: dict[int, str], background: bool) -> bool:
    """Tell whether each channel is a structure for itself, which may lie in another: a sigmoid's, not a softmax's."""
    if len(channels) < 2 or not background:
        return len(channels) > 1
    try:
        text = config.read_bytes()[:_MOST_BYTES].decode("utf-8", "replace")
    except OSError as problem:
        raise CardError(f"{config}: cannot be read ({type(problem).__name__})") from problem
    return re.search(r"\bsigmoid\b[\"']?\s*[:=]\s*true\b", text, re.IGNORECASE) is not None


def _outputs(labels: dict[int, str], codes: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
    given = dict(parse_code(text, labels.values()) for text in codes)
    outputs: list[dict[str, Any]] = []
    missing: list[str] = []
    for label, name in labels.items():
        code, category = suggest(name) or (open_code(name), ANATOMY)
        if name in given:
            code, category = given[name], category_of(given[name])
        if code == open_code(name):
            missing.append(name)
        output = {
            "label": label,
            "name": name,
            "code": as_values(code),
            "category": as_values(category),
            "measure": "volume",
        }
        if category == ABNORMAL:
            # That there is none of it is an answer; of an organ it would be a failure.
            output["limits"] = {"volume_ml": [0, _MOST_ML]}
        outputs.append(output)
    return outputs, missing


def _inputs(root: Path, image: dict[str, Any], modality: str | None) -> tuple[list[dict[str, Any]], list[str]]:
    said = str(image.get("modality", "")).strip().upper()
    known = modality or _MODALITIES.get(said)
    if known is None:
        raise CardError(
            f"{root}/configs/metadata.json: the input's modality {said or 'is not said'!r} is none that DICOM names: "
            "say --modality CT, MR or PT"
        )
    count = int(image.get("num_channels") or 1)
    common = {"minimum_instances": 8, "prefer": list(_PREFER.get(known, _PREFER_ELSE))}
    if count == 1:
        return [{"role": known.lower(), "kind": "volume", "match": {"Modality": known}, **common}], []
    names = image.get("channel_def") or {}
    roles, remarks = [], []
    for place in range(count):
        label = str(names.get(str(place)) or f"channel {place}")
        role = _slug(label)
        roles.append(
            {
                "role": role,
                "kind": "volume",
                "match": {"Modality": known, "SeriesDescription": f"*{label}*"},
                **common,
            }
        )
        remarks.append(f"inputs: {role}: the series is picked by a description that holds {label!r}; check the rule")
    return roles, remarks


def _read_as(image: dict[str, Any]) -> list[str]:
    said = [
        f"{key.replace('_', ' ')}: {image[key]}" for key in ("format", "spatial_shape", "value_range") if key in image
    ]
    return [f"The bundle describes its input as {'; '.join(said)}."] if said else []


def _licence(root: Path, files: Sequence[str], about: dict[str, Any]) -> str:
    """Return the first line of the licence's text that says something, with the holder of the copyright."""
    text = str(about.get("license") or "")
    file = next((one for one in files if one.lower() in ("license", "licence", "license.txt", "license.md")), None)
    if not text and file:
        lines = (root / file).read_bytes()[:4000].decode("utf-8", "replace").splitlines()
        text = " ".join([line.strip() for line in lines if line.strip()][:2])[:120]
    return "; ".join(part for part in (text or "not said", str(about.get("copyright") or "")) if part)


def _slug(name: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:62]
    if not slug:
        raise CardError(f"{name!r} makes no model's name: say --name")
    return slug
