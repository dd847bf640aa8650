"""Which steps a card may declare: each of them is done by the way its images take, and any other is refused.

A step that is read and not done is worse than one that is refused: whoever wrote ``activation: sigmoid`` takes the
answer for a probability. So the steps of each way stand in one table, :data:`POSTPROCESS`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from inference.steps import GEOMETRIC, PROJECTION

if TYPE_CHECKING:
    from inference.card import Card, Output

__all__ = ["POSTPROCESS", "check_layout", "check_steps"]

_MASK: Final = frozenset({"keep_components", "fill_holes", "require_volume"})
_SCORES: Final = frozenset({"activation", "threshold"})

#: Task and layout to the steps after the model. What reads radiographs and gives no mask reads nchw.
POSTPROCESS: Final[Mapping[tuple[str, str], frozenset[str]]] = {
    ("segmentation", "zyx"): _MASK,
    ("segmentation", "ncdhw"): _SCORES | _MASK,
    ("segmentation", "nchw"): _SCORES,
    ("classification", "nchw"): frozenset({"activation", "calibrate"}),
    ("measurement", "nchw"): frozenset({"activation"}),
    ("detection", "nchw"): frozenset(),
}

#: In this order they are done: scores, what is decided on them, the mask. Those of a mask are done as they are listed.
_RANK: Final[Mapping[str, int]] = {"activation": 0, "threshold": 1, "calibrate": 1} | dict.fromkeys(_MASK, 2)

_WHY: Final[Mapping[tuple[str, str], str]] = {
    ("segmentation", "zyx"): "its graph answers labels, of which these are the steps",
    ("segmentation", "ncdhw"): "its graph answers scores, which become a mask",
    ("segmentation", "nchw"): "its structures lie over one another and have no volume",
    ("classification", "nchw"): "its graph answers a score for each output",
    ("measurement", "nchw"): "its values are measured and no probabilities of a finding",
    ("detection", "nchw"): "its scores have to be 0 to 1 in the graph itself",
}


def check_layout(card: Card, *, tensors: bool) -> None:
    """Refuse a layout that nothing reads; the default says nothing, and passes.

    Parameters
    ----------
    tensors
        Whether the card's engine takes tensors and gives tensors.

    Raises
    ------
    ValueError
        With the reason.
    """
    if card.layout == "zyx":
        return
    if card.task != "segmentation":
        raise ValueError(f"layout: only a segmentation has one; a {card.task} is given (images, 1, size, size) anyway")
    if not tensors:
        raise ValueError(f"layout: the engine {card.engine} reads the images itself; leave it out")


def check_steps(card: Card) -> None:
    """Refuse steps that the way of this card's images does not do, or not in this order or number.

    Raises
    ------
    ValueError
        Naming the key and the reason.
    """
    volume = card.inputs[0].kind == "volume"
    if volume:
        _check_volume(card)
    else:
        _check_radiograph(card)
    way = (card.task, card.layout if card.task == "segmentation" else "nchw")
    allowed = POSTPROCESS[way]
    names = [next(iter(step.model_fields_set)) for step in card.postprocess]
    for name in names:
        if name not in allowed:
            of = "of radiographs" if not volume else f"of layout {card.layout}"
            has = f"{' and '.join(sorted(allowed))} alone" if allowed else "none"
            raise ValueError(f"postprocess: {name}: a {card.task} {of} has {has}: {_WHY[way]}")
    for name in sorted(set(names) - _MASK):
        if names.count(name) > 1:
            raise ValueError(f"postprocess: {name}: stands {names.count(name)} times; once is what is done")
    ranks = [_RANK[name] for name in names]
    if ranks != sorted(ranks):
        raise ValueError("postprocess: expected activation first, then threshold or calibrate, then steps on the mask")
    labels = {output.label for output in card.outputs}
    for step in card.postprocess:
        said = step.threshold.overlap if step.threshold and "overlap" in step.threshold.model_fields_set else "keep"
        if not volume and said != "keep":
            raise ValueError("postprocess: threshold.overlap: in a radiograph each channel is for itself (keep)")
        if step.fill_holes and not set(step.fill_holes.labels) <= labels:
            raise ValueError("postprocess: fill_holes.labels: names a label that stands under no output")


def _check_volume(card: Card) -> None:
    names = [next(iter(step.model_fields_set)) for step in card.preprocess]
    if PROJECTION & set(names):
        raise ValueError("preprocess: a segmentation has no step of a radiograph")
    if card.layout == "zyx" and (names or card.window):
        raise ValueError("preprocess, window: a graph of layout zyx takes the images as they are, slab by slab")
    if card.layout == "ncdhw" and card.slab:
        raise ValueError("slab: a graph of layout ncdhw is cut by window")
    if card.layout == "ncdhw" and "spacing" in card.tensors:
        raise ValueError("tensors.spacing: a graph of layout ncdhw is given none; its grid has the spacing of resample")
    geometric = [name in GEOMETRIC for name in names]
    if names[-1:] == ["crop_or_pad"]:
        geometric.pop()
    if geometric != sorted(geometric, reverse=True):
        raise ValueError(
            "preprocess: orient, resample and crop_or_pad come before the steps on intensities; crop_or_pad may come "
            "last instead"
        )
    for name in sorted(GEOMETRIC):
        if names.count(name) > 1:
            raise ValueError(f"preprocess: {name}: stands {names.count(name)} times; they are one interpolation")
    _check_mirror(card)


def _check_mirror(card: Card) -> None:
    """Refuse flips that change the patient's sides where an output is of one side: its mean would be of both."""
    axes = next((step.orient.axes for step in card.preprocess if step.orient), _VOLUME_AXES)
    across = next(number for number, letter in enumerate(axes) if letter in "LR")
    sided = next((output.name for output in card.outputs if _is_of_one_side(output)), None)
    if card.window is not None and across in card.window.mirror and sided is not None:
        raise ValueError(
            f"window.mirror: axis {across} runs between the patient's left and right, and {sided!r} is of one side, "
            "which would be looked for on both; leave this axis out"
        )


#: What the array axes of a volume grow towards where a card does not turn it (docs/geometry.md).
_VOLUME_AXES: Final = "SPL"
#: A side within a word, as in "leftlung"; neither "cleft" nor "bright" nor "upright" has one.
_SIDED_WORD: Final = re.compile("(left|right).*|.*(?<!c)left|.*(?<!b)(?<!up)right")


def _is_of_one_side(output: Output) -> bool:
    """Whether a name or a code's meaning says so: left and right, lh and rh, and l or r at its end (lung_l)."""
    for text in (output.name, output.code.meaning):
        # With their numbers: the L of L1 is none.
        words = [word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+|[0-9]+", text)]
        if any(word in ("lh", "rh") or _SIDED_WORD.fullmatch(word) for word in words) or words[-1:] in (["l"], ["r"]):
            return True
    return False


def _check_radiograph(card: Card) -> None:
    names = [next(iter(step.model_fields_set)) for step in card.preprocess]
    if len(names) != 1 or names[0] not in PROJECTION:
        raise ValueError(f"preprocess: a {card.task} has exactly one step, one of {sorted(PROJECTION)}")
    if card.slab or card.window or "spacing" in card.tensors:
        raise ValueError(f"slab, window, tensors.spacing: a {card.task} of radiographs has none")
