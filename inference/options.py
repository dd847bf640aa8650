"""What each engine may be told in a card, in the section that bears its name."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from inference.fields import Strict
from inference.marking import Overlap

__all__ = ["Command", "KServe", "MonaiBundle", "Onnx", "OpenVino", "TensorExpectation", "TorchXRayVision"]

Precision = Literal["fp32", "fp16", "bf16", "int8"]


def _relative(value: str) -> str:
    parts = PurePosixPath(value).parts
    if not parts or value != "/".join(parts) or value.startswith("/") or ".." in parts or "\\" in value:
        raise ValueError("expected a plain name below the folder")
    return value


RelativePath = Annotated[str, AfterValidator(_relative)]


class Onnx(Strict):
    """ONNX Runtime: execution providers by preference (those that are not there are passed over), and the precision.

    ``auto`` takes a GPU where there is one, else what was measured to be the fastest on this machine's processor. The
    precision ``auto`` is the file's own, or bf16 where that was measured to answer alike.
    ``device`` is the number of the GPU.
    """

    providers: (
        Literal["auto"] | Annotated[tuple[Literal["cpu", "cuda", "tensorrt", "openvino"], ...], Field(min_length=1)]
    ) = "auto"
    precision: Precision | Literal["auto"] = "auto"
    device: int = Field(default=0, ge=0, le=63)


class OpenVino(Strict):
    """OpenVINO on the CPU: how precisely it computes, and among how many runs at once it divides its threads."""

    precision: Precision | Literal["auto"] = "auto"
    streams: int = Field(default=1, ge=1, le=64)


class TorchXRayVision(Strict):
    """Which of torchxrayvision's models the card's file holds, and what runs it."""

    model: str = Field(min_length=1)
    device: Literal["cpu", "cuda"] = "cpu"


class MonaiBundle(Strict):
    """Where, in the bundle, its parts lie, and what the channels of its answer mean.

    All names are relative to ``root``, which is relative to the card's folder. The network's weights come from
    ``weights``, or the network itself from ``script`` (TorchScript); with neither, the configuration makes both.
    """

    root: RelativePath = "bundle"
    config: RelativePath = "configs/inference.json"
    metadata: RelativePath = "configs/metadata.json"
    weights: RelativePath | None = None
    script: RelativePath | None = None
    #: The keys of the input and of the answer in the bundle's own dictionaries.
    image: str = Field(default="image", min_length=1)
    prediction: str = Field(default="pred", min_length=1)
    #: Whether channel 0 of an answer of several channels is the background; else channel 0 is label 1, and so on.
    background: bool = True
    #: Where channels mark the same voxel: refuse, let the output that stands later in the card have it, or keep all.
    overlap: Overlap = "refuse"

    @model_validator(mode="after")
    def _sound(self) -> MonaiBundle:
        if self.weights is not None and self.script is not None:
            raise ValueError("weights, script: the network's weights come from one of them")
        return self


class TensorExpectation(Strict):
    """What a served model's tensor has to be: a datatype of KServe V2, and a shape in which -1 is any length."""

    datatype: Literal[
        "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32", "FP64"
    ]
    shape: tuple[int, ...]


class KServe(Strict):
    """A server of the KServe V2 protocol, what the model is called there, and how long to wait for it.

    ``url`` begins with ``http://`` or ``https://`` for HTTP, ``grpc://`` or ``grpcs://`` for gRPC; the s means TLS,
    checked against the system's authorities or those of ``ca`` (a PEM file, below the card's folder or absolute).
    ``token_environment`` names the variable that holds a bearer token. ``binary`` is how tensors are written over HTTP;
    ``auto`` goes by what the server says of itself. ``expect`` holds what its metadata must say of a tensor.
    """

    url: str
    protocol: Literal["http", "grpc"] = "grpc"
    model: str = Field(min_length=1, max_length=256)
    version: str = Field(min_length=1, max_length=64)
    timeout_seconds: float = Field(default=30.0, gt=0, le=3600)
    connect_seconds: float = Field(default=5.0, gt=0, le=60)
    retries: int = Field(default=3, ge=0, le=10)
    backoff_seconds: float = Field(default=0.5, gt=0, le=10)
    ca: str | None = None
    token_environment: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    binary: bool | Literal["auto"] = "auto"
    most_answer_mb: int = Field(default=512, ge=1, le=2047)
    expect: dict[str, TensorExpectation] = Field(default_factory=dict)
    #: Whether images that say that they have text in their pixels may be sent.
    burned_in: bool = False

    @model_validator(mode="after")
    def _sound(self) -> KServe:
        parts = urlsplit(self.url)
        schemes = {"http": ("http", "https"), "grpc": ("grpc", "grpcs")}[self.protocol]
        plain = parts.path in ("", "/") if self.protocol == "grpc" else True
        if parts.scheme not in schemes or not parts.hostname or parts.username or parts.query or not plain:
            raise ValueError(f"url: expected {schemes[0]}://HOST:PORT or {schemes[1]}://HOST:PORT, without a password")
        secret = parts.scheme in ("https", "grpcs")
        if self.ca and not secret:
            raise ValueError(f"ca: there is no TLS with {parts.scheme}://")
        if self.token_environment:
            if self.token_environment.startswith("OVERREAD"):
                raise ValueError("token_environment: engines get no variable whose name begins with OVERREAD")
            if not secret and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
                raise ValueError(f"token_environment: a token goes over TLS only, not over {parts.scheme}://")
        return self


#: What a program's copies may keep beyond geometry, acquisition and pixels: no name, number or date of a person.
Kept = Literal[
    "ContrastBolusAgent",
    "PatientAge",
    "PatientSex",
    "PatientSize",
    "PatientWeight",
    "ProtocolName",
    "SequenceName",
    "SeriesDescription",
    "StudyDescription",
]


class Command(Strict):
    """A program with an input and an output folder; never a shell.

    In ``argv`` and the values of ``environment``, ``{input}``, ``{output}``, ``{work}``, ``{card}``, ``{threads}`` and
    ``{python}`` stand for its folders, the card's folder, the threads that it gets and the node's own interpreter.
    ``result`` is a pattern for the names of the files that hold the answer; ``masks`` maps files of one structure each
    to its label. ``overlap`` says what becomes of a voxel that the answer gives to several structures: the answer is
    refused, all keep it, or the one that the card names last has it. ``keep`` and ``burned_in`` say what of the patient
    may stay in the copies that it reads. ``writable`` names folders outside of its own that it may write to. Wall time,
    memory and threads are those of ``resources``.
    """

    argv: tuple[str, ...] = Field(min_length=1)
    input: Literal["dicom", "nifti"] = "dicom"
    output: Literal["seg", "sr", "nifti", "json"]
    result: str | None = Field(default=None, min_length=1)
    masks: dict[str, Annotated[int, Field(ge=1, le=255)]] = Field(default_factory=dict)
    overlap: Overlap = "refuse"
    input_names: dict[str, str] = Field(default_factory=dict)
    environment: dict[str, str] = Field(default_factory=dict)
    pass_environment: tuple[str, ...] = ()
    network: bool = False
    writable: tuple[Annotated[str, Field(pattern=r"^/.")], ...] = ()
    keep: tuple[Kept, ...] = ()
    burned_in: bool = False
    decompress: bool = True
    processes: int = Field(default=512, ge=1, le=100_000)
    address_space_mb: int | None = Field(default=None, ge=64, le=1 << 22)
    output_mb: int = Field(default=4096, ge=1, le=1 << 20)
    output_files: int = Field(default=10_000, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _sound(self) -> Command:
        for text in (*self.argv, *self.environment.values()):
            strange = set(re.findall(r"\{([a-z_]+)\}", text)) - {"input", "output", "work", "card", "threads", "python"}
            if strange or "\0" in text:
                raise ValueError(f"argv, environment: {{{', '.join(sorted(strange))}}} stands for nothing")
        hidden = [name for name in self.pass_environment if name.startswith("OVERREAD")]
        if hidden:
            raise ValueError(f"pass_environment: {hidden[0]}: programs get no variable whose name begins with OVERREAD")
        if self.masks and self.output != "nifti":
            raise ValueError("masks: only where output is nifti")
        for name in (*self.masks, *self.input_names.values(), self.result or "x"):
            if "/" in name or name in (".", ".."):
                raise ValueError(f"masks, input_names, result: {name!r} is not the plain name of a file")
        if any(not name.endswith((".nii", ".nii.gz")) for name in self.input_names.values()):
            raise ValueError("input_names: expected names that end in .nii or .nii.gz")
        return self
