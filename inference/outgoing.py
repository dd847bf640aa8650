"""What may leave the node as pixels, to a program or to a server: no image that says that text is burned into it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference.errors import InputRefused
from inference.imagefile import open_image, texts_of

if TYPE_CHECKING:
    from pydicom import Dataset

    from inference.card import Card
    from inference.engine import Job

__all__ = ["require_no_text", "require_that_pixels_may_leave"]


def require_that_pixels_may_leave(card: Card, job: Job) -> None:
    """Look at all images of a job, where the card's engine sends pixels out and the card does not allow text in them.

    Raises
    ------
    InputRefused
        ``burned-in-annotation``, or ``unreadable``.
    """
    outside = card.kserve or card.command
    if outside is None or outside.burned_in:
        return
    for given in job.input_set.values():
        for file in given:
            require_no_text(open_image(file))


def require_no_text(dataset: Dataset) -> None:
    """Refuse an image whose Burned In Annotation (0028,0301) is anything but NO, empty or absent.

    The standard has YES and NO (PS3.3 C.7.6.1); whoever writes Y or TRUE, or several values, does not mean NO.

    Raises
    ------
    InputRefused
        ``burned-in-annotation``, or ``unreadable``.
    """
    if any(text not in ("", "NO") for text in texts_of(dataset, "BurnedInAnnotation")):
        raise InputRefused(
            "burned-in-annotation", "an image says that text is burned into its pixels, which may name the patient"
        )
