"""The tables. State lives here and nowhere else.

Times are UTC. DICOM dates and times stay the strings that were sent. JSON columns hold what is read back whole
and never searched; whatever is searched or constrained has a typed column.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_Id = BigInteger().with_variant(Integer, "sqlite")


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time: stored as UTC, refused without an offset, aware again when read."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Store UTC; SQLite keeps no offset."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without an offset cannot be stored")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Give back an aware time."""
        if value is None:
            return None
        assert isinstance(value, datetime)
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _uid(name: str, **options: Any) -> Column[str]:
    return Column(name, String(64), **options)


study = Table(
    "study",
    metadata,
    Column("id", _Id, primary_key=True),
    _uid("study_instance_uid", nullable=False, unique=True),
    Column("state", String(16), nullable=False, index=True),
    Column("patient_id", Text, nullable=False, index=True),
    Column("patient_name", Text, nullable=False),
    # As names are compared (storage.matching.folded): what searches look for.
    Column("patient_name_folded", Text, nullable=False, server_default="", index=True),
    Column("patient_birth_date", Text, nullable=False),
    Column("patient_sex", Text, nullable=False),
    Column("accession_number", Text, nullable=False, index=True),
    Column("study_date", Text, nullable=False, index=True),
    Column("study_time", Text, nullable=False),
    Column("study_description", Text, nullable=False),
    Column("attributes", JSON, nullable=False),
    Column("excluded", Boolean, nullable=False, server_default=false()),
    Column("historical", Boolean, nullable=False, server_default=false()),
    # What counts among its instances has changed since the last verdict.
    Column("evidence_changed", Boolean, nullable=False, server_default=false()),
    Column("first_received_at", UtcDateTime, nullable=False),
    Column("last_received_at", UtcDateTime, nullable=False),
    Column("quiet_from", UtcDateTime, nullable=False, index=True),
    # Since when it grows: it was first received, or opened again.
    Column("receiving_from", UtcDateTime, nullable=True),
    # When no association carried it any more that had; it stands only where it is not before quiet_from.
    Column("released_at", UtcDateTime, nullable=True),
    # When it was last looked at and not judged, what for, and when to look again whatever comes.
    Column("looked_at", UtcDateTime, nullable=True),
    Column("waiting_for", Text, nullable=False, server_default=""),
    Column("look_at", UtcDateTime, nullable=True),
    # Who asked for a verdict now.
    Column("asked_by", Text, nullable=False, server_default=""),
)

series = Table(
    "series",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("study_id", _Id, ForeignKey("study.id"), nullable=False),
    _uid("series_instance_uid", nullable=False, index=True),
    Column("modality", Text, nullable=False),
    Column("series_number", Text, nullable=False),
    Column("series_description", Text, nullable=False),
    Column("attributes", JSON, nullable=False),
    UniqueConstraint("study_id", "series_instance_uid"),
    # ModalitiesInStudy is asked for with most studies: read from the index alone.
    Index(None, "study_id", "modality"),
)

instance = Table(
    "instance",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("study_id", _Id, ForeignKey("study.id"), nullable=False, index=True),
    Column("series_id", _Id, ForeignKey("series.id"), nullable=False, index=True),
    _uid("sop_instance_uid", nullable=False, index=True),
    _uid("sop_class_uid", nullable=False),
    _uid("transfer_syntax_uid", nullable=False),
    Column("instance_number", Text, nullable=False),
    Column("attributes", JSON, nullable=False),
    Column("identity", JSON, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("blob", Text, nullable=False, unique=True),
    # What this node, or another one with the same models, made: findable, but never evidence for anything.
    Column("made_here", Boolean, nullable=False, server_default=false()),
    # The same SOP Instance UID stands under another Study or Series Instance UID as well.
    Column("conflicting", Boolean, nullable=False, server_default=false()),
    # Why nothing is to be analysed on it: it was taken in although it is truncated, say. Empty for what is whole.
    Column("defect", Text, nullable=False, server_default=""),
    Column("excluded", Boolean, nullable=False, server_default=false()),
    Column("calling_ae_title", Text, nullable=False),
    Column("received_at", UtcDateTime, nullable=False),
    UniqueConstraint("series_id", "sop_instance_uid"),
)

variant = Table(
    "variant",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("instance_id", _Id, ForeignKey("instance.id"), nullable=False),
    _uid("transfer_syntax_uid", nullable=False),
    Column("digest", String(64), nullable=False),
    Column("blob", Text, nullable=False, unique=True),
    Column("difference", Text, nullable=False),
    Column("calling_ae_title", Text, nullable=False),
    Column("received_at", UtcDateTime, nullable=False),
    UniqueConstraint("instance_id", "digest"),
)

# What a modality has said of its work (Modality Performed Procedure Step, PS3.4 Annex F), received or not.
procedure_step = Table(
    "procedure_step",
    metadata,
    Column("id", _Id, primary_key=True),
    _uid("sop_instance_uid", nullable=False, unique=True),
    # Which study it is about; it may be said before, after or without any of its instances.
    _uid("study_instance_uid", nullable=True, index=True),
    Column("state", String(16), nullable=False),
    # Series Instance UID -> the SOP Instance UIDs that the modality says it has made in that series.
    Column("performed_series", JSON, nullable=False),
    Column("attributes", JSON, nullable=False),
    Column("calling_ae_title", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime, nullable=True),
)

# What a sender was asked about a study (C-FIND), and its last answer: evidence for completion.
inquiry = Table(
    "inquiry",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("study_id", _Id, ForeignKey("study.id"), nullable=False),
    Column("peer", Text, nullable=False),
    # When to ask; null where nothing is to be asked.
    Column("due_at", UtcDateTime, nullable=True),
    Column("asked_at", UtcDateTime, nullable=True),
    Column("asked", Integer, nullable=False, server_default="0"),
    # How many times in a row it gave no number.
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("count", Integer, nullable=True),
    Column("answer", Text, nullable=False, server_default=""),
    UniqueConstraint("study_id", "peer"),
)

# What somebody should look at although nothing waits for it.
flag = Table(
    "flag",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("study_id", _Id, ForeignKey("study.id"), nullable=False),
    Column("kind", String(16), nullable=False),
    # What it is about: another study, a revision. One flag for each.
    Column("subject", String(64), nullable=False),
    Column("reason", Text, nullable=False),
    Column("raised_at", UtcDateTime, nullable=False),
    UniqueConstraint("study_id", "kind", "subject"),
)

tombstone = Table(
    "tombstone",
    metadata,
    Column("blob", Text, primary_key=True),
    _uid("sop_instance_uid", nullable=False, index=True),
    Column("reason", Text, nullable=False),
    Column("deleted_at", UtcDateTime, nullable=False),
)

quarantine = Table(
    "quarantine",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("blob", Text, nullable=False, unique=True),
    Column("size", BigInteger, nullable=False),
    # SHA-256 of all the bytes; what was refused before it was kept has none.
    Column("digest", String(64), nullable=True),
    Column("reason", Text, nullable=False),
    Column("calling_ae_title", Text, nullable=False),
    Column("received_at", UtcDateTime, nullable=False),
)

# Bytes that are not what their row says: missing, changed or unreadable; found at a start or by reading them again.
damage = Table(
    "damage",
    metadata,
    Column("blob", Text, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("noticed_at", UtcDateTime, nullable=False),
)

# How far long work in the background has come.
chore = Table(
    "chore",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("done", BigInteger, nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("found", JSON, nullable=False),
    Column("began_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime, nullable=True),
)

revision = Table(
    "revision",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("study_id", _Id, ForeignKey("study.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    # The study as it stood: its instances up to this one.
    Column("last_instance_id", _Id, nullable=False),
    Column("verdict", JSON, nullable=False),
    Column("opened_at", UtcDateTime, nullable=False),
    UniqueConstraint("study_id", "number"),
)

decision = Table(
    "decision",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("revision_id", _Id, ForeignKey("revision.id"), nullable=False),
    Column("route", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("matched", Boolean, nullable=False),
    Column("reasons", JSON, nullable=False),
    # What a matched route had to leave unread, and why: said in the notification.
    Column("not_analysed", JSON, nullable=True),
    Column("deliver", JSON, nullable=False),
    Column("notify", JSON, nullable=False),
    Column("decided_at", UtcDateTime, nullable=False),
    UniqueConstraint("revision_id", "route", "model"),
)

workitem = Table(
    "workitem",
    metadata,
    Column("id", _Id, primary_key=True),
    _uid("uid", nullable=False, unique=True),
    Column("study_id", _Id, ForeignKey("study.id"), nullable=False),
    Column("model", Text, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("model_digest", String(64), nullable=False),
    _uid("device_uid", nullable=False),
    Column("input_digest", String(64), nullable=False),
    # 0 for the first; one more for each that an operator asked for anew.
    Column("generation", Integer, nullable=False),
    Column("replaces_id", _Id, ForeignKey("workitem.id"), nullable=True),
    Column("input_set", JSON, nullable=False),
    # Its findings are kept and compared, and nothing of them leaves.
    Column("shadow", Boolean, nullable=False, server_default=false()),
    Column("state", String(16), nullable=False, index=True),
    # Scheduled Procedure Step Priority (0074,1200) as storage.priority ranks it: 1 is HIGH.
    Column("priority", Integer, nullable=False, server_default="2"),
    _uid("transaction_uid", nullable=True),
    Column("parked", Boolean, nullable=False, server_default=false()),
    Column("outcome", Text, nullable=False, server_default=""),
    Column("findings", JSON, nullable=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime, nullable=True),
    Column("ended_at", UtcDateTime, nullable=True),
    UniqueConstraint("study_id", "model_digest", "input_digest", "generation"),
)

workitem_use = Table(
    "workitem_use",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("workitem_id", _Id, ForeignKey("workitem.id"), nullable=False, index=True),
    Column("revision_id", _Id, ForeignKey("revision.id"), nullable=False, index=True),
    Column("route", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("deliver", JSON, nullable=False),
    Column("notify", JSON, nullable=False),
    UniqueConstraint("workitem_id", "revision_id", "route"),
)

attempt = Table(
    "attempt",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("workitem_id", _Id, ForeignKey("workitem.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("owner", Text, nullable=False),
    Column("lease_until", UtcDateTime, nullable=False),
    Column("outcome", Text, nullable=False, server_default=""),
    Column("started_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime, nullable=True),
    UniqueConstraint("workitem_id", "number"),
)

document = Table(
    "document",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("workitem_id", _Id, ForeignKey("workitem.id"), nullable=False, index=True),
    Column("kind", String(16), nullable=False),
    _uid("sop_class_uid", nullable=False),
    _uid("sop_instance_uid", nullable=False, unique=True),
    _uid("series_instance_uid", nullable=False),
    Column("blob", Text, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

delivery = Table(
    "delivery",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("document_id", _Id, ForeignKey("document.id"), nullable=False),
    Column("destination", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("refusals", Integer, nullable=False, server_default="0"),
    Column("next_at", UtcDateTime, nullable=False),
    Column("answer", Text, nullable=False, server_default=""),
    Column("created_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime, nullable=True),
    # The destination has taken it and has still to commit to keeping it (Storage Commitment, PS3.4 Annex J).
    Column("stored_at", UtcDateTime, nullable=True),
    UniqueConstraint("document_id", "destination"),
)

# That a destination was asked to commit to a delivery's document, under which Transaction UID, and its answer.
delivery_commitment = Table(
    "delivery_commitment",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("delivery_id", _Id, ForeignKey("delivery.id"), nullable=False, index=True),
    _uid("transaction_uid", nullable=False, index=True),
    Column("accepted", Boolean, nullable=False, server_default=false()),
    Column("asked_at", UtcDateTime, nullable=False),
    Column("answered_at", UtcDateTime, nullable=True),
    # Failure Reason (0008,1197); none where the destination has committed.
    Column("failure_reason", Integer, nullable=True),
)

# What a peer asks the node to commit to, and the report that it is owed.
commitment = Table(
    "commitment",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("calling_ae_title", Text, nullable=False),
    _uid("transaction_uid", nullable=False),
    Column("state", String(16), nullable=False),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("refusals", Integer, nullable=False, server_default="0"),
    Column("next_at", UtcDateTime, nullable=False),
    Column("answer", Text, nullable=False, server_default=""),
    # When it was looked what is held; every try reports what was found then.
    Column("weighed_at", UtcDateTime, nullable=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime, nullable=True),
    UniqueConstraint("calling_ae_title", "transaction_uid"),
)

commitment_reference = Table(
    "commitment_reference",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("commitment_id", _Id, ForeignKey("commitment.id"), nullable=False, index=True),
    _uid("sop_class_uid", nullable=False),
    _uid("sop_instance_uid", nullable=False, index=True),
    # Failure Reason (0008,1197); none where it is held.
    Column("failure_reason", Integer, nullable=True),
)

# One Instance Availability Notification (PS3.4 Annex R) to one peer.
availability = Table(
    "availability",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("revision_id", _Id, ForeignKey("revision.id"), nullable=False),
    Column("peer", Text, nullable=False),
    _uid("sop_instance_uid", nullable=False, unique=True),
    Column("state", String(16), nullable=False),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("refusals", Integer, nullable=False, server_default="0"),
    Column("next_at", UtcDateTime, nullable=False),
    Column("answer", Text, nullable=False, server_default=""),
    Column("created_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime, nullable=True),
    UniqueConstraint("revision_id", "peer"),
)

notification = Table(
    "notification",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("revision_id", _Id, ForeignKey("revision.id"), nullable=False),
    Column("receiver", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("control_id", String(20), nullable=False, unique=True),
    Column("message", LargeBinary, nullable=False),
    # What the message says, so that only something new makes a further one.
    Column("content_digest", String(64), nullable=False),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("refusals", Integer, nullable=False, server_default="0"),
    Column("next_at", UtcDateTime, nullable=False),
    Column("answer", Text, nullable=False, server_default=""),
    Column("created_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime, nullable=True),
    UniqueConstraint("revision_id", "receiver", "number"),
)

# What a model has found on an input, under all that it is a function of: may be lost without losing work.
result = Table(
    "result",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("key", String(64), nullable=False),
    Column("study_id", _Id, ForeignKey("study.id"), nullable=False, index=True),
    Column("model", Text, nullable=False),
    Column("provider", String(64), nullable=False),
    Column("precision", String(16), nullable=False),
    Column("findings", LargeBinary, nullable=False),
    # SHA-256 of the findings and of the file.
    Column("digest", String(64), nullable=False),
    Column("blob", Text, nullable=True, index=True),
    Column("size", BigInteger, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("used_at", UtcDateTime, nullable=False, index=True),
    UniqueConstraint("key", "provider", "precision"),
)

# Perceptual hashes of pictures, and the pieces of each, by which those that are nearly the same are found.
fingerprint = Table(
    "fingerprint",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("study_id", _Id, ForeignKey("study.id"), nullable=False, index=True),
    _uid("sop_instance_uid", nullable=False),
    Column("kind", Text, nullable=False),
    Column("value", String(64), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    UniqueConstraint("sop_instance_uid", "kind"),
)

fingerprint_piece = Table(
    "fingerprint_piece",
    metadata,
    Column("piece", BigInteger, primary_key=True, autoincrement=False),
    Column("fingerprint_id", _Id, ForeignKey("fingerprint.id"), primary_key=True, index=True),
)

change = Table(
    "change",
    metadata,
    Column("sequence", _Id, primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("object_id", _Id, nullable=True),
    Column("study_id", _Id, nullable=True, index=True),
    Column("before", String(16), nullable=True),
    Column("after", String(16), nullable=True),
    Column("reason", Text, nullable=False),
    Column("detail", JSON, nullable=False),
    sqlite_autoincrement=True,
)

# What this node is, once and for all: its Device UID.
node_identity = Table(
    "node_identity",
    metadata,
    Column("key", String(32), primary_key=True),
    Column("value", Text, nullable=False),
)

# One version of a model. What runs is decided here, not by what lies in a folder.
model_version = Table(
    "model_version",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("model", Text, nullable=False),
    Column("version", String(64), nullable=False),
    # What decides its answers, and the Device UID that follows from it; both as this software has them.
    Column("digest", String(64), nullable=False),
    _uid("device_uid", nullable=False),
    # Of the card's own bytes, which name the SHA-256 of every file: they never change under a version's number.
    Column("card_sha256", String(64), nullable=False),
    Column("origin", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    # Of a canary: the part of the studies that it reads, above 0 and below 1.
    Column("share", Float, nullable=True),
    # An operator has set its stage: what is shipped later does not go before it by itself.
    Column("chosen", Boolean, nullable=False, server_default=false()),
    # The version that was live before this one, and becomes so again when this one is turned back.
    Column("instead_of", String(64), nullable=True),
    Column("added_at", UtcDateTime, nullable=False),
    # Its last test, and the digest that was tested.
    Column("tested_at", UtcDateTime, nullable=True),
    Column("tested_digest", String(64), nullable=True),
    Column("test_passed", Boolean, nullable=True),
    Column("test", JSON, nullable=True),
    UniqueConstraint("model", "version"),
)

# Every change of a model's versions: the audit trail, and by its last id what tells each process to look again.
model_change = Table(
    "model_change",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("model", Text, nullable=False, index=True),
    Column("version", String(64), nullable=False),
    Column("action", String(16), nullable=False),
    Column("before", String(16), nullable=True),
    Column("after", String(16), nullable=True),
    Column("by", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("detail", JSON, nullable=False),
    sqlite_autoincrement=True,
)

# What inputs and answers of a model were like, in figures that name nobody: drift is measured on them. The first of a
# model are kept as its reference, the last as its window; `number` counts a model's observations, from 1.
observation = Table(
    "observation",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("model", Text, nullable=False),
    Column("version", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("number", _Id, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("features", JSON, nullable=False),
    Index("ix_observation_digest", "digest", "number"),
)

# Every Device UID that a model of this node has ever had: what carries one is known for its own, also years later.
model_device = Table(
    "model_device",
    metadata,
    _uid("device_uid", primary_key=True),
    Column("model", Text, nullable=False),
    Column("version", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("since", UtcDateTime, nullable=False),
)

pause = Table(
    "pause",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("since", UtcDateTime, nullable=False),
)

# One version of a model is live, and at most one is tried on a part of the studies.
for _stage in ("live", "canary"):
    _only = model_version.c.state == _stage
    Index(f"uq_model_version_{_stage}", model_version.c.model, unique=True, sqlite_where=_only, postgresql_where=_only)

# What a queue looks at: the open rows only, so that a long history costs nothing.
#: As the index on open workitems has it. A query must say it in the same words, or SQLite does not use the index.
OPEN_WORKITEM = text("workitem.state IN ('SCHEDULED', 'IN PROGRESS')")
_open = text("state IN ('SCHEDULED', 'IN PROGRESS')")
Index(
    "ix_workitem_open",
    workitem.c.shadow,
    workitem.c.priority,
    workitem.c.id,
    sqlite_where=_open,
    postgresql_where=_open,
)
Index("ix_delivery_due", delivery.c.destination, delivery.c.state, delivery.c.next_at)
Index("ix_inquiry_due", inquiry.c.peer, inquiry.c.due_at)
Index("ix_notification_due", notification.c.receiver, notification.c.state, notification.c.next_at)
Index("ix_commitment_due", commitment.c.calling_ae_title, commitment.c.state, commitment.c.next_at)
Index("ix_availability_due", availability.c.peer, availability.c.state, availability.c.next_at)
