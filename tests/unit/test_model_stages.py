"""Versions of models, their stages and the trail of every change, on both databases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydicom.uid import generate_uid
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from inference.card import Card, load_card
from inference.registry import Registry
from node.workflow.models import Models, View, fraction_of, register
from storage import lifecycle, models, schema, stages, worklist
from storage.database import Database
from storage.errors import AlreadyThere, IllegalTransition, Unknown
from storage.lifecycle import CANARY, CANDIDATE, LIVE, REMOVED, RETIRED, SHADOW
from storage.models import Found, KnownDevices
from storage.records import ModelVersion
from tests.model_factory import segmentation_card, thresholding, write_model
from tests.work import MODEL, Holding

ANN = "ann"


def found(version: str, *, model: str = MODEL, answers: str = "", words: str = "", shipped: bool = True) -> Found:
    """A version as a start finds it; ``answers`` and ``words`` make it another one under the same number."""
    return Found(
        model=model,
        version=version,
        digest=f"{model}{version}{answers}".encode().hex()[:64].ljust(64, "0"),
        device_uid=f"2.25.{sum(f'{model}{version}{answers}'.encode())}",
        card_sha256=f"{version}{answers}{words}".encode().hex()[:64].ljust(64, "1"),
        origin=models.SHIPPED if shipped else models.ADDED,
    )


def start(database: Database, *offered: Found) -> None:
    with database.write() as connection:
        stages.register(connection, offered, by="the node")


def states(database: Database, model: str = MODEL) -> dict[str, str]:
    with database.read() as connection:
        return {one.version: one.state for one in models.versions(connection, model)}


def move(database: Database, version: str, to: str, share: float | None = None) -> ModelVersion:
    with database.write() as connection:
        return stages.move(connection, models.get(connection, MODEL, version), to, by=ANN, why="asked", share=share)


def test_the_first_shipped_version_is_live_and_a_later_one_takes_its_place_unless_an_operator_has_chosen(
    database: Database,
) -> None:
    start(database, found("1.9.0"), found("1.10.0-rc1"), found("1.10.0"))
    assert states(database) == {"1.9.0": CANDIDATE, "1.10.0-rc1": CANDIDATE, "1.10.0": LIVE}
    start(database, found("1.11.0"), found("2.0.0", shipped=False))
    assert states(database)["1.11.0"] == LIVE
    assert states(database)["2.0.0"] == CANDIDATE  # what an operator has added waits for its test
    with database.write() as connection:
        stages.rollback(connection, MODEL, by=ANN)
    start(database, found("1.12.0"))
    assert (states(database)["1.10.0"], states(database)["1.12.0"]) == (LIVE, CANDIDATE)


def test_a_version_never_changes_under_its_number(database: Database) -> None:
    start(database, found("1.0.0"))
    with pytest.raises(AlreadyThere, match="a version of its own"):
        start(database, found("1.0.0", answers="others"))
    with database.write() as connection, pytest.raises(AlreadyThere, match="other content"):
        models.add(connection, found("1.0.0", words="other"), by=ANN)
    with database.write() as connection:
        assert models.add(connection, found("1.0.0"), by=ANN)[1] is False
    # Words of a shipped card may be corrected: they decide no answer. The trail says so.
    start(database, found("1.0.0", words="corrected"))
    with database.read() as connection:
        newest = models.history(connection, MODEL)[0]
    assert (newest.action, "words of its card" in newest.why) == ("updated", True)


def test_one_version_is_live_whoever_writes_and_each_rollback_goes_one_step_further_back(database: Database) -> None:
    start(database, found("1.0.0"))
    start(database, found("2.0.0", shipped=False), found("3.0.0", shipped=False))
    move(database, "2.0.0", LIVE)
    move(database, "3.0.0", LIVE)
    with pytest.raises(IntegrityError), database.write() as connection:
        connection.execute(schema.model_version.update().values(state=LIVE))
    for expected in ("2.0.0", "1.0.0"):
        with database.write() as connection:
            _, live = stages.rollback(connection, MODEL, by=ANN, why="worse")
        assert live is not None
        assert live.version == expected
        assert Counter(states(database).values())[LIVE] == 1
    with database.write() as connection, pytest.raises(Unknown, match="nothing that was live before"):
        stages.rollback(connection, MODEL, by=ANN)
    with database.write() as connection:
        stages.rollback(connection, MODEL, by=ANN, to="3.0.0")
    assert states(database)["3.0.0"] == LIVE


def test_a_rollback_leads_only_to_what_has_been_live_and_has_not_failed_its_test_since(database: Database) -> None:
    start(database, found("1.0.0"))
    start(database, found("2.0.0", shipped=False), found("3.0.0", shipped=False))
    move(database, "3.0.0", LIVE)
    with database.write() as connection, pytest.raises(IllegalTransition, match=r"2\.0\.0 has never been live"):
        stages.rollback(connection, MODEL, by=ANN, to="2.0.0")
    with database.write() as connection:
        first = models.get(connection, MODEL, "1.0.0")
        models.record_test(connection, first, passed=False, report={"summary": "0 of 1 samples"}, by=ANN)
    for to in ("1.0.0", None):
        with database.write() as connection, pytest.raises(IllegalTransition, match="has failed its test"):
            stages.rollback(connection, MODEL, by=ANN, to=to)
    assert states(database) == {"1.0.0": CANDIDATE, "2.0.0": CANDIDATE, "3.0.0": LIVE}


def test_a_rollback_leads_back_also_after_the_live_version_was_retired(database: Database) -> None:
    start(database, found("1.0.0"))
    start(database, found("2.0.0", shipped=False), found("3.0.0", shipped=False))
    move(database, "2.0.0", LIVE)
    move(database, "3.0.0", LIVE)
    move(database, "2.0.0", RETIRED)
    move(database, "3.0.0", RETIRED)
    with database.write() as connection:
        gone, live = stages.rollback(connection, MODEL, by=ANN)
    assert live is not None
    assert (gone.version, gone.state, live.version) == ("3.0.0", RETIRED, "1.0.0")  # past the one that is retired too
    move(database, "1.0.0", CANDIDATE)
    with database.write() as connection, pytest.raises(Unknown, match="nothing that was live before"):
        stages.rollback(connection, MODEL, by=ANN)
    with database.write() as connection:
        _, live = stages.rollback(connection, MODEL, by=ANN, to="1.0.0")
    assert live is not None
    assert live.state == LIVE


def test_what_a_rollback_would_go_back_to_is_not_removed_and_one_goes_past_what_was(database: Database) -> None:
    start(database, found("1.0.0", shipped=False))
    start(database, found("2.0.0", shipped=False), found("3.0.0", shipped=False))
    for version in ("1.0.0", "2.0.0", "3.0.0"):
        move(database, version, LIVE)
    move(database, "3.0.0", RETIRED)
    with database.write() as connection, pytest.raises(IllegalTransition, match=r"goes back to .*@2\.0\.0"):
        stages.remove(connection, models.get(connection, MODEL, "2.0.0"), by=ANN)
    move(database, "2.0.0", RETIRED)
    with database.write() as connection:
        for version in ("2.0.0", "3.0.0"):
            stages.remove(connection, models.get(connection, MODEL, version), by=ANN)
        gone, live = stages.rollback(connection, MODEL, by=ANN)
    assert live is not None
    assert (gone.name, gone.state, live.version) == (f"{MODEL}@3.0.0", REMOVED, "1.0.0")


def test_a_canary_is_turned_back_also_where_nothing_is_live(database: Database) -> None:
    start(database, found("1.0.0"))
    start(database, found("2.0.0", shipped=False))
    move(database, "2.0.0", CANARY, 0.5)
    move(database, "1.0.0", RETIRED)
    with database.write() as connection:
        gone, live = stages.rollback(connection, MODEL, by=ANN)
    assert (gone.state, live) == (CANDIDATE, None)


def test_a_rollback_ends_a_canary_first_and_there_is_one_canary(database: Database) -> None:
    start(database, found("1.0.0"))
    start(database, found("2.0.0", shipped=False), found("3.0.0", shipped=False))
    assert move(database, "2.0.0", CANARY, 0.1).share == 0.1
    with pytest.raises(IllegalTransition, match=r"2\.0\.0 is the canary"):
        move(database, "3.0.0", CANARY, 0.1)
    assert move(database, "2.0.0", CANARY, 0.5).share == 0.5
    for share in (None, 0.0, 1.0):
        with pytest.raises(IllegalTransition, match="share"):
            move(database, "3.0.0", CANARY, share)
    with database.write() as connection:
        gone, live = stages.rollback(connection, MODEL, by=ANN)
    assert (gone.version, gone.state, gone.share) == ("2.0.0", CANDIDATE, None)
    assert live is not None
    assert live.version == "1.0.0"


def test_retiring_cancels_what_is_scheduled_with_the_reason_and_promoting_does_not(
    holding: Holding, tmp_path: Path
) -> None:
    database = holding.database
    start(database, found("1.0"))
    start(database, found("2.0", shipped=False))
    study = holding.study(tmp_path)
    revision = holding.judge(study)
    holding.schedule(study, revision, inputs="waits")
    holding.schedule(study, revision, inputs="runs", route="another")
    move(database, "2.0", LIVE)
    assert holding.states("workitem") == ["SCHEDULED", "SCHEDULED"]
    running, attempt = holding.claim()
    move(database, "1.0", RETIRED)
    assert holding.states("workitem") == ["CANCELED", "CANCELED"]
    assert holding.states("attempt") == ["LOST"]
    with database.read() as connection:
        assert worklist.get(connection, running.id).outcome == f"{MODEL}@1.0 was retired by {ANN}: asked"
    with pytest.raises(IllegalTransition):
        move(database, "1.0", LIVE)
    assert move(database, "1.0", CANDIDATE).state == CANDIDATE
    assert attempt.number == 1


def test_every_change_is_in_the_trail_with_who_when_from_to_and_why(database: Database) -> None:
    start(database, found("1.0.0"))
    start(database, found("2.0.0", shipped=False))
    with database.write() as connection:
        version = models.get(connection, MODEL, "2.0.0")
        models.record_test(connection, version, passed=True, report={"summary": "2 of 2 samples"}, by=ANN)
    move(database, "2.0.0", CANARY, 0.25)
    with database.read() as connection:
        told = [(one.version, one.action, one.before, one.after, one.by, one.why) for one in models.history(connection)]
        at = [one.at for one in models.history(connection)]
        share = models.history(connection)[0].detail
    assert told == [
        ("2.0.0", "promoted", CANDIDATE, CANARY, ANN, "asked"),
        ("2.0.0", "tested", None, None, ANN, "2 of 2 samples"),
        ("2.0.0", "added", None, CANDIDATE, "the node", "found among the versions added"),
        ("1.0.0", "shipped", CANDIDATE, LIVE, "the node", "the first version that is here"),
        ("1.0.0", "added", None, CANDIDATE, "the node", "shipped"),
    ]
    assert at == sorted(at, reverse=True)
    assert share == {"share": 0.25}
    with database.read() as connection:
        fed = connection.execute(select(func.count()).where(schema.change.c.kind == "model")).scalar_one()
    assert fed == 4  # two births and two moves are in the change feed too


def test_device_uids_stay_known_when_a_version_is_retired_or_its_answers_change_with_the_software(
    database: Database,
) -> None:
    first = found("1.0.0")
    start(database, first)
    # The same card gives another digest where the software has changed what it answers.
    newer = Found(**{**{f: getattr(first, f) for f in first.__slots__}, "digest": "f" * 64, "device_uid": "2.25.7"})
    start(database, newer)
    move(database, "1.0.0", RETIRED)
    known = KnownDevices(database)
    assert first.device_uid in known
    assert "2.25.7" in known
    assert "2.25.8" not in known


# What a route means


@pytest.fixture
def cards(tmp_path: Path) -> list[Card]:
    """Three versions on disk of a model, and where versions lie that are added."""
    made = []
    for version in ("1.0.0", "2.0.0", "3.0.0"):
        folder = tmp_path / "store" / "blobs" / version
        file = write_model(tmp_path / "made" / version, segmentation_card(version=version), thresholding())
        folder.parent.mkdir(parents=True, exist_ok=True)
        file.parent.rename(folder)
        made.append(load_card(folder))
    return made


def seen(database: Database, cards: Sequence[Card], tmp_path: Path) -> Models:
    """What a process that has just started sees, the first card shipped and the others added."""
    store = tmp_path / "store"
    with database.write() as connection:
        register(connection, cards[:1], tmp_path / "elsewhere")
        register(connection, cards[1:], store)
    return Models(Registry(cards), store)


def staged(database: Database, version: str, to: str, share: float | None = None) -> None:
    with database.write() as connection:
        stages.move(connection, models.get(connection, "blobs", version), to, by=ANN, share=share)


def view(database: Database, process: Models) -> View:
    process.prepare(database)
    with database.read() as connection:
        return process.view(connection)


def test_a_canary_reads_its_share_of_the_studies_always_the_same_ones(
    database: Database, cards: list[Card], tmp_path: Path
) -> None:
    process = seen(database, cards, tmp_path)
    studies = [str(generate_uid(entropy_srcs=[str(number)])) for number in range(200)]

    def canaries(share: float) -> set[str]:
        staged(database, "2.0.0", CANARY, share)
        now = view(database, process)
        return {uid for uid in studies if now.chosen("blobs", uid)[0][0].card.version == "2.0.0"}

    tenth, third = canaries(0.1), canaries(0.3)
    assert 8 <= len(tenth) <= 35
    assert 40 <= len(third) <= 80
    assert tenth < third  # who has had the canary keeps it when its share grows
    assert canaries(0.1) == tenth
    assert {fraction_of("blobs", uid) < 0.1 for uid in tenth} == {True}
    chosen, why = view(database, process).chosen("blobs", min(set(studies) - third))
    assert (len(chosen), why, "reads 10 % of the studies" in " ".join(chosen[0].reasons)) == (1, "", True)


def test_a_route_that_names_a_model_gets_what_is_live_and_every_shadow(
    database: Database, cards: list[Card], tmp_path: Path
) -> None:
    process = seen(database, cards, tmp_path)
    for version in ("2.0.0", "3.0.0"):
        staged(database, version, SHADOW)
    chosen, _ = view(database, process).chosen("blobs", "1.2.3")
    assert [(one.card.version, one.shadow, one.reference) for one in chosen] == [
        ("1.0.0", False, "blobs"),
        ("2.0.0", True, "blobs@2.0.0"),
        ("3.0.0", True, "blobs@3.0.0"),
    ]
    staged(database, "1.0.0", RETIRED)
    chosen, why = view(database, process).chosen("blobs", "1.2.3")
    assert (len(chosen), why) == (2, "no version of blobs is live")


def test_a_route_that_names_a_version_gets_it_once_it_is_released_and_never_when_it_is_retired(
    database: Database, cards: list[Card], tmp_path: Path
) -> None:
    process = seen(database, cards, tmp_path)
    assert "has not passed its test" in view(database, process).chosen("blobs@2.0.0", "1.2.3")[1]
    with database.write() as connection:
        version = models.get(connection, "blobs", "2.0.0")
        models.record_test(connection, version, passed=True, report={}, by=ANN)
    chosen, why = view(database, process).chosen("blobs@2.0.0", "1.2.3")
    assert ([(one.card.version, one.shadow) for one in chosen], why) == ([("2.0.0", False)], "")
    staged(database, "2.0.0", SHADOW)
    assert view(database, process).chosen("blobs@2.0.0", "1.2.3")[0][0].shadow
    staged(database, "2.0.0", RETIRED)
    assert view(database, process).chosen("blobs@2.0.0", "1.2.3") == ((), "blobs@2.0.0 is retired")
    assert view(database, process).serving("blobs@2.0.0") == ()


def test_a_route_that_names_a_candidate_gets_neither_what_failed_its_test_nor_what_only_was_a_shadow(
    database: Database, cards: list[Card], tmp_path: Path
) -> None:
    process = seen(database, cards, tmp_path)
    for stage in (SHADOW, CANDIDATE):
        staged(database, "2.0.0", stage)
    assert "has not passed its test" in view(database, process).chosen("blobs@2.0.0", "1.2.3")[1]
    # What an operator has let out before is released without a test too.
    staged(database, "3.0.0", LIVE)
    staged(database, "1.0.0", LIVE)
    assert view(database, process).chosen("blobs@3.0.0", "1.2.3")[0]
    staged(database, "3.0.0", LIVE)
    with database.write() as connection:
        for failed in ("1.0.0", "2.0.0"):
            models.record_test(connection, models.get(connection, "blobs", failed), passed=False, report={}, by=ANN)
    for failed in ("1.0.0", "2.0.0"):
        chosen, why = view(database, process).chosen(f"blobs@{failed}", "1.2.3")
        assert (chosen, "has not passed its test" in why) == ((), True)


def test_another_process_sees_a_promotion_and_what_was_added_since_it_started(
    database: Database, cards: list[Card], tmp_path: Path
) -> None:
    seen(database, cards[:1], tmp_path)
    elsewhere = Database(database.url)
    try:
        other = Models(Registry(cards[:1]), tmp_path / "store")
        assert [one.version for one in view(elsewhere, other).serving("blobs")] == ["1.0.0"]
        with database.write() as connection:
            register(connection, cards[1:], tmp_path / "store")
        staged(database, "3.0.0", LIVE)
        now = view(elsewhere, other)
        assert [one.version for one in now.serving("blobs")] == ["3.0.0"]
        assert now is view(elsewhere, other)  # nothing is read again where nothing has changed
        # What was scheduled before is performed by the version that it was scheduled for.
        earlier = now.of_digest(cards[0].digest)
        assert earlier is not None
        assert (earlier.version, now.why_not(cards[0].digest)) == ("1.0.0", "")
        staged(database, "1.0.0", RETIRED)
        assert view(elsewhere, other).why_not(cards[0].digest) == "blobs@1.0.0 is retired"
    finally:
        elsewhere.close()


def test_a_version_whose_files_are_gone_cannot_run_and_says_so(
    database: Database, cards: list[Card], tmp_path: Path
) -> None:
    seen(database, cards, tmp_path)
    staged(database, "2.0.0", LIVE)
    (cards[1].directory / "model.onnx").write_bytes(b"other")
    now = view(database, Models(Registry(cards[:1]), tmp_path / "store"))
    chosen, why = now.chosen("blobs", "1.2.3")
    assert chosen == ()
    assert "blobs@2.0.0 cannot run here" in why
    assert "sha256" in why
    assert now.unfit == {("blobs", "2.0.0"): why}


def test_files_are_hashed_before_a_transaction_and_never_within_one(
    database: Database, cards: list[Card], tmp_path: Path
) -> None:
    seen(database, cards, tmp_path)
    staged(database, "2.0.0", LIVE)
    (cards[1].directory / "model.onnx").write_bytes(b"other")
    process = Models(Registry(cards[:1]), tmp_path / "store")
    with database.read() as connection:
        assert process.view(connection).chosen("blobs", "1.2.3")[0][0].card.version == "2.0.0"  # not read to the end
        assert process.view(connection) is process.view(connection)
    process.prepare(database)
    with database.read() as connection:
        assert "sha256" in process.view(connection).chosen("blobs", "1.2.3")[1]
    (cards[2].directory / "model.onnx").unlink()
    with database.read() as connection:
        assert "no such file" in Models(Registry(()), tmp_path / "store").view(connection).problems["blobs", "3.0.0"]


# Workitems of shadows


def wanted(holding: Holding, study_id: int, revision_id: int, *, shadow: bool, anew: bool = False) -> tuple[int, bool]:
    with holding.database.write() as connection:
        key = worklist.Key(
            study_id=study_id,
            model=MODEL,
            model_version="2",
            model_digest="d" * 64,
            device_uid="2.25.9",
            input_digest="e" * 64,
        )
        made, created = worklist.schedule(
            connection,
            key,
            input_set={},
            revision_id=revision_id,
            route=f"route-{shadow}-{anew}",
            reason="",
            deliver=() if shadow else ("pacs",),
            notify=(),
            anew=anew,
            shadow=shadow,
        )
    return made.id, created


def test_what_a_shadow_has_done_is_done_again_in_earnest_and_not_the_other_way_round(
    holding: Holding, tmp_path: Path
) -> None:
    study = holding.study(tmp_path)
    revision = holding.judge(study)
    shadow, created = wanted(holding, study.id, revision.id, shadow=True)
    assert created
    assert wanted(holding, study.id, revision.id, shadow=True) == (shadow, False)
    real, created = wanted(holding, study.id, revision.id, shadow=False)
    assert created
    assert real != shadow
    assert wanted(holding, study.id, revision.id, shadow=True)[0] == shadow
    # Nobody waits for a shadow, and its turn comes after everybody's.
    claimed, _ = holding.claim()
    assert (claimed.id, claimed.shadow) == (real, False)


def test_a_revision_is_settled_without_its_shadows(holding: Holding, tmp_path: Path) -> None:
    from storage import attempts, outbox

    study = holding.study(tmp_path)
    revision = holding.judge(study)
    wanted(holding, study.id, revision.id, shadow=True)
    holding.schedule(study, revision)
    workitem, attempt = holding.claim()
    with holding.database.write() as connection:
        assert not outbox.is_settled(connection, revision.id)
        attempts.complete(connection, workitem, attempt, findings={}, new_documents=[], outcome="")
    with holding.database.read() as connection:
        assert outbox.is_settled(connection, revision.id)
    assert holding.states("workitem") == [lifecycle.SCHEDULED, lifecycle.COMPLETED]
