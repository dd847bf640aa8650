"""What speaks for and against a study's being complete, each piece of evidence in plain words.

DICOM never says "study finished". What is known besides: how long nothing has come, whether its senders have let go
of it, what the modalities say that they have made (MPPS), how many instances the sending PACS has (C-FIND), and which
series a route expects. Every function here looks at one of them and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from inference.matching import evaluate
from node.settings import CompletionSettings, DimseDestination, Route, Settings
from node.workflow.routing import Candidate, unmet
from storage import inquiries, lifecycle, procedure_steps, studies
from storage.records import Instance, Study

__all__ = ["Ask", "Testimony", "counts", "expected", "matching", "quiet", "released", "steps"]

#: A step that has ended and names instances which are still on their way: nothing else tells of their coming.
_POLL_SECONDS = 2.0
#: So many times in a row may a peer give no number before the study goes on without.
_FAILURES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """That a peer is to be asked how many instances it has."""

    peer: str
    after_seconds: float
    anew: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Testimony:
    """One piece of evidence: what it says, from when it lets the study be judged, and until when it holds it up.

    ``missing`` says what the study lacks, for a study that is judged all the same. ``look_at`` is when the evidence
    may have changed without anybody's telling. ``kept`` is what the verdict keeps of it.
    """

    kind: str
    says: str
    kept: Mapping[str, Any] = field(default_factory=dict)
    ready_at: datetime | None = None
    hold_until: datetime | None = None
    missing: str = ""
    look_at: datetime | None = None
    asks: tuple[Ask, ...] = ()


def quiet(study: Study, senders: Sequence[str], routes: Sequence[Route], settings: Settings, count: int) -> Testimony:
    """How long nothing has come: the longest period that a sender or a route wants.

    A route's own period stands over that of the senders for the studies that it matches; where several match, each
    has its say and the longest counts.
    """
    of_sender = [(settings.completion.quiet_seconds, "completion")]
    periods = {peer.ae_title.strip(): (name, peer.quiet_seconds) for name, peer in settings.peers.items()}
    known = [
        (seconds, f"peer {name}")
        for name, seconds in (periods.get(one, ("", None)) for one in senders)
        if seconds is not None
    ]
    if known:
        others = len(known) < len(senders)
        of_sender = known + (of_sender if others else [])
    longest = max(of_sender)
    wanted = [(one.quiet_seconds, f"route {one.name}") if one.quiet_seconds else longest for one in routes]
    seconds, by = max(wanted, default=longest)
    return Testimony(
        kind="quiet",
        says=f"quiet for {seconds:g} s after the last of {count} instances",
        kept={"quiet_seconds": seconds, "quiet_by": by},
        ready_at=study.quiet_from + timedelta(seconds=seconds),
    )


def released(study: Study, completion: CompletionSettings) -> Testimony | None:
    """Whether the last association that carried the study has let go of it, and nothing has come since."""
    if study.released_at is None or study.released_at < study.quiet_from:
        return None
    seconds = completion.after_release_seconds
    return Testimony(
        kind="release",
        says="the last association that carried it was released"
        + (f", {seconds:g} s before" if seconds is not None else ""),
        kept={"released_at": study.released_at.isoformat()},
        ready_at=None if seconds is None else study.released_at + timedelta(seconds=seconds),
    )


def steps(
    connection: Connection, study: Study, evidence: Sequence[Instance], completion: CompletionSettings, at: datetime
) -> Testimony | None:
    """What the modalities say that they have made of the study (MPPS, PS3.4 Annex F).

    Where all have ended, name every instance that is here and no other, nothing more is to come. One that is IN
    PROGRESS, or names instances that are not here, is waited for.
    """
    said = procedure_steps.for_study(connection, study.study_instance_uid)
    if not said:
        return None
    held = studies.held(connection, study.id)
    named = {uid for one in said for series in one.performed_series.values() for uid in series}
    lacking = len(named - held)
    running = [one for one in said if one.state == lifecycle.IN_PROGRESS]
    states = ", ".join(
        f"{one.calling_ae_title or 'a modality'} {one.state}, {sum(map(len, one.performed_series.values()))} instances"
        for one in said
    )
    missing = "; ".join(
        [f"the procedure step of {one.calling_ae_title or 'a modality'} has not ended" for one in running]
        + ([f"{lacking} of {len(named)} instances that procedure steps name have not come"] if lacking else [])
    )
    whole = not missing and bool(named) and {one.sop_instance_uid for one in evidence} <= named
    return Testimony(
        kind="procedure step",
        says=f"procedure step: {states}; {len(named & held)} of {len(named)} named instances are here",
        kept={
            "procedure_steps": [
                {
                    "sop_instance_uid": one.sop_instance_uid,
                    "calling_ae_title": one.calling_ae_title,
                    "state": one.state,
                    "instances": sum(map(len, one.performed_series.values())),
                }
                for one in said
            ],
            "instances_named": len(named),
            "instances_named_and_here": len(named & held),
        },
        ready_at=at if whole else None,
        hold_until=study.quiet_from + timedelta(seconds=completion.mpps_seconds) if missing else None,
        missing=missing,
        look_at=at + timedelta(seconds=_POLL_SECONDS) if lacking and not running else None,
    )


def counts(
    connection: Connection, study: Study, senders: Sequence[str], settings: Settings, at: datetime, *, now_due: bool
) -> list[Testimony]:
    """How many instances the senders have that are asked to count them.

    Parameters
    ----------
    now_due
        Whether the study would be judged now, so that one that was not asked since the last instance is asked.
    """
    known = {one.peer: one for one in inquiries.of_study(connection, study.id)}
    told = []
    completion = settings.completion
    limit = study.quiet_from + timedelta(seconds=completion.count_seconds)
    for name, peer in settings.peers.items():
        if not peer.count or peer.ae_title.strip() not in senders:
            continue
        asked = known.get(name)
        if asked is None or asked.asked_at is None or asked.asked_at < study.quiet_from:
            early = completion.count_after_seconds
            first_at = None if early is None else study.quiet_from + timedelta(seconds=early)
            due = now_due or (first_at is not None and first_at <= at)
            told.append(
                Testimony(
                    kind="count",
                    says=f"peer {name} has not answered yet how many instances it has",
                    hold_until=limit,
                    missing=f"peer {name} was not heard on how many instances it has",
                    look_at=None if due else first_at,
                    asks=(Ask(peer=name, after_seconds=0, anew=True),) if due else (),
                )
            )
            continue
        kept = {"peer": name, "asked_at": asked.asked_at.isoformat(), "asked": asked.asked, "answer": asked.answer}
        again = (Ask(peer=name, after_seconds=completion.count_every_seconds, anew=False),)
        if asked.count is None:
            given_up = asked.failures >= _FAILURES
            told.append(
                Testimony(
                    kind="count",
                    says=f"peer {name} gave no count of its instances: {asked.answer}",
                    kept=kept,
                    hold_until=None if given_up else limit,
                    asks=() if given_up else again,
                )
            )
            continue
        destinations = frozenset(
            key for key, one in settings.destinations.items() if isinstance(one, DimseDestination) and one.peer == name
        )
        held = inquiries.held_for(connection, study.id, peer.ae_title.strip(), destinations)
        short = asked.count > held
        told.append(
            Testimony(
                kind="count",
                says=f"peer {name} has {asked.count} instances, {held} are here",
                kept={**kept, "count": asked.count, "held": held},
                ready_at=None if short or completion.count_after_seconds is None else at,
                hold_until=limit if short else None,
                missing=f"peer {name} has {asked.count} instances, of which {held} are here" if short else "",
                asks=again if short else (),
            )
        )
    return told


def expected(study: Study, candidates: Sequence[Candidate], routes: Sequence[Route]) -> list[Testimony]:
    """Which series the routes expect that match the study, and whether they are there."""
    told = []
    for route in routes:
        if not route.expect:
            continue
        lacking = unmet(candidates, route)
        says = f"route {route.name}: " + (
            f"expected series did not come: {'; '.join(lacking)}" if lacking else "every expected series is here"
        )
        told.append(
            Testimony(
                kind="expected series",
                says=says,
                kept={"route": route.name, "missing": lacking},
                hold_until=study.quiet_from + timedelta(seconds=route.expect_seconds) if lacking else None,
                missing=says if lacking else "",
            )
        )
    return told


def matching(candidates: Sequence[Candidate], routes: Sequence[Route]) -> list[Route]:
    """Return the routes that match some series of the study."""
    return [one for one in routes if any(evaluate(one.match, each.attributes).matched for each in candidates)]
