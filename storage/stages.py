"""Stages of models' versions: what a start registers, and what operators promote, turn back and retire.

Every move goes through :mod:`storage.lifecycle` and into the audit trail of :mod:`storage.models`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, select, update

from storage import lifecycle, models, schema, worklist
from storage.errors import AlreadyThere, IllegalTransition, Unknown
from storage.lifecycle import CANARY, CANDIDATE, LIVE, REMOVED, RETIRED
from storage.models import Found
from storage.records import ModelVersion, Workitem

__all__ = ["bring_back", "move", "newest", "register", "remove", "rollback", "turned_back"]


def register(connection: Connection, found: Iterable[Found], *, by: str) -> None:
    """Note what a start has found on disk.

    The first shipped version of a model is live. A shipped version that comes later becomes live too, unless an
    operator has ever set a stage of that model: then it is a candidate. What was added at run time is a candidate.

    Raises
    ------
    AlreadyThere
        When a version is there whose answers are others than those that were registered under its number.
    """
    by_model: dict[str, list[Found]] = {}
    for one in found:
        by_model.setdefault(one.model, []).append(one)
    for model, offered in by_model.items():
        known = {one.version: one for one in models.versions(connection, model, lock=True)}
        fresh = [one for one in offered if one.version not in known]
        for one in offered:
            if one.version in known and known[one.version].state != REMOVED:
                _seen_again(connection, known[one.version], one, by)
            elif one.version in known and one.origin == models.SHIPPED:
                _seen_again(connection, known[one.version], one, by)
                why = "shipped with this version of the software"
                bring_back(connection, known[one.version], by=by, why=why, origin=models.SHIPPED)
        shipped = [one for one in fresh if one.origin == models.SHIPPED]
        for one in fresh:
            models.insert_version(
                connection, one, by, "shipped" if one.origin == models.SHIPPED else "found among the versions added"
            )
        if not shipped or any(one.chosen for one in known.values()):
            continue
        top = newest(shipped)
        if known and not any(one.state == LIVE for one in known.values()):
            continue
        why = "shipped with this version of the software" if known else "the first version that is here"
        _make_live(
            connection, models.get(connection, model, top.version), by=by, why=why, action="shipped", chosen=False
        )


def newest(found: Sequence[Found]) -> Found:
    """Return the one with the highest version: numbers in it count as numbers."""
    return max(found, key=lambda one: _ordered(one.version))


def move(
    connection: Connection, version: ModelVersion, to: str, *, by: str, why: str = "", share: float | None = None
) -> ModelVersion:
    """Set the stage of a version, in the name of an operator. Whether it may be is for the caller to know.

    What was live before becomes a candidate; what was scheduled for it is still performed by it. What was scheduled for
    a version that is retired is canceled, with the reason.

    Raises
    ------
    IllegalTransition
        When the stage that it is in does not lead there, or another version is the canary already.
    """
    if to == LIVE:
        return _make_live(connection, version, by=by, why=why, action="promoted", chosen=True)
    if to == CANARY:
        if share is None or not 0 < share < 1:
            raise IllegalTransition("a canary reads a share of the studies, above 0 and below 1")
        if version.state == CANARY:
            return _set_share(connection, version, share, by=by, why=why)
        other = next(
            (one for one in models.versions(connection, version.model, lock=True) if one.state == CANARY), None
        )
        if other is not None:
            raise IllegalTransition(f"{other.name} is the canary; turn it back first (overread models rollback)")
    action = {RETIRED: "retired", CANDIDATE: "withdrawn"}.get(to, "promoted")
    _transition(connection, version, to, by=by, why=why, action=action, share=share if to == CANARY else None)
    if to == RETIRED:
        _cancel_scheduled(connection, version, f"{version.name} was retired by {by}" + (f": {why}" if why else ""))
    return models.get(connection, version.model, version.version)


def remove(connection: Connection, version: ModelVersion, *, by: str, why: str = "") -> None:
    """Note that a version that was added is gone; its files go after this is committed.

    Raises
    ------
    IllegalTransition
        Where it was not added, something runs on it, or the live version would be turned back to it.
    """
    there = models.versions(connection, version.model, lock=True)
    if version.origin != models.ADDED:
        raise IllegalTransition(
            f"{version.name} was not added, it lies among the configured models: overread models retire {version.name} "
            "takes it out, and who has put its folder there may take that away"
        )
    if version.state not in (CANDIDATE, RETIRED):
        raise IllegalTransition(
            f"{version.name} is {version.state}: overread models retire {version.name} first, or promote another"
        )
    if version.state == CANDIDATE and version.version in models.were_live(connection, version.model):
        undone, target = _undone(connection, version.model, there)
        goes_back = version.version in (undone.version, target)
    else:
        goes_back = False
    if goes_back:
        raise IllegalTransition(
            f"overread models rollback {version.model} goes back to {version.name}: retire it first, where it shall not"
        )
    if waiting := len(_scheduled(connection, version)):
        raise IllegalTransition(
            f"{waiting} workitems are scheduled for {version.name}: wait for them, or overread models retire "
            f"{version.name}, which cancels them"
        )
    # To take a candidate away is no choice of what is to run.
    _transition(connection, version, REMOVED, by=by, why=why, action="removed", chosen=version.chosen)


def bring_back(connection: Connection, version: ModelVersion, *, by: str, why: str, origin: str = "") -> None:
    """Make a version a candidate whose files are here again; ``origin`` where they have come from now."""
    origin = origin or version.origin
    _transition(connection, version, CANDIDATE, by=by, why=why, action="added", chosen=version.chosen, origin=origin)


def rollback(
    connection: Connection, model: str, *, by: str, why: str = "", to: str | None = None
) -> tuple[ModelVersion, ModelVersion | None]:
    """Undo the last step: a canary becomes a candidate again, else the version that was live before is live again.

    It does so too where none is live any more, since somebody has retired or withdrawn the one that was.

    Returns
    -------
    ModelVersion, ModelVersion or None
        What was turned back, and what is live now: None where a canary was and no version is.

    Raises
    ------
    Unknown
        When there is nothing to go back to.
    IllegalTransition
        When the version to go back to is retired, was never live, or has failed its test since.
    """
    models.versions(connection, model, lock=True)
    gone, after = turned_back(connection, model, to)
    if gone.state == CANARY:
        _transition(connection, gone, CANDIDATE, by=by, why=why, action="rolled-back")
    elif after is not None:
        # Where it goes back to next is what that one stood in for, so that a second rollback goes a further step back.
        further = after.instead_of
        _make_live(connection, after, by=by, why=why, action="rolled-back", chosen=True, instead_of=further)
    live = None if after is None else models.get(connection, model, after.version)
    return models.get(connection, model, gone.version), live


def turned_back(connection: Connection, model: str, to: str | None = None) -> tuple[ModelVersion, ModelVersion | None]:
    """Return what a rollback would turn back now, and what would be live then; raises as :func:`rollback` does."""
    there = models.versions(connection, model)
    canary = next((one for one in there if one.state == CANARY), None)
    if canary is not None and to is None:
        # It has to be stopped also where nothing is live beside it.
        return canary, _live(there)
    live, target = _undone(connection, model, there)
    target = to or target
    if target is None:
        raise Unknown(
            f"nothing that was live before {live.name} may run again: overread models list --all, then overread models "
            "promote VERSION (--stage candidate first for one that is retired)"
        )
    before = models.get(connection, model, target)
    if before.state == RETIRED:
        raise IllegalTransition(
            f"{before.name} is retired: overread models promote {before.name} --stage candidate takes it back, to be "
            "promoted"
        )
    if before.state == LIVE:
        raise IllegalTransition(f"{before.name} is live already")
    if before.state == REMOVED:
        raise IllegalTransition(f"{before.name} was removed: overread models add brings it back, to be promoted")
    # To go back needs no new test, so it leads only to what has been live; anything else has to be promoted.
    if before.version not in models.were_live(connection, model):
        raise IllegalTransition(f"{before.name} has never been live: overread models promote {before.name} makes it so")
    if before.has_failed:
        raise IllegalTransition(f"{before.name} has failed its test since it was live")
    return live, before


def _live(there: Sequence[ModelVersion]) -> ModelVersion | None:
    return next((one for one in there if one.state == LIVE), None)


def _undone(connection: Connection, model: str, there: Sequence[ModelVersion]) -> tuple[ModelVersion, str | None]:
    """Return the version that a rollback undoes, and the one that it leads to, if there is one.

    That is the live one, or what was live before somebody retired or withdrew it; raises Unknown where none has been.
    """
    live = _live(there)
    if live is not None:
        return live, live.instead_of
    by_version = {one.version: one for one in there}
    last = next((by_version[one] for one in models.were_live(connection, model) if one in by_version), None)
    last = last or models.get(connection, model)
    return last, _step_back(there, last)


def _step_back(there: Sequence[ModelVersion], gone: ModelVersion) -> str | None:
    """Follow what stood in for what, past what is retired, removed or has failed, to what may run again."""
    by_version = {one.version: one for one in there}
    seen, step = {gone.version}, gone.instead_of
    while step in by_version and step not in seen:
        if by_version[step].state not in (RETIRED, REMOVED) and not by_version[step].has_failed:
            return step
        seen.add(step)
        step = by_version[step].instead_of
    return None


def _make_live(
    connection: Connection,
    version: ModelVersion,
    *,
    by: str,
    why: str,
    action: str,
    chosen: bool,
    instead_of: str | None = "",
) -> ModelVersion:
    """Make one version live and the one that was a candidate; ``instead_of`` "" names that one."""
    live = _live(models.versions(connection, version.model, lock=True))
    if live is not None and live.id == version.id:
        raise IllegalTransition(f"{version.name} is live already")
    if version.state == RETIRED:
        raise IllegalTransition(f"{version.name} is retired; overread models promote --stage candidate takes it back")
    if live is not None:
        why_not = f"{version.version} takes its place"
        _transition(connection, live, CANDIDATE, by=by, why=why_not, action=action, chosen=chosen or live.chosen)
    before = instead_of if instead_of != "" else (live.version if live else None)
    _transition(
        connection, version, LIVE, by=by, why=why, action=action, chosen=chosen or version.chosen, instead_of=before
    )
    return models.get(connection, version.model, version.version)


def _set_share(connection: Connection, version: ModelVersion, share: float, *, by: str, why: str) -> ModelVersion:
    m = schema.model_version
    connection.execute(update(m).where(m.c.id == version.id).values(share=share, chosen=True))
    models.note(connection, version, "promoted", before=CANARY, after=CANARY, by=by, why=why, detail={"share": share})
    return models.get(connection, version.model, version.version)


def _transition(
    connection: Connection,
    version: ModelVersion,
    to: str,
    *,
    by: str,
    why: str,
    action: str,
    share: float | None = None,
    chosen: bool = True,
    **values: Any,
) -> None:
    lifecycle.transition(
        connection,
        "model",
        version.id,
        to,
        study_id=None,
        reason=f"{version.name} {action} by {by}" + (f": {why}" if why else ""),
        share=share,
        chosen=chosen,
        **values,
    )
    detail = {} if share is None else {"share": share}
    models.note(connection, version, action, before=version.state, after=to, by=by, why=why, detail=detail)


def _cancel_scheduled(connection: Connection, version: ModelVersion, reason: str) -> None:
    for one in _scheduled(connection, version):
        worklist.cancel(connection, one, reason)


def _scheduled(connection: Connection, version: ModelVersion) -> list[Workitem]:
    w = schema.workitem.c
    rows = connection.execute(
        select(schema.workitem).where(
            w.model == version.model,
            w.model_version == version.version,
            w.state.in_((lifecycle.SCHEDULED, lifecycle.IN_PROGRESS)),
        )
    ).mappings()
    return [Workitem(**row) for row in rows.all()]


def _seen_again(connection: Connection, known: ModelVersion, found: Found, by: str) -> None:
    if known.card_sha256 == found.card_sha256 and known.digest == found.digest:
        return
    if known.card_sha256 != found.card_sha256 and known.digest != found.digest:
        raise AlreadyThere(
            f"{known.name} gives other answers than the {known.name} that was registered here "
            f"(digest {found.digest[:12]}, not {known.digest[:12]}): what has changed needs a version of its own"
        )
    m = schema.model_version
    connection.execute(
        update(m)
        .where(m.c.id == known.id)
        .values(card_sha256=found.card_sha256, digest=found.digest, device_uid=found.device_uid)
    )
    models.know_device(connection, found)
    same = known.digest == found.digest
    why = "words of its card have changed, nothing that decides its answers" if same else "this software runs it anew"
    models.note(connection, known, "updated", by=by, why=why, detail={"digest": found.digest})


def _ordered(version: str) -> list[tuple[int, int, str]]:
    parts = re.findall(r"\d+|[A-Za-z]+", version)
    # A release follows what is named after it (1.0.0-rc1), so that the end stands between letters and numbers.
    return [*((2, int(one), "") if one.isdecimal() else (0, 0, one) for one in parts), (1, 0, "")]
