"""The file of a model on its way into a runtime: which one it is, whether it may be opened, and what went wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference.engines.onnxfile import OnnxContents, describe
from inference.errors import EngineFailure

if TYPE_CHECKING:
    from inference.card import Card

__all__ = ["check_file", "failure", "model_file"]


def model_file(card: Card, suffix: str) -> str:
    """Return the name of the card's one file with a suffix.

    Raises
    ------
    EngineFailure
        ``broke``, if there is none, or more than one.
    """
    files = [name for name in card.files if name.endswith(suffix)]
    if len(files) != 1:
        raise EngineFailure("broke", f"{card.path}: files: expected exactly one {suffix} file, found {len(files)}")
    return files[0]


def check_file(card: Card, file: str, declared: str) -> OnnxContents:
    """Look into an ONNX file before a runtime opens it.

    Parameters
    ----------
    card
        Every file that the ONNX file refers to has to stand under its ``files``, so that it was hashed.
    file
        The ONNX file's name.
    declared
        The precision that the card declares; ``int8`` and a file that computes with integers go together.

    Returns
    -------
    OnnxContents
        What the file holds.

    Raises
    ------
    EngineFailure
        ``broke``, naming the card, the file and what to do.
    """
    contents = describe(card.directory / file)
    listed = {card.directory / name for name in card.files}
    for location in contents.external:
        # Compared as the card's own keys are written, and never resolved: only what was hashed may be read.
        if (card.directory / file).parent / location not in listed:
            raise EngineFailure(
                "broke",
                f"{card.path}: {file} keeps weights in {location!r}, which is no file of this card: list it under "
                "files with its sha256, or save the model as one file",
            )
    if (contents.integers is not None) != (declared == "int8") and declared != "auto":
        found = "computes with integers" if contents.integers else f"is a model in {contents.precision}"
        raise EngineFailure(
            "broke",
            f"{card.path}: {card.engine}.precision: {file} {found}, and the card says {declared}: name the file's own "
            "precision, or make the file with `overread models quantise`",
        )
    return contents


_UNKNOWN = "No conversion rule found for operations"


def failure(what: str, problem: Exception) -> EngineFailure:
    """Return what a runtime's exception means, with the first words of its own message."""
    text = " ".join(str(problem).split())
    # OpenVINO names an unknown operator at the end of a long report.
    text = text[max(text.find(_UNKNOWN), 0) :][:300]
    starved = isinstance(problem, MemoryError) or any(
        sign in text.lower() for sign in ("allocate memory", "bad_alloc", "bad allocation", "out of memory")
    )
    return EngineFailure("overran-memory" if starved else "broke", f"{what}: {text or type(problem).__name__}")
