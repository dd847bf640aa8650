"""The errors of ``inference``, one small tree.

::

    InferenceError
    +-- CardError          a card that cannot be used: names the file, the key and what was expected
    +-- InputRefused       the images are not what the model may read; becomes "not analysed", with the reason
    +-- EngineFailure      the engine gave no answer: it died, overran its time or its memory, or broke
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference.findings import Code


class InferenceError(Exception):
    """Anything that ``inference`` raises on purpose."""


class CardError(InferenceError):
    """A model's card or its files cannot be used as they are."""


class InputRefused(InferenceError):
    """The images must not be read by this model.

    Parameters
    ----------
    reason
        A short key, stable across versions (``gap-in-series``, ``no-pixels``, ...).
    text
        One sentence for people: what is wrong with which images. No patient identity in it.
    code
        Of the reason, where a standard has one.
    """

    def __init__(self, reason: str, text: str, code: Code | None = None) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text
        self.code = code


class EngineFailure(InferenceError):
    """An engine gave no answer.

    Parameters
    ----------
    reason
        ``died``, ``overran-time``, ``overran-memory``, ``overran-disk`` or ``broke``; and where it is not the job's
        doing: ``interrupted`` (the process ended for another reason), ``no-room`` (its device or the machine has no
        memory for the model now, or its disk no space) or ``unreachable`` (the server that has the model does not
        answer: it is waited for, like a PACS).
    text
        One sentence for people.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text

    @property
    def counts(self) -> bool:
        """Whether it counts as a try: not where something else than the job was the reason."""
        return self.reason not in ("interrupted", "no-room", "unreachable")
