"""What, beside a card and its images, an answer is a function of: the software and the machine that compute it."""

from __future__ import annotations

import hashlib
import json
import platform
from functools import cache
from importlib import metadata
from pathlib import Path

__all__ = ["CACHEABLE", "runtime_of"]

#: Engines whose answers are a function of the card's files; a server or a program may be another one tomorrow.
CACHEABLE = frozenset({"onnx", "openvino", "torchxrayvision", "monai-bundle"})

#: What reads and prepares images for every engine.
_READING = (
    "overread",
    "numpy",
    "scipy",
    "SimpleITK",
    "pillow",
    "pydicom",
    "pylibjpeg-openjpeg",
    "pyjpegls",
    "python-gdcm",
)
_COMPUTING = {
    "onnx": ("onnxruntime", "onnxruntime-gpu", "openvino"),
    "openvino": ("openvino",),
    "torchxrayvision": ("torch", "torchvision", "torchxrayvision"),
    "monai-bundle": ("torch", "torchvision", "monai", "pytorch-ignite", "nibabel"),
}


@cache
def runtime_of(engine: str) -> str:
    """Return a hex digest that changes with the versions of what computes an answer, its processor and its devices."""
    versions = {name: _version(name) for name in (*_READING, *_COMPUTING.get(engine, ()))}
    devices = sorted(one.name for one in Path("/dev").iterdir() if one.name.startswith(("nvidia", "kfd", "accel")))
    said = [versions, platform.machine(), platform.python_version(), _processor(), devices]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _processor() -> list[str]:
    """Return the processor's name and what it can do, of which the kernels are chosen."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        return [platform.processor()]
    return sorted(line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part")))
