"""What each engine may be told in a card, in the section that bears its name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from inference.fields import Strict

__all__ = ["Command", "KServe", "MonaiBundle", "Onnx", "OpenVino", "TorchXRayVision"]

Precision = Literal["fp32", "fp16", "bf16", "int8"]


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
    """Which of torchxrayvision's models the card's file holds."""

    model: str = Field(min_length=1)


class MonaiBundle(Strict):
    """Where, in the bundle, its parts lie."""

    config: str = "configs/inference.json"


class KServe(Strict):
    """A server of the KServe V2 protocol, and what the model is called there."""

    url: str = Field(min_length=1)
    protocol: Literal["http", "grpc"] = "grpc"
    model: str = Field(min_length=1)
    version: str = ""


class Command(Strict):
    """A program: its arguments, of which ``{input}`` and ``{output}`` are its folders; never a shell."""

    argv: tuple[str, ...] = Field(min_length=1)
    input: Literal["dicom", "nifti"] = "dicom"
    output: Literal["seg", "sr", "nifti", "json"]
