"""From a study that has gone quiet to its workitems: the verdict, the routes' decisions, what is scheduled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from node.settings import Route
from node.workflow import completion, routing
from node.workflow.models import View
from node.workflow.way import Way
from storage import availability, control, lifecycle, studies, worklist
from storage.headers import read_header
from storage.records import Revision, Study
from storage.rows import describe_anew

__all__ = ["judge", "park_revision", "route_revision"]

_log = structlog.get_logger("overread.workflow")


def judge(way: Way, due: Sequence[Study]) -> int:
    """Look at studies, judge those that are ready and put off the others. Returns how many were judged."""
    verdicts = [(study, _weighed(way, study)) for study in due]
    waiting = [(study, verdict) for study, verdict in verdicts if verdict.outcome == "wait"]
    if waiting:
        with way.database.write() as connection:
            for study, verdict in waiting:
                completion.put_off(connection, study, verdict)
    return sum(_settle(way, study, verdict) for study, verdict in verdicts if verdict.outcome != "wait")


def _weighed(way: Way, study: Study) -> completion.Verdict:
    """Weigh one study in a view of its own."""
    try:
        with way.database.read() as connection:
            verdict = completion.weigh(connection, study, way)
        if verdict.outcome == "wait" or not study.evidence_changed:
            return verdict
        described = _described_anew(way, study)
        with way.database.read() as connection:
            return completion.weigh(connection, described, way)
    except SQLAlchemyError:
        raise
    except Exception as error:  # noqa: BLE001 - one study that cannot be judged must not hold up the others
        _log.exception("study could not be judged", study=study.study_instance_uid)
        return completion.Verdict(outcome="parked", reason=f"it could not be judged: {type(error).__name__}")


def _settle(way: Way, study: Study, verdict: completion.Verdict) -> int:
    """Do what a verdict says, unless something came in between."""
    with way.database.write() as connection:
        studies.lock(connection, study.id)
        current = studies.get(connection, study.id)
        if (current.state, current.excluded) != (study.state, study.excluded):
            return 0
        changed = current.quiet_from != study.quiet_from
        if current.evidence_changed != study.evidence_changed or (changed and current.evidence_changed):
            return 0  # an operator has changed what counts: it was weighed as it stood before
        if changed and not verdict.forced:
            return 0  # an instance came: a full quiet period anew
        completion.carry_out(connection, current, verdict)
        if verdict.outcome == "revision" and (revision := studies.last_revision(connection, study.id)) is not None:
            told = [name for name, peer in way.settings.peers.items() if peer.availability]
            availability.add(connection, revision, told)
    _log.info("study judged", study=study.study_instance_uid, outcome=verdict.outcome)
    return 1


def route_revision(way: Way, revision: Revision) -> int:
    """Decide what is not decided yet; a paused route that matches waits, and the revision with it."""
    try:
        with way.database.read() as connection:
            decisions, waiting = _decide(way, connection, revision)
    except SQLAlchemyError:
        raise
    except Exception as error:  # noqa: BLE001 - one study that cannot be weighed must not hold up the others
        _log.exception("revision could not be routed", revision=revision.id)
        park_revision(way, revision, f"it could not be routed: {type(error).__name__}")
        return 0
    if waiting and not decisions:
        return 0
    with way.database.write() as connection:
        if studies.revision(connection, revision.id).state != lifecycle.OPEN:
            return 0
        scheduled = sum(_schedule(connection, revision, one) for one in decisions)
        if waiting:
            return 0
        lifecycle.transition(
            connection,
            "revision",
            revision.id,
            lifecycle.ROUTED,
            study_id=revision.study_id,
            reason=f"{scheduled} workitems scheduled",
        )
        study = studies.get(connection, revision.study_id)
    _log.info("revision routed", study=study.study_instance_uid, revision=revision.number, workitems=scheduled)
    return 1


def park_revision(way: Way, revision: Revision, reason: str) -> None:
    """Set a revision aside that cannot go on, with the reason; ``overread retry`` takes it up again."""
    with way.database.write() as connection:
        if studies.revision(connection, revision.id).state != lifecycle.PARKED:
            lifecycle.transition(
                connection, "revision", revision.id, lifecycle.PARKED, study_id=revision.study_id, reason=reason
            )


def _described_anew(way: Way, study: Study) -> Study:
    """Describe a study by what counts now: what an operator took out must not name the patient in a report."""
    with way.database.read() as connection:
        evidence = studies.evidence(connection, study.id)
    headers = [read_header(way.blobs.path(one.blob)) for one in evidence]
    with way.database.write() as connection:
        studies.lock(connection, study.id)
        describe_anew(connection, study.id, headers)
        return studies.get(connection, study.id)


def _decide(way: Way, connection: Connection, revision: Revision) -> tuple[list[routing.Decision], bool]:
    """Return the decisions that are still to be stored, and whether a paused route holds the revision."""
    study = studies.get(connection, revision.study_id)
    evidence = studies.evidence(connection, study.id, up_to=revision.last_instance_id)
    candidates = routing.candidates_of(study, studies.series_of(connection, study.id), evidence)
    decided = {(one["route"], one["model"]) for one in studies.decisions(connection, revision.id)}
    paused = control.paused(connection, "route")
    models = way.models.view(connection)
    fresh: list[routing.Decision] = []
    waiting = False
    for rule in way.routes:
        for model in rule.models:
            for decision in _weighed_versions(way, models, candidates, rule, model, study):
                if (rule.name, decision.model) in decided:
                    continue
                if decision.matched and rule.name in paused:
                    waiting = True
                else:
                    fresh.append(decision)
                    decided.add((rule.name, decision.model))
    return fresh, waiting


def _weighed_versions(
    way: Way,
    models: View,
    candidates: Sequence[routing.Candidate],
    rule: Route,
    model: str,
    study: Study,
) -> Iterator[routing.Decision]:
    """Weigh a route for what it names: the version that is live for the study, and each shadow."""
    chosen, why_none = models.chosen(model, study.study_instance_uid)
    if why_none:
        yield routing.unserved(candidates, rule, model, why_none)
    for one in chosen:
        decision = routing.weigh(candidates, rule, one.card, demonstrations=way.settings.demonstration_models)
        reasons = (*one.reasons, *decision.reasons) if decision.matched else decision.reasons
        yield replace(decision, model=one.reference, reasons=reasons, card=one.card, shadow=one.shadow)


def _schedule(connection: Connection, revision: Revision, decision: routing.Decision) -> int:
    # Of a shadow nothing leaves: no document, and no word of it.
    deliver = () if decision.shadow else decision.route.deliver
    notify = () if decision.shadow else decision.route.notify
    studies.record_decision(
        connection,
        revision,
        route=decision.route.name,
        model=decision.model,
        matched=decision.matched,
        reasons=decision.reasons,
        not_analysed=decision.not_analysed,
        deliver=deliver,
        notify=notify,
    )
    made = 0
    card = decision.card
    if card is None:
        return made
    for input_set in decision.input_sets:
        _, created = worklist.schedule(
            connection,
            worklist.Key(
                study_id=revision.study_id,
                model=card.name,
                model_version=card.version,
                model_digest=card.digest,
                device_uid=card.device_uid,
                input_digest=input_set.digest,
            ),
            input_set=input_set.as_json(),
            revision_id=revision.id,
            route=decision.route.name,
            reason=input_set.reason,
            deliver=deliver,
            notify=notify,
            urgency=routing.urgency(decision.route, input_set),
            shadow=decision.shadow,
            anew=bool(revision.verdict.get("rerun")),
        )
        made += created
    return made
