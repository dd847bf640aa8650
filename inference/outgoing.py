"""What may leave the node as pixels, to a program or to a server: no image that says that text is burned into it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference.errors import InputRefused
from inference.imagefile import texts_of
from inference.reasons import REASONS

if TYPE_CHECKING:
    from pydicom import Dataset

    from inference.card import Card

__all__ = ["keeps_text", "require_no_text"]


def keeps_text(card: Card) -> bool:
    """Whether the card's engine sends pixels out, and text in them has to stay."""
    outside = card.kserve or card.command
    return outside is not None and not outside.burned_in


def require_no_text(dataset: Dataset) -> None:
    """Refuse an image whose Burned In Annotation (0028,0301) is anything but NO, empty or absent.

    The standard has YES and NO (PS3.3 C.7.6.1); whoever writes Y or TRUE, or several values, does not mean NO.

    Raises
    ------
    InputRefused
        ``burned-in-annotation``, or ``unreadable``.
    """
    if any(text not in ("", "NO") for text in texts_of(dataset, "BurnedInAnnotation")):
        reason = "burned-in-annotation"
        words = "an image says that text is burned into its pixels, which may name the patient"
        raise InputRefused(reason, words, REASONS[reason])
