"""What to install where an engine or a tool needs a package that is not here: one command, in one place."""

from __future__ import annotations

from typing import Final

__all__ = ["lacking"]

#: A package's first name to the optional dependencies of this project that bring it (pyproject.toml).
_EXTRAS: Final = {
    "openvino": "openvino",
    "tritonclient": "kserve",
    "grpc": "kserve",
    "geventhttpclient": "kserve",
    "onnx": "convert",
    "SimpleITK": "registration",
} | dict.fromkeys(("torch", "torchvision", "torchxrayvision", "monai", "ignite", "nibabel"), "torch")


def lacking(absent: ModuleNotFoundError, extras: str = "") -> str:
    """Return which package is not installed, and the command that installs it where this project knows one.

    Parameters
    ----------
    absent
        What the import has raised.
    extras
        The optional dependencies that the task needs in all, where they are more than the package's own.
    """
    package = absent.name or "a package"
    extra = extras or _EXTRAS.get(package.partition(".")[0], "")
    todo = f": .venv/bin/pip install -e '.[{extra}]'" if extra else ""
    return f"needs {package}, which is not installed here{todo}"
