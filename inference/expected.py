"""What a model says of its sample cases now, in the form in which a card has it: for whoever writes a card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.errors import CardError, EngineFailure
from inference.host import EngineHost
from inference.samples import job_of, values_of, write_mask

if TYPE_CHECKING:
    from inference.card import Card, Sample
    from inference.findings import Findings

__all__ = ["DICE", "PROBABILITY_TOLERANCE", "SIZE_TOLERANCE", "expected_of"]

#: How far a later answer may lie from the one that is written down: of a size its share, of anything else as it is.
SIZE_TOLERANCE, PROBABILITY_TOLERANCE, DICE = 0.03, 0.05, 0.97


def expected_of(
    card: Card,
    *,
    samples: Sequence[Sample] | None = None,
    masks: Path | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[dict[str, Any]]:
    """Run samples and return what they would have to expect, ready to stand under ``samples`` of the card.

    Parameters
    ----------
    samples
        By default those of the card; what they expect is not looked at.
    masks
        A folder below the card's: there the mask of each case is written, as NAME.npz, and named in the case.
    progress
        Called with (done, in all).

    Raises
    ------
    CardError
        When a sample's files are not there, the model gives no answer, or masks would lie outside the card's folder.
    """
    below = ""
    if masks is not None:
        if not masks.resolve().is_relative_to(card.directory):
            raise CardError(f"{masks}: a card names its masks below its own folder, {card.directory}")
        below = masks.resolve().relative_to(card.directory).as_posix()
        masks.mkdir(parents=True, exist_ok=True)
    asked = card.samples if samples is None else samples
    found = []
    with EngineHost(card) as host:
        for number, sample in enumerate(asked, start=1):
            try:
                findings = host.run(job_of(card, sample))
            except EngineFailure as failure:
                raise CardError(f"{card.path}: samples.{sample.name}: {failure.text}") from failure
            case = _case(card, sample, findings)
            mask = findings.segmentation
            if masks is not None and mask is not None and findings.not_analysed is None:
                with (masks / f"{sample.name}.npz").open("wb") as file:
                    write_mask(file, mask)
                case |= {"mask": f"{below}/{sample.name}.npz".removeprefix("./"), "dice": DICE}
            found.append(case)
            progress(number, len(asked))
    return found


def _case(card: Card, sample: Sample, findings: Findings) -> dict[str, Any]:
    case: dict[str, Any] = {"name": sample.name, "images": sample.images}
    if findings.not_analysed is not None:
        return case | {"not_analysed": findings.not_analysed.reason}
    sizes = card.task == "segmentation"
    return case | {
        "expect": {key: round(value, 1 if sizes else 4) for key, value in values_of(findings).items()},
        "tolerance": SIZE_TOLERANCE if sizes else PROBABILITY_TOLERANCE,
    }
