"""Model cards: what a model is, what it may read, what it says and in which codes.

A card is ``conf/models/<name>/card.yaml``. It is read with unknown keys refused and the SHA-256 of every file checked,
so a model whose bytes are not those that its card describes never runs. What decides a model's answers is digested;
the digest is part of every workitem's key and of the Device UID in what the model made.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from inference.errors import CardError
from inference.findings import Code
from inference.matching import check_condition

__all__ = [
    "Card",
    "InputRole",
    "KeepComponents",
    "Output",
    "RadiographInput",
    "RequireVolume",
    "Resources",
    "Slab",
    "load_card",
]

#: Raised whenever code of this package changes what an unchanged card answers, so that digests change with it.
BEHAVIOUR_REVISION = 1

_BEHAVIOUR = {
    "name",
    "version",
    "task",
    "engine",
    "files",
    "inputs",
    "tensors",
    "slab",
    "preprocess",
    "postprocess",
    "outputs",
    "not_analysed",
}
_SHA256 = re.compile(r"[0-9a-f]{64}")

#: Documentation is for people: plain text, a list of points or a table.
Documentation = str | list[Any] | dict[str, Any]


def _code(value: object) -> object:
    if isinstance(value, Code):
        return value
    expected = {"value", "scheme", "meaning"}
    if not isinstance(value, Mapping) or set(value) != expected or not all(value[k] for k in expected):
        raise ValueError("expected a code: {value, scheme, meaning}")
    return Code(value=str(value["value"]), scheme=str(value["scheme"]), meaning=str(value["meaning"]))


CodeField = Annotated[Code, BeforeValidator(_code)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Strict):
    """One file of the model, beside its card."""

    sha256: str = Field(pattern=f"^{_SHA256.pattern}$")


class InputRole(_Strict):
    """One role of an input set: which series may fill it, and which is best where several may."""

    role: str = Field(min_length=1)
    kind: Literal["volume", "radiograph"]
    match: dict[str, Any] = Field(default_factory=dict)
    minimum_instances: int = Field(default=1, ge=1)
    select: Literal["best", "each"] = "best"
    prefer: tuple[Literal["axial", "original", "thinnest", "most_slices", "kernel"], ...] = ()
    kernel_preference: tuple[str, ...] = ()
    slice_spacing_mm: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _sound(self) -> InputRole:
        check_condition(self.match, "match")
        if self.slice_spacing_mm and not 0 < self.slice_spacing_mm[0] <= self.slice_spacing_mm[1]:
            raise ValueError("slice_spacing_mm: expected [least, most] in mm, both above 0")
        return self


class Slab(_Strict):
    """How a volume is cut along its slices: ``slices`` at a time, neighbours sharing ``overlap`` slices in all."""

    slices: int = Field(ge=1)
    overlap: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _sound(self) -> Slab:
        if self.overlap >= self.slices:
            raise ValueError("overlap: expected less than slices")
        return self


class RadiographInput(_Strict):
    """Bring a radiograph to a square of ``size`` pixels, as :func:`inference.preprocess.radiograph_input` does."""

    size: int = Field(default=256, ge=16, le=4096)


class KeepComponents(_Strict):
    """Leave out connected components that are too small: below ``minimum_ml``, or below a fraction of the largest."""

    minimum_ml: float = Field(default=0.0, ge=0)
    minimum_fraction: float = Field(default=0.0, ge=0, le=1)


class RequireVolume(_Strict):
    """Below ``minimum_ml`` in all there is no finding, but the statement named by ``otherwise``."""

    minimum_ml: float = Field(gt=0)
    otherwise: str


class _OneOf(_Strict):
    @model_validator(mode="after")
    def _one(self) -> _OneOf:
        if len(self.model_fields_set) != 1:
            raise ValueError(f"expected exactly one of {', '.join(type(self).model_fields)}")
        return self


class PreprocessStep(_OneOf):
    """One step before the model."""

    radiograph_input: RadiographInput | None = None


class PostprocessStep(_OneOf):
    """One step after the model."""

    keep_components: KeepComponents | None = None
    require_volume: RequireVolume | None = None


class Output(_Strict):
    """One thing that the model can say: a label of a mask, or an index of a vector of probabilities."""

    name: str = Field(min_length=1)
    code: CodeField
    label: int | None = Field(default=None, ge=1, le=255)
    category: CodeField | None = None
    measure: Literal["volume"] | None = None
    index: int | None = Field(default=None, ge=0)
    threshold: float | None = Field(default=None, gt=0, lt=1)


class Statement(_Strict):
    """Why a model made no finding, in words and, where a standard code exists, in a code."""

    meaning: str = Field(min_length=1)
    code: CodeField | None = None


class Resources(_Strict):
    """What one run may take before its process is ended: wall time, resident memory, and the threads that it gets."""

    seconds: float = Field(default=120.0, gt=0)
    memory_mb: int = Field(default=4096, ge=64)
    threads: int | None = Field(default=None, ge=1)
    concurrency: int | None = Field(default=None, ge=1, le=64)


class Card(_Strict):
    """What a model is. Build it with :func:`load_card`."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    version: str = Field(min_length=1, max_length=64)
    title: str = Field(min_length=1)
    task: Literal["segmentation", "classification"]
    engine: Literal["onnx"]
    files: dict[str, FileEntry] = Field(min_length=1)
    demonstration: bool = False
    intended_use: Documentation
    limits: Documentation
    licence: str
    training_data: Documentation
    performance: Documentation
    made_by: Documentation
    inputs: tuple[InputRole, ...] = Field(min_length=1)
    tensors: dict[str, str]
    slab: Slab | None = None
    preprocess: tuple[PreprocessStep, ...] = ()
    postprocess: tuple[PostprocessStep, ...] = ()
    outputs: tuple[Output, ...] = Field(min_length=1)
    not_analysed: dict[str, Statement] = Field(default_factory=dict)
    resources: Resources = Resources()

    _directory: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _sound(self) -> Card:
        for name in self.files:
            if Path(name).name != name or name in ("", ".", ".."):
                raise ValueError(f"files: {name!r} is not the plain name of a file beside the card")
        kind, wanted, optional = (
            ("volume", {"image", "output"}, {"spacing"})
            if self.task == "segmentation"
            else ("radiograph", {"image", "output"}, set())
        )
        if not wanted <= set(self.tensors) <= wanted | optional:
            raise ValueError(f"tensors: a {self.task} names {sorted(wanted)} and may name {sorted(optional)}")
        if len(self.inputs) != 1 or self.inputs[0].kind != kind:
            raise ValueError(f"inputs: a {self.task} reads exactly one role, of kind {kind}")
        if self.task == "segmentation":
            self._check_segmentation()
        else:
            self._check_classification()
        for step in self.postprocess:
            if step.require_volume and step.require_volume.otherwise not in self.not_analysed:
                raise ValueError(f"postprocess: {step.require_volume.otherwise!r} does not stand under not_analysed")
        return self

    def _check_segmentation(self) -> None:
        labels = [output.label for output in self.outputs]
        if None in labels or len(set(labels)) != len(labels):
            raise ValueError("outputs: a segmentation's outputs each have a label of their own")
        if any(o.category is None or o.index is not None or o.threshold is not None for o in self.outputs):
            raise ValueError("outputs: a segmentation's outputs have a category, and neither index nor threshold")
        if self.preprocess:
            raise ValueError("preprocess: a segmentation has none")

    def _check_classification(self) -> None:
        indices = [output.index for output in self.outputs]
        if None in indices or len(set(indices)) != len(indices):
            raise ValueError("outputs: a classification's outputs each have an index of their own")
        if any(o.threshold is None or o.label is not None or o.category is not None for o in self.outputs):
            raise ValueError("outputs: a classification's outputs have a threshold, and neither label nor category")
        if self.postprocess or self.slab:
            raise ValueError("postprocess, slab: a classification has none")
        if len(self.preprocess) != 1:
            raise ValueError("preprocess: a classification has exactly one step, radiograph_input")

    @property
    def directory(self) -> Path:
        """The folder that holds the card and its files."""
        return self._directory

    @property
    def path(self) -> Path:
        """The card's own file."""
        return self._directory / "card.yaml"

    @property
    def digest(self) -> str:
        """Hex SHA-256 over all that decides the model's answers; titles, documentation and resources do not."""
        behaviour = self.model_dump(mode="json", include=_BEHAVIOUR, exclude_defaults=True)
        text = json.dumps([BEHAVIOUR_REVISION, behaviour], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def device_uid(self) -> str:
        """A Device UID (0018,1002) that changes with the digest: a UUID-derived UID (PS3.5 Annex B.2)."""
        return f"2.25.{uuid.UUID(bytes=bytes.fromhex(self.digest)[:16], version=5).int}"


def load_card(path: Path) -> Card:
    """Read a card and check its files.

    Parameters
    ----------
    path
        ``card.yaml``, or the folder that holds it.

    Raises
    ------
    CardError
        Naming the file, the key and what was expected.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "card.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as problem:
        raise CardError(f"{path}: cannot be read ({type(problem).__name__}); expected a model's card") from problem
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise CardError(f"{path}: not YAML{where}; expected a model's card") from problem
    if not isinstance(content, dict):
        raise CardError(f"{path}: expected a mapping of keys, found {type(content).__name__}")
    try:
        card = Card.model_validate(content)
    except ValidationError as problem:
        raise CardError("; ".join(_explain(path, error) for error in problem.errors())) from problem
    card._directory = path.parent.resolve()
    for name, entry in card.files.items():
        _check_file(path, card.directory / name, entry.sha256)
    return card


def _explain(path: Path, error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"]) or "card"
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "unknown key"
    elif error["type"] == "missing":
        message = "missing; this key is required"
    return f"{path}: {key}: {message}"


def _check_file(card_path: Path, file: Path, expected: str) -> None:
    try:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as problem:
        raise CardError(f"{card_path}: files.{file.name}: cannot be read ({type(problem).__name__})") from problem
    if found != expected:
        raise CardError(f"{card_path}: files.{file.name}.sha256: expected {expected}, the file has {found}")
