"""What of a card is allowed and yet likely a slip: said to whoever adds or shows it, never a refusal."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import TYPE_CHECKING

from inference.engines.modelfile import model_file
from inference.engines.onnxfile import made_by
from inference.errors import InferenceError
from inference.inputs import Limits
from inference.proof import little_compared

if TYPE_CHECKING:
    from inference.card import Card
    from inference.inputs import InputRole

__all__ = ["cautions", "copied", "logits"]

#: What a card says to people about one model alone; a licence is shared by many.
_TEXTS = ("intended_use", "limits", "training_data", "performance", "made_by")
#: From this length on (characters of JSON) words are somebody's own.
_OWN_WORDS = 30
#: Operators whose values are 0 to 1.
_BOUNDED = frozenset({"Sigmoid", "Softmax", "HardSigmoid", "Clip"})


def cautions(card: Card) -> tuple[str, ...]:
    """Return a line for each thing that a card leaves open and that costs dearly where it was forgotten."""
    open_roles = [_open(role) for role in card.inputs]
    return tuple(line for line in (*open_roles, logits(card), little_compared(card)) if line)


def copied(card: Card, others: Collection[Card]) -> tuple[str, ...]:
    """Return a line for each other model of which a card says the same words; as a rule they were copied.

    Versions of one model share theirs, and short words such as "not said" are nobody's own.
    """
    lines: dict[str, list[str]] = {}
    for key in _TEXTS:
        said = getattr(card, key)
        mine = len(json.dumps(said, default=str)) >= _OWN_WORDS
        same = (one.name for one in others if one.name != card.name and getattr(one, key) == said)
        first = next(same, None) if mine else None
        if first:
            lines.setdefault(first, []).append(key)
    return tuple(
        f"{', '.join(keys)}: word for word what {model} says of itself; say what is true of {card.name}"
        for model, keys in lines.items()
    )


def _open(role: InputRole) -> str:
    said = []
    if not role.match:
        said.append("no match: takes a series of any modality")
    if role.limits == Limits() and role.slice_spacing_mm is None:
        what = (
            "any radiograph (no plausible, no age, no spacing)"
            if role.kind == "radiograph"
            else "any volume (no spacing, no coverage, no age)"
        )
        said.append(f"no limits: reads {what}")
    return f"{role.role}: {'; '.join(said)}" if said else ""


def logits(card: Card) -> str:
    """Return why a classifier's graph may answer logits where its card means probabilities; "" where nothing says so.

    On noise and on many images logits lie between 0 and 1 too, so a run need not show it.
    """
    if card.task != "classification" or card.engine != "onnx" or any(step.activation for step in card.postprocess):
        return ""
    try:
        makers = made_by(card.directory / model_file(card, ".onnx"), card.tensors["output"])
    except InferenceError:
        # The engine says what is wrong with the file.
        return ""
    strange = sorted(makers - _BOUNDED)
    if not strange:
        return ""
    return (
        f"{card.tensors['output']} is made by {', '.join(strange)}, so these may be logits and not probabilities; "
        "then declare postprocess: - activation: {kind: sigmoid} (or softmax)"
    )
