"""Holds what a model's file says of its tensors against what its card says, before the first image is read.

A card that lies is found when the model is loaded, and said with the file, the key and what to do; else the lie would
come out as a failure of every study.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from inference.errors import EngineFailure

if TYPE_CHECKING:
    from inference.card import Card

__all__ = ["OUTPUT_ROLES", "Tensor", "check_tensors", "output_roles"]

#: Roles of a card's ``tensors`` that a model answers with.
OUTPUT_ROLES = frozenset({"output", "features", "boxes", "scores", "classes"})

_FLOATS = ("float32", "float16")
_NUMBERS = (*_FLOATS, "float64", "int64", "int32", "uint8", "int8", "int16", "uint16", "uint32", "uint64")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as a model's file declares it.

    ``dtype`` is NumPy's name of its type. ``shape`` has None for a dimension that is free, and is None itself where
    the file does not say how many dimensions there are.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True, slots=True)
class _Meant:
    """What a card means by a tensor: its types, and each dimension's only size, least size (negative), or None."""

    dtypes: tuple[str, ...]
    shape: tuple[int | None, ...] | None
    words: str


def output_roles(card: Card) -> dict[str, str]:
    """Return the tensors that the model is asked for: role to the tensor's name."""
    return {role: name for role, name in card.tensors.items() if role in OUTPUT_ROLES}


def check_tensors(card: Card, file: str, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
    """Compare the tensors of a file with its card.

    Parameters
    ----------
    card
        What the model is said to be.
    file
        The name of the model's file, for messages.
    inputs, outputs
        The file's tensors by name.

    Raises
    ------
    EngineFailure
        ``broke``, naming the card, the key, the file and what was found.
    """
    for role, name in card.tensors.items():
        kind, there = ("output", outputs) if role in OUTPUT_ROLES else ("input", inputs)
        where = f"{card.path}: tensors.{role}: {file}"
        if name not in there:
            raise EngineFailure("broke", f"{where} has no {kind} {name!r} (its {kind}s: {', '.join(there) or 'none'})")
        _check(card, where, there[name], _meant(card, role, there[name].dtype))
    unfed = [name for name in inputs if name not in card.tensors.values()]
    if unfed:
        raise EngineFailure(
            "broke", f"{card.path}: tensors: {file} wants an input {unfed[0]!r} that no key of it names"
        )


def _check(card: Card, where: str, found: Tensor, meant: _Meant | None) -> None:
    size = math.prod(n for n in found.shape or () if n is not None) * _bytes_of(found.dtype)
    if size > card.resources.memory_mb * 2**20:
        raise EngineFailure(
            "broke",
            f"{where} declares {found.name!r} with {size // 2**20} MB at least, more than resources.memory_mb allows",
        )
    if meant is None:
        return
    if found.dtype not in meant.dtypes:
        raise EngineFailure(
            "broke",
            f"{where} declares {found.name!r} as {found.dtype}; a {card.task} means {' or '.join(meant.dtypes)}: "
            "name the right tensor, or put a cast into the graph",
        )
    if meant.shape is None or found.shape is None:
        return
    fits = len(found.shape) == len(meant.shape) and all(
        have is None or want is None or (have == want if want > 0 else have >= -want)
        for have, want in zip(found.shape, meant.shape, strict=True)
    )
    if not fits:
        shape = ", ".join("any" if n is None else str(n) for n in found.shape)
        raise EngineFailure(
            "broke",
            f"{where} declares {found.name!r} of shape ({shape}); its card means {meant.words}: "
            "mend the card, or export the model again",
        )


def _bytes_of(dtype: str) -> int:
    """Return how large a value is; 1 of what is no number (text, a sequence, a map), which is told by its type."""
    try:
        return np.dtype(dtype).itemsize
    except TypeError:
        return 1


def _meant(card: Card, role: str, dtype: str) -> _Meant | None:
    if card.task == "segmentation":
        return _meant_projection(card, role) if card.layout == "nchw" else _meant_volume(card, role, dtype)
    if role == "image":
        size = _size(card)
        return _Meant(_FLOATS, (None, 1, size, size), f"(images, 1, {size}, {size})")
    if role == "output":
        highest = max((output.index for output in card.outputs if output.index is not None), default=0)
        return _Meant(_FLOATS, (None, -(highest + 1)), f"(images, {highest + 1} or more)")
    if role == "features":
        return _Meant(_FLOATS, (None, None, None, None), "(images, channels, rows, columns)")
    # A detector's: how many axes they have differs from exporter to exporter, and is seen when they are read.
    return _Meant(_NUMBERS if role == "classes" else (*_FLOATS, "float64"), None, "")


def _meant_projection(card: Card, role: str) -> _Meant | None:
    if role == "image":
        size = _size(card)
        return _Meant(_FLOATS, (None, 1, size, size), f"(images, 1, {size}, {size})")
    channels, words = _channels(card)
    return _Meant(_FLOATS, (None, channels, None, None), f"(images, {words}, rows, columns)")


def _channels(card: Card) -> tuple[int, str]:
    """Return how many scores a segmentation's card means, as a shape says it, and in words.

    With a threshold the channels are the card's outputs, in their order; without one a channel's number is a label, and
    0 the background. A graph with fewer would never find a structure that the card names, and its volume be 0 mL.
    """
    if any(step.threshold for step in card.postprocess):
        return len(card.outputs), f"{len(card.outputs)} channels, one for each output"
    least = max(output.label or 0 for output in card.outputs) + 1
    return -least, f"{least} or more channels"


def _meant_volume(card: Card, role: str, dtype: str) -> _Meant | None:
    if role == "spacing":
        return _Meant(("float32",), (3,), "(3), in mm")
    if card.layout == "zyx":
        dtypes = ("int16", *_FLOATS) if role == "image" else ("uint8",)
        # A size that is fixed would refuse every series but one: what is wanted is one that no file can have.
        return _Meant(dtypes, (_FREE, _FREE, _FREE), "(slices, rows, columns), all of them free")
    sizes: tuple[int | None, ...] = (None, None, None)
    if card.window:
        sizes = card.window.size
    else:
        for step in card.preprocess:
            if step.crop_or_pad:
                sizes = step.crop_or_pad.shape
    words = ", ".join("any" if size is None else str(size) for size in sizes)
    if role == "image":
        return _Meant(_FLOATS, (None, len(card.inputs), *sizes), f"(pieces, {len(card.inputs)}, {words})")
    # A graph over the whole volume may choose itself and answer labels; windows are joined by their scores.
    answers: tuple[str, ...] = _FLOATS if card.window else (*_FLOATS, "uint8")
    channels, counted = (1, "1 channel of labels") if dtype == "uint8" else _channels(card)
    return _Meant(answers, (None, channels, *sizes), f"(pieces, {counted}, {words})")


#: Less than any file declares.
_FREE = -(1 << 40)


def _size(card: Card) -> int | None:
    for step in card.preprocess:
        if step.radiograph_input:
            return step.radiograph_input.size
        if step.torchxrayvision_input:
            return step.torchxrayvision_input.size
    return None
