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
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, ValidationError, model_validator

from inference.cardfile import read_yaml
from inference.cardfiles import Stamp, checked_file, require_unchanged
from inference.cardwords import explained
from inference.declared import check_layout, check_steps
from inference.errors import CardError
from inference.fields import CodeField, Limit, Strict
from inference.inputs import InputRole
from inference.naming import check_names
from inference.options import Command, KServe, MonaiBundle, Onnx, OpenVino, TorchXRayVision
from inference.steps import PostprocessStep, PreprocessStep, Slab, Window

__all__ = ["Batch", "Card", "Explain", "Output", "Resources", "Sample", "load_card"]

#: Raised whenever code of this package changes what an unchanged card answers, so that digests change with it.
BEHAVIOUR_REVISION = 4

#: Engines that take tensors and give tensors; the others read the images and say what they found themselves.
TENSOR_ENGINES = frozenset({"onnx", "openvino", "torchxrayvision", "kserve"})

_BEHAVIOUR = {
    "name",
    "version",
    "task",
    "engine",
    "onnx",
    "openvino",
    "torchxrayvision",
    "monai_bundle",
    "kserve",
    "command",
    "files",
    "inputs",
    "tensors",
    "layout",
    "slab",
    "window",
    "preprocess",
    "postprocess",
    "outputs",
    "boxes",
    "not_analysed",
    "explain",
}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TENSORS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "segmentation": (frozenset({"image", "output"}), frozenset({"spacing"})),
    "classification": (frozenset({"image", "output"}), frozenset({"features"})),
    "measurement": (frozenset({"image", "output"}), frozenset()),
    "detection": (frozenset({"image", "boxes", "scores", "classes"}), frozenset()),
}

#: Documentation is for people: plain text, a list of points or a table.
Documentation = str | list[Any] | dict[str, Any]


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _long_string(value: str) -> str:
    text = value.strip()
    if not text or len(text) > 64 or "\\" in text or not text.isprintable():
        raise ValueError("expected 1 to 64 characters on one line, none of them a backslash")
    return text


class FileEntry(Strict):
    """One file of the model, below the card's folder."""

    sha256: Annotated[str, BeforeValidator(_lower)] = Field(pattern=f"^{_SHA256.pattern}$")


class OutputLimits(Strict):
    """What an answer may be; beyond it there is no finding, but a reason."""

    volume_ml: Limit | None = None
    #: Of the whole image, 0 to 1: of a structure in a radiograph.
    area_share: Limit | None = None
    value: Limit | None = None


class Output(Strict):
    """One thing that the model can say: a label of a mask, an index of a vector, or a class of boxes.

    ``unit`` is a UCUM code: of the value that a measurement gives.
    """

    name: str = Field(min_length=1)
    code: CodeField
    label: int | None = Field(default=None, ge=1, le=255)
    category: CodeField | None = None
    measure: Literal["volume", "area"] | None = None
    index: int | None = Field(default=None, ge=0)
    threshold: float | None = Field(default=None, gt=0, lt=1)
    unit: CodeField | None = None
    limits: OutputLimits = OutputLimits()


class BoxForm(Strict):
    """How a detector writes its boxes over its input: corners, or a corner or the middle and a size.

    In pixels of the input, from its outer edge on, or ``normalised``: in shares of it, 0 to 1.
    """

    form: Literal["xyxy", "xywh", "cxcywh"] = "xyxy"
    normalised: bool = False


class Statement(Strict):
    """Why a model made no finding, in words and, where a standard code exists, in a code."""

    meaning: str = Field(min_length=1)
    code: CodeField | None = None


class Batch(Strict):
    """How inputs of several studies may be joined: at most so many, waiting for more at most so long."""

    maximum: int = Field(default=1, ge=1, le=256)
    wait_ms: float = Field(default=5.0, ge=0, le=1000)


class Explain(Strict):
    """How a classifier shows where it looked: an exact class activation map, or occlusion with a square of ``size``.

    ``weights`` is, for ``cam``, the ``.npy`` file with the weights of the last layer, float32 (outputs, feature maps);
    without it ``tensors.features`` has one map for each output. ``most`` findings of an image are explained, of those
    that are present.
    """

    method: Literal["cam", "occlusion"]
    size: int = Field(default=32, ge=4)
    weights: str | None = None
    most: int = Field(default=6, ge=1, le=64)


class Sample(Strict):
    """A case that the model must answer as it did when it was made.

    ``images`` is a folder of DICOM files below the card's, role by role for several roles; ``expect`` maps the name of
    an output to a probability, a value, a volume in mL, or an area in mm2 (in pixels where their distance is not
    known), each within ``tolerance`` (absolute; for sizes a share).
    ``mask`` is a file below the card's folder as :func:`inference.samples.write_mask` writes it: each label has to
    reach a Dice coefficient of ``dice`` with it.
    """

    name: str = Field(min_length=1)
    images: str | dict[str, str]
    expect: dict[str, float] = Field(default_factory=dict)
    tolerance: float = Field(default=0.02, ge=0)
    mask: str | None = None
    dice: float = Field(default=0.95, gt=0, le=1)
    #: The reason key, where the case is one that must not be analysed.
    not_analysed: str | None = None


class Histogram(Strict):
    """How a feature of inputs or answers was spread when a model was made: what drift is measured against.

    Either ``edges`` between bins of numbers, open at both ends, with one share more than edges; or ``categories``.
    """

    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    shares: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _whole(self) -> Histogram:
        if bool(self.edges) == bool(self.categories):
            raise ValueError("expected edges or categories")
        if list(self.edges) != sorted(set(self.edges)) or len(set(self.categories)) != len(self.categories):
            raise ValueError("edges rise, and each category stands once")
        if len(self.shares) != (len(self.edges) + 1 if self.edges else len(self.categories)):
            raise ValueError("shares: expected one for each category, or one more than edges")
        if abs(sum(self.shares) - 1) > 0.01:
            raise ValueError("shares: expected 1 in all")
        return self


class Resources(Strict):
    """What one run may take before its process is ended: wall time, resident memory, and the threads that it gets.

    ``concurrency`` is how many jobs may be under way in the process at once; ``gpu_memory_mb`` what is taken of a GPU;
    ``disk_mb`` what the process may hold in its temporary folder.
    """

    seconds: float = Field(default=120.0, gt=0, le=7 * 86_400)
    memory_mb: int = Field(default=4096, ge=64, le=1 << 22)
    threads: int | None = Field(default=None, ge=1, le=1024)
    concurrency: int | None = Field(default=None, ge=1, le=64)
    gpu_memory_mb: int | None = Field(default=None, ge=64, le=1 << 22)
    disk_mb: int = Field(default=20_480, ge=16, le=1 << 24)


class Card(Strict):
    """What a model is. Build it with :func:`load_card`."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")
    title: str = Field(min_length=1)
    task: Literal["segmentation", "classification", "detection", "measurement"]
    engine: Literal["onnx", "openvino", "torchxrayvision", "monai-bundle", "kserve", "command"]
    onnx: Onnx | None = None
    openvino: OpenVino | None = None
    torchxrayvision: TorchXRayVision | None = None
    monai_bundle: MonaiBundle | None = None
    kserve: KServe | None = None
    command: Command | None = None
    files: dict[str, FileEntry] = Field(default_factory=dict)
    demonstration: bool = False
    intended_use: Documentation
    limits: Documentation
    licence: str
    training_data: Documentation
    performance: Documentation
    made_by: Documentation
    #: Whom documents name as the maker of the model (LO, PS3.5 Section 6.2); the node's own where nothing is said.
    manufacturer: Annotated[str, AfterValidator(_long_string)] | None = None
    inputs: tuple[InputRole, ...] = Field(min_length=1)
    tensors: dict[str, str] = Field(default_factory=dict)
    layout: Literal["zyx", "ncdhw", "nchw"] = "zyx"
    slab: Slab | None = None
    window: Window | None = None
    preprocess: tuple[PreprocessStep, ...] = ()
    postprocess: tuple[PostprocessStep, ...] = ()
    outputs: tuple[Output, ...] = Field(min_length=1)
    boxes: BoxForm = BoxForm()
    not_analysed: dict[str, Statement] = Field(default_factory=dict)
    explain: Explain | None = None
    batch: Batch = Batch()
    samples: tuple[Sample, ...] = ()
    #: By feature, as docs/gate.md names them; without it a model's first inputs are the reference.
    reference: dict[str, Histogram] = Field(default_factory=dict)
    resources: Resources = Resources()

    _directory: Path = PrivateAttr(default=Path())
    _stamps: dict[str, Stamp] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _sound(self) -> Card:
        self._check_files()
        self._check_engine()
        roles = [role.role for role in self.inputs]
        if len(set(roles)) != len(roles):
            raise ValueError("inputs: each role has a name of its own")
        if all(role.optional for role in self.inputs):
            raise ValueError("inputs: at least one role is needed and not optional")
        if len({role.kind for role in self.inputs}) != 1:
            raise ValueError("inputs: all roles are of one kind")
        check_layout(self, tensors=self.engine in TENSOR_ENGINES)
        if self.engine in TENSOR_ENGINES:
            self._check_tensors()
        elif self.tensors or self.preprocess or self.postprocess or self.slab or self.window:
            raise ValueError(
                f"tensors, preprocess, postprocess, slab, window: the engine {self.engine} does these itself"
            )
        if self.task == "segmentation":
            self._check_segmentation()
        else:
            self._check_vector()
        check_names(self)
        if self.boxes != BoxForm() and "boxes" not in self.tensors:
            raise ValueError("boxes: only a model whose tensors are boxes answers with them")
        for step in self.postprocess:
            if step.require_volume and step.require_volume.otherwise not in self.not_analysed:
                raise ValueError(f"postprocess: {step.require_volume.otherwise!r} does not stand under not_analysed")
        return self

    def _check_files(self) -> None:
        for name in self.files:
            parts = PurePosixPath(name).parts
            if not parts or name != "/".join(parts) or name.startswith("/") or ".." in parts or "\\" in name:
                raise ValueError(f"files: {name!r} is not the plain name of a file below the card's folder")
        if not self.files and self.engine not in ("kserve", "command"):
            raise ValueError(f"files: the engine {self.engine} needs at least one")

    def _check_engine(self) -> None:
        own = self.engine.replace("-", "_")
        sections = {"onnx", "openvino", "torchxrayvision", "monai_bundle", "kserve", "command"}
        given = {section for section in sections if getattr(self, section) is not None}
        if given - {own}:
            raise ValueError(f"{sorted(given - {own})[0]}: the engine is {self.engine}, so this section says nothing")
        if not given and own in ("torchxrayvision", "kserve", "command"):
            raise ValueError(f"{own}: the engine {self.engine} needs this section")

    def _check_tensors(self) -> None:
        wanted, optional = _TENSORS[self.task]
        if not wanted <= set(self.tensors) <= wanted | optional:
            may = f" and may name {sorted(optional)}" if optional else ""
            raise ValueError(f"tensors: a {self.task} names {sorted(wanted)}{may}")
        kind = self.inputs[0].kind
        if self.task != "segmentation" and kind != "radiograph":
            raise ValueError(f"inputs: a {self.task} on the engine {self.engine} reads roles of kind radiograph")
        if self.task == "segmentation" and (self.layout == "nchw") != (kind == "radiograph"):
            raise ValueError("layout: a segmentation of a radiograph has nchw, one of a volume zyx or ncdhw")
        if kind == "volume":
            if len(self.inputs) > 1 and self.layout == "zyx":
                raise ValueError("layout: several roles are channels, which zyx has none of; use ncdhw")
        elif len(self.inputs) != 1:
            raise ValueError(f"inputs: a {self.task} on the engine {self.engine} reads exactly one role")
        check_steps(self)

    def _check_segmentation(self) -> None:
        labels = [output.label for output in self.outputs]
        if None in labels or len(set(labels)) != len(labels):
            raise ValueError("outputs: a segmentation's outputs each have a label of their own")
        if any(o.category is None or o.index is not None or o.threshold is not None for o in self.outputs):
            raise ValueError("outputs: a segmentation's outputs have a category, and neither index nor threshold")
        if self.explain:
            raise ValueError("explain: only a classification has class activation maps")
        flat = self.inputs[0].kind == "radiograph"
        if any((o.limits.volume_ml is not None) if flat else (o.limits.area_share is not None) for o in self.outputs):
            raise ValueError("outputs: limits are of volume_ml in a volume, and of area_share in a radiograph")
        if any(o.measure == ("volume" if flat else "area") for o in self.outputs):
            raise ValueError("outputs: a structure is measured by its volume in a volume, by its area in a radiograph")

    def _check_vector(self) -> None:
        indices = [output.index for output in self.outputs if output.index is not None]
        # What reads the images itself says by name or code what it has found.
        lacking = self.engine in TENSOR_ENGINES and len(indices) < len(self.outputs)
        if lacking or len(set(indices)) != len(indices):
            raise ValueError(f"outputs: a {self.task}'s outputs each have an index of their own")
        if any(o.label is not None or o.category is not None for o in self.outputs):
            raise ValueError(f"outputs: a {self.task}'s outputs have neither label nor category")
        measured = self.task == "measurement"
        if any((o.threshold is None) != measured or (o.unit is None) == measured for o in self.outputs):
            wanted = "a unit and no threshold" if measured else "a threshold and no unit"
            raise ValueError(f"outputs: a {self.task}'s outputs have {wanted}")
        if self.explain and self.task != "classification":
            raise ValueError("explain: only a classification has class activation maps")
        if self.explain and self.explain.method == "cam" and "features" not in self.tensors:
            raise ValueError("explain: cam needs tensors.features, the maps that the last layer pools")
        if self.explain and self.explain.weights is not None and self.explain.weights not in self.files:
            raise ValueError(f"explain: {self.explain.weights!r} does not stand under files")

    @property
    def directory(self) -> Path:
        """The folder that holds the card and its files."""
        return self._directory

    @property
    def path(self) -> Path:
        """The card's own file."""
        return self._directory / "card.yaml"

    def require_unchanged(self) -> None:
        """Ask whether the files are still those that were loaded, for engines that read them again or late.

        Raises
        ------
        EngineFailure
            ``broke``, naming the file.
        """
        require_unchanged(self.path, {name: entry.sha256 for name, entry in self.files.items()}, self._stamps)

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


def load_card(path: Path, *, hashed: bool = True) -> Card:
    """Read a card and check its files.

    Parameters
    ----------
    path
        ``card.yaml``, or the folder that holds it.
    hashed
        Whether every file is read to the end, which may be gigabytes; without it they have to be there, no more.

    Raises
    ------
    CardError
        Naming the file, the key and what was expected.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "card.yaml"
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise CardError(f"{path}: expected a mapping of keys, found {type(content).__name__}")
    try:
        card = Card.model_validate(content)
    except ValidationError as problem:
        said = explained(problem.errors(), list(PreprocessStep.model_fields), content)
        raise CardError(f"{path}: {'; '.join(said)}") from problem
    card._directory = path.parent.resolve()
    for name, entry in card.files.items():
        stamp = checked_file(path, name, entry.sha256 if hashed else None)
        if hashed:
            card._stamps[name] = stamp
    return card
