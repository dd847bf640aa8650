"""One attempt at a workitem: its job, its documents, and committing all of it together."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from inference.card import Card
from inference.engine import ImageFile, Job
from inference.errors import EngineFailure
from node.errors import EvidenceError, WorkitemUnfit
from node.workflow import heatmaps, shadows
from node.workflow.lease import Lease
from node.workflow.remembering import key_of, recalled, remember
from node.workflow.soundness import require_sound
from node.workflow.way import Way
from storage import attempts, drift, studies, worklist
from storage.database import now
from storage.errors import LeaseLost
from storage.headers import read_header
from storage.records import Attempt, Instance, Workitem

if TYPE_CHECKING:
    from inference.findings import Code, Findings, Segment
    from node.evidence.documents import EvidenceDocument, Predecessor

__all__ = ["Identity", "Run", "attempt_workitem", "unknown"]

_log = structlog.get_logger("overread.workflow")

#: Runs a job on a card's engine, calling its last argument about once a second.
Run = Callable[[Card, Job, Callable[[], None]], "Findings"]


#: What runs a card's model now, and how precisely; None where it is not loaded.
Identity = Callable[[Card], tuple[str, str] | None]


def unknown(card: Card) -> tuple[str, str] | None:  # noqa: ARG001
    """Say that nothing is known of what runs a model."""
    return None


def attempt_workitem(way: Way, workitem: Workitem, attempt: Attempt, run: Run, identity: Identity = unknown) -> None:
    """Make one attempt, under a lease that is renewed to its end; whatever goes wrong ends as a row."""
    with (
        structlog.contextvars.bound_contextvars(workitem=workitem.uid, model=workitem.model),
        Lease(way.database, attempt, way.settings.perform.lease_seconds) as lease,
    ):
        _log.info("attempt began", attempt=attempt.number)
        try:
            card = _card(way, workitem)
            job, instances = _job(way, workitem, card)
            require_sound(way, workitem.study_id, instances, lease.check)
            key = key_of(card, instances, way.engine_cache)
            findings = recalled(way, key, instances, identity(card))
            if findings is None:
                findings = run(card, job, lease.check)
                remember(way, workitem, card, key, findings)
            documents = () if workitem.shadow else _document(way, workitem, card, findings)
            lease.check()
            _commit(way, workitem, attempt, findings, documents)
        except EngineFailure as failure:
            if not failure.counts:
                _log.info("attempt given back", attempt=attempt.number, reason=str(failure))
                _give_back(way, workitem, attempt, str(failure))
                return
            _failed(way, workitem, attempt, str(failure), tries=way.settings.perform.tries)
        except (WorkitemUnfit, EvidenceError) as failure:
            # The next try would fail in the same way.
            _failed(way, workitem, attempt, str(failure), tries=1)
        except LeaseLost:
            _log.warning("attempt was taken away; its result is dropped", attempt=attempt.number)
        except (SQLAlchemyError, OSError) as trouble:
            # The node's own trouble, a full disk say: no try is lost by it.
            _give_back(way, workitem, attempt, f"the node was in trouble: {type(trouble).__name__}")
            raise
        except Exception as error:  # noqa: BLE001 - whatever a study can make go wrong must end as a parked row
            _log.exception("attempt broke")
            _failed(way, workitem, attempt, f"broke: {type(error).__name__}", tries=way.settings.perform.tries)
        except BaseException:
            _give_back(way, workitem, attempt, "the node was stopped")
            raise


def _card(way: Way, workitem: Workitem) -> Card:
    """Return the card that a workitem was scheduled with, whatever is live by now.

    Raises
    ------
    WorkitemUnfit
        When that version was retired, or is not installed any more.
    """
    with way.database.read() as connection:
        models = way.models.view(connection)
    card, why_not = models.of_digest(workitem.model_digest), models.why_not(workitem.model_digest)
    if why_not or card is None:
        raise WorkitemUnfit(f"model {workitem.model} {workitem.model_version}: {why_not}")
    return card


def _job(way: Way, workitem: Workitem, card: Card) -> tuple[Job, dict[str, tuple[Instance, ...]]]:
    """Return the job of a workitem, and the instances of its input set.

    Raises
    ------
    WorkitemUnfit
        When an instance of its input set is no longer what was scheduled.
    """
    with way.database.read() as connection:
        by_uid = {one.sop_instance_uid: one for one in studies.evidence(connection, workitem.study_id)}
    instances: dict[str, tuple[Instance, ...]] = {}
    for role, chosen in workitem.input_set.items():
        if any(uid not in by_uid for uid in chosen["sop_instance_uids"]):
            raise WorkitemUnfit("an instance of its input set was deleted or excluded")
        instances[role] = tuple(by_uid[uid] for uid in chosen["sop_instance_uids"])
    input_set = {
        role: tuple(ImageFile(one.sop_instance_uid, way.blobs.path(one.blob)) for one in found)
        for role, found in instances.items()
    }
    return Job(card_path=card.path, input_set=input_set), instances


def _document(way: Way, workitem: Workitem, card: Card, findings: Findings) -> tuple[EvidenceDocument, ...]:
    """Make the evidence documents of findings, in the source study, naming the ones that they follow."""
    from node.evidence.documents import make_documents, model_of, node_identity

    read = set(findings.images)
    with way.database.read() as connection:
        sources = [
            way.blobs.path(one.blob)
            for one in studies.evidence(connection, workitem.study_id)
            if one.sop_instance_uid in read
        ]
        revision = studies.revision(connection, worklist.uses(connection, workitem.id)[-1].revision_id)
        predecessors = _predecessors(connection, workitem)
        identity = node_identity(device_uid=studies.device_uid(connection), ae_title=way.settings.dimse.ae_title)
        at = now(connection)
    try:
        return make_documents(
            findings,
            model_of(card),
            sources,
            node=identity,
            revision=revision.number,
            predecessors=predecessors,
            now=at.astimezone(),
        )
    except EvidenceError:
        raise
    except Exception as error:
        # Headers of any vendor end here; one study that cannot be documented must not stop the others.
        _log.exception("documents could not be made")
        raise EvidenceError(f"documents could not be made: {type(error).__name__}") from error


def _predecessors(connection: Connection, workitem: Workitem) -> tuple[Predecessor, ...]:
    from node.evidence.documents import Predecessor

    study = studies.get(connection, workitem.study_id)
    return tuple(
        Predecessor(
            study_instance_uid=study.study_instance_uid,
            series_instance_uid=one.series_instance_uid,
            sop_class_uid=one.sop_class_uid,
            sop_instance_uid=one.sop_instance_uid,
        )
        for one in worklist.earlier_documents(connection, workitem)
    )


def _commit(
    way: Way, workitem: Workitem, attempt: Attempt, findings: Findings, documents: Sequence[EvidenceDocument]
) -> None:
    """Make the bytes durable, then commit everything about them at once."""
    new: list[attempts.NewDocument] = []
    try:
        new.extend(_stored(way, document) for document in documents)
        heatmaps.keep(way.heat_maps, workitem.uid, findings)
        if workitem.shadow:
            shadows.keep(way.shadows, workitem.uid, findings)
        with way.database.write() as connection:
            attempts.complete(
                connection,
                workitem,
                attempt,
                findings=findings.summary(),
                new_documents=new,
                outcome=_outcome(findings),
            )
            drift.record(
                connection,
                model=workitem.model,
                version=workitem.model_version,
                digest=workitem.model_digest,
                # What is said again says nothing new of what comes in: a study rerun often is no change of population.
                observations=()
                if findings.cached or worklist.read_before(connection, workitem)
                else findings.statistics.get("observations", ()),
                reference=way.settings.drift.reference,
                window=way.settings.drift.window,
            )
    except LeaseLost:
        # Only here is it certain that nothing was committed; any other orphan is left to the next start.
        for one in new:
            way.blobs.delete(one.blob)
        raise
    _log.info(
        "workitem completed",
        outcome=_outcome(findings),
        documents=len(new),
        seconds=round(findings.seconds, 3),
        cached=findings.cached,
    )


def _stored(way: Way, document: EvidenceDocument) -> attempts.NewDocument:
    path = way.incoming / f"{uuid.uuid4().hex}.evidence"
    try:
        path.write_bytes(document.data)
        header = read_header(path)
        return attempts.NewDocument(kind=document.kind, header=header, blob=way.blobs.adopt(path))
    finally:
        path.unlink(missing_ok=True)


def _outcome(findings: Findings) -> str:
    if findings.not_analysed is not None:
        return f"not analysed: {findings.not_analysed.text}"
    if findings.segmentation is not None:
        return ", ".join(f"{one.name} {_size(one)}" for one in findings.segmentation.segments)
    if findings.measurements:
        return ", ".join(f"{one.name} {one.value:.4g}{_unit(one.unit)}" for one in findings.measurements)
    if findings.detections:
        found = Counter(one.name for one in findings.detections)
        return "found: " + ", ".join(f"{count} {name}" for name, count in found.items())
    present = [one.name for one in findings.classifications if one.present]
    return "present: " + ", ".join(present) if present else "none of its findings present"


def _unit(unit: Code) -> str:
    """Say a unit; 1, the unit of what has none (UCUM), would read like a further number."""
    return "" if unit.value == "1" else f" {unit.value}"


def _size(segment: Segment) -> str:
    if segment.volume_ml is not None:
        return f"{segment.volume_ml:.0f} mL"
    return f"{segment.pixels} pixels" if segment.area_mm2 is None else f"{segment.area_mm2:.0f} mm2"


def _failed(way: Way, workitem: Workitem, attempt: Attempt, reason: str, *, tries: int) -> None:
    with way.database.write() as connection:
        parked = attempts.fail(connection, workitem, attempt, reason, tries=tries)
    _log.warning("attempt failed", attempt=attempt.number, reason=reason, parked=parked)


def _give_back(way: Way, workitem: Workitem, attempt: Attempt, reason: str) -> None:
    """Release an attempt where that can be written down; else its lease runs out."""
    try:
        with way.database.write() as connection:
            attempts.release(connection, workitem, attempt, reason)
    except (SQLAlchemyError, OSError) as error:
        _log.warning("attempt could not be given back", attempt=attempt.number, error=type(error).__name__)
