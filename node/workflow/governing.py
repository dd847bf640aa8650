"""What operators do with versions of models that are here: test them, promote them, turn them back, retire them.

Whether a version may be promoted is decided here: its files are what its card says, its own sample cases have passed,
and no report that lies beside its card says otherwise. How stages move is :mod:`storage.stages`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from inference.bring.codes import open_names
from inference.card import Card
from inference.cautions import logits
from inference.errors import CardError
from inference.proof import little_compared, unproven
from inference.registry import card_of, card_sha256, parted
from inference.trial import why_not_loaded
from node.errors import ModelRefused
from node.settings import Settings
from node.workflow import measuring, shadows
from node.workflow.control import Done
from node.workflow.models import store_of
from storage import models, stages, worklist
from storage.database import Database
from storage.errors import IllegalTransition
from storage.lifecycle import CANARY, CANDIDATE, LIVE, REMOVED, RETIRED, SHADOW
from storage.records import ModelVersion

__all__ = ["Stage", "Verified", "locate", "promote", "retire", "rollback", "run_test", "verify", "version_named"]

Stage = Literal["candidate", "shadow", "canary", "live"]
Progress = Callable[..., None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """Whether the bytes of a version are those that it was registered with, and what is wrong where they are not."""

    version: str
    passed: bool
    found: str


def locate(settings: Settings, model: str, version: str, *, hashed: bool = True) -> Card:
    """Load the card of one version from where it lies; every file of it is hashed, unless that is not asked for.

    Raises
    ------
    CardError
        When it is not there, or its bytes are not what its card says.
    """
    shipped = settings.models / model / "card.yaml"
    if shipped.is_file():
        card = card_of(shipped, settings.models, hashed=hashed)
        if card.version == version:
            return card
    for root in (settings.models, store_of(settings)):
        file = root / model / version / "card.yaml"
        if file.is_file():
            return card_of(file, root, hashed=hashed)
    raise CardError(f"{model}@{version}: its files are neither in {settings.models} nor in {store_of(settings)}")


def verify(settings: Settings, database: Database, reference: str | None = None) -> Iterator[Verified]:
    """Hash every file of every version, or of those that are named, and compare with what was registered."""
    for one in _named(database, reference):
        problem = ""
        try:
            card = locate(settings, one.model, one.version)
            if card_sha256(card) != one.card_sha256:
                problem = f"{card.path}: the card's bytes have changed since it was registered"
        except CardError as error:
            problem = str(error)
        yield Verified(version=one.name, passed=not problem, found=problem or f"{len(card.files)} files as registered")


def run_test(
    settings: Settings,
    database: Database,
    reference: str,
    *,
    by: str,
    measure: bool = False,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Run the card's own sample cases, and keep what came of it; only what has passed may be promoted.

    Parameters
    ----------
    measure
        Whether the ways to run the model are measured first, where that was not done on this machine; the samples run
        in the way that the node will choose in any case.
    progress
        Called with (done, in all), and with what is being done where that is not the samples.

    Returns
    -------
    dict
        ``version``, ``passed``, ``summary``, ``samples``, ``way`` (what ran them), ``choice`` (the way that was chosen
        by measuring; "" for ONNX Runtime and where there is none to choose) and ``remark`` (on the measuring, and on
        what the graph answers), as the database keeps it.
    """
    one = version_named(database, reference)
    card = _as_registered(settings, one)
    results, remark = measuring.measured_samples(settings, card, measure=measure, progress=progress)
    remark = "; ".join(filter(None, (remark, logits(card))))
    passed = bool(results) and all(result.passed for result in results)
    summary = f"{sum(result.passed for result in results)} of {len(results)} samples as expected"
    if not results:
        problem = why_not_loaded(card)
        summary = "the card has no samples; its model " + (f"cannot be loaded: {problem}" if problem else "loads")
    report: dict[str, Any] = {
        "version": one.name,
        "passed": passed,
        "summary": summary,
        "samples": [{**asdict(result), "passed": result.passed} for result in results],
        "way": next((result.way for result in results if result.way), ""),
        "choice": measuring.way_of(settings, card),
        "remark": remark,
    }
    if not results:
        return report
    with database.write() as connection:
        models.record_test(connection, one, passed=passed, report=report, by=by)
    return report


def promote(
    settings: Settings,
    database: Database,
    reference: str,
    stage: Stage = LIVE,
    *,
    by: str,
    why: str = "",
    share: float | None = None,
    untested: bool = False,
) -> Done:
    """Set the stage of a version; the running node goes by it from its next decision on.

    Parameters
    ----------
    share
        Of a canary: the part of the studies that it reads.
    untested
        Whether an operator answers for a version whose card has no samples; ``why`` has to say something then.

    Raises
    ------
    ModelRefused
        When it has not passed its test, cannot be loaded, or a report beside its card says no.
    CardError
        When its files are not what they were.
    IllegalTransition
        When its stage does not lead there.
    """
    one = version_named(database, reference)
    warnings: list[str] = []
    if stage != CANDIDATE:
        card = _as_registered(settings, one)
        if untested and not why:
            raise ModelRefused(f"--untested answers for {one.name}: say why with --why")
        _check_tested(one, shadow=stage == SHADOW, answered_for=untested and bool(why) and not card.samples)
        otherwise = measuring.tested_otherwise(settings, one, card) if stage != SHADOW else ""
        if otherwise:
            raise ModelRefused(f"{otherwise}: overread models test {one.name}, and promote it then")
        _check_report(card)
        _check_codes(card)
        warnings += filter(None, [little_compared(card)])
        # What has passed its test has been loaded for it.
        problem = why_not_loaded(card) if stage in (LIVE, CANARY) and not one.is_tested else ""
        if problem:
            raise ModelRefused(f"{one.name} is not promoted, since it cannot be loaded: {problem}")
    try:
        with database.write() as connection:
            there = models.versions(connection, one.model, lock=True)
            now = _unmoved(connection, one)
            if now.digest != one.digest:
                raise ModelRefused(f"{one.name} has changed while it was looked at; look again")
            before = [other for other in there if other.state == LIVE]
            moved = stages.move(connection, now, stage, by=by, why=why, share=share)
    except IntegrityError:
        raise IllegalTransition(f"another version of {one.model} was promoted at the same moment; look again") from None
    changed = [f"{one.name}: {now.state} -> {moved.state}" + (f", {100 * share:g} % of the studies" if share else "")]
    if stage == LIVE:
        changed += [f"{other.name}: {LIVE} -> {CANDIDATE}" for other in before]
        hint = f"to turn it back: overread models rollback {one.model}" if before else ""
        return Done(changed=changed, warnings=warnings, hint=hint)
    return Done(changed=changed, warnings=warnings)


def rollback(
    settings: Settings,
    database: Database,
    model: str,
    *,
    by: str,
    why: str = "",
    to: str | None = None,
    retired: bool = False,
) -> Done:
    """Turn a model back by one step, or to a version that is named; without a restart, and in one transaction.

    Parameters
    ----------
    retired
        Whether the version that is turned back is retired too: then what is scheduled for it is canceled.

    Raises
    ------
    Unknown, IllegalTransition
        When there is nothing to go back to, or the version that is named has never been live.
    CardError
        When the files of the version to go back to are not what they were.
    """
    with database.read() as connection:
        turned, expected = stages.turned_back(connection, model, to)
    # To end a canary changes nothing about what is live: it waits for no file of that.
    if expected is not None and turned.state != CANARY:
        _as_registered(settings, expected)
    try:
        with database.write() as connection:
            gone, live = stages.rollback(connection, model, by=by, why=why, to=to)
            if (gone.id, live and live.id) != (turned.id, expected and expected.id):
                raise IllegalTransition(f"another version of {model} was promoted meanwhile; look again")
            if retired and gone.state not in (RETIRED, REMOVED):
                gone = stages.move(connection, gone, RETIRED, by=by, why=why)
    except IntegrityError:
        raise IllegalTransition(f"another version of {model} was promoted at the same moment; look again") from None
    if retired:
        _forget_masks(settings, database, gone)
    now = f"{live.name} is live" if live is not None else f"no version of {model} is live"
    return Done(changed=[f"{gone.name} is turned back, and {gone.state}", now])


def retire(settings: Settings, database: Database, reference: str, *, by: str, why: str = "") -> Done:
    """Take a version out: it runs nowhere, what is scheduled for it is canceled, and its shadows' masks are removed."""
    one = version_named(database, reference)
    with database.write() as connection:
        models.versions(connection, one.model, lock=True)
        now = _unmoved(connection, one)
        stages.move(connection, now, RETIRED, by=by, why=why)
    _forget_masks(settings, database, one)
    hint = ""
    if now.state == LIVE:
        hint = (
            f"no version of {one.model} is live now, and its routes say so of every study: overread models rollback "
            f"{one.model} goes back to one that was live before, where there is one"
        )
    return Done(changed=[f"{one.name}: {now.state} -> {RETIRED}"], hint=hint)


def _unmoved(connection: Connection, one: ModelVersion) -> ModelVersion:
    """Return a version as it is now; raises IllegalTransition where somebody has moved it since it was looked at."""
    now = models.get(connection, one.model, one.version)
    if now.state != one.state:
        raise IllegalTransition(f"{one.name} was {one.state} when it was looked at and is {now.state} now; look again")
    return now


def _forget_masks(settings: Settings, database: Database, version: ModelVersion) -> None:
    with database.read() as connection:
        uids = worklist.shadows_of(connection, version.model, version.version)
    shadows.forget(settings.data_dir.absolute() / "shadows", uids)


def _named(database: Database, reference: str | None) -> list[ModelVersion]:
    with database.read() as connection:
        if reference is None:
            return [one for one in models.versions(connection) if one.state != REMOVED]
        model, version = parted(reference)
        if version is not None:
            return [models.get(connection, model, version)]
        return [one for one in models.versions(connection, model) if one.state != REMOVED] or [
            models.get(connection, model)
        ]


def version_named(database: Database, reference: str) -> ModelVersion:
    """Return the version that is named; a model of which there is only one needs no number.

    Raises
    ------
    Unknown, ModelRefused
        When there is none, or several.
    """
    found = _named(database, reference)
    if len(found) > 1:
        names = ", ".join(one.name for one in found)
        raise ModelRefused(f"{reference} has several versions, name one: {names}")
    return found[0]


def _as_registered(settings: Settings, one: ModelVersion) -> Card:
    if one.state == REMOVED:
        raise ModelRefused(f"{one.name} was removed: overread models add with the same bytes brings it back")
    card = locate(settings, one.model, one.version)
    if card.digest != one.digest:
        raise CardError(
            f"{card.path}: its digest is {card.digest[:12]}; {one.name} was registered as {one.digest[:12]}"
        )
    return card


def _check_tested(one: ModelVersion, *, shadow: bool, answered_for: bool) -> None:
    if one.has_failed:
        raise ModelRefused(f"{one.name} has not passed its test: {(one.test or {}).get('summary')}")
    # Of a shadow nothing leaves: to run it beside the live version is how it is tried.
    if one.is_tested or shadow or answered_for:
        return
    raise ModelRefused(
        f"{one.name} has not been tested as it is now: overread models test {one.name}. "
        "For a card without samples somebody has to answer: --untested with --why"
    )


def _check_report(card: Card) -> None:
    """Heed what another tool has left beside the card, such as the accuracy of a quantised model."""
    why = unproven(card)
    if why:
        raise ModelRefused(f"{card.name}@{card.version} is not promoted: {why}")


def _check_codes(card: Card) -> None:
    """Hold back a card that was derived and lacks codes: what it finds could not be said in a document."""
    left = open_names(card)
    if left:
        raise ModelRefused(
            f"{card.name}@{card.version}: nobody has said the codes of {', '.join(left[:5])}"
            f"{f' and {len(left) - 5} more' if len(left) > 5 else ''}: add it anew with --code and a version of its own"
        )
