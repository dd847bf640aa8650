"""The DICOM Conformance Statement says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from node.dimse import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, negotiation, status
from node.dimse.contexts import TRANSFER_SYNTAXES
from node.dimse.services import OTHER_SOP_CLASSES, STORAGE_SOP_CLASSES
from node.settings import DimseSettings

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """Return what stands under a heading, up to the next of its rank or a higher one."""
    rank, name = re.match(r"(#+) (.*)", title).groups()  # type: ignore[union-attr]
    begin = re.search(rf"^{rank} {re.escape(name)}$", TEXT, re.MULTILINE)
    assert begin is not None, title
    rest = TEXT[begin.end() :]
    end = re.search(rf"^#{{1,{len(rank)}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def codes(title: str) -> set[int]:
    """Return the statuses of the table under a heading."""
    return {int(code, 16) for code in re.findall(r"^\| `([0-9A-F]{4})` \|", section(title), re.MULTILINE)}


def uids(title: str) -> list[str]:
    return re.findall(r"^\|[^|]+\| `([0-9.]+)` \|", section(title), re.MULTILINE)


def test_it_lists_the_storage_sop_classes_and_transfer_syntaxes_that_are_taken_and_no_others() -> None:
    for title, known in (
        ("## Annex A: Storage SOP Classes", STORAGE_SOP_CLASSES),
        ("## Annex B: Transfer syntaxes of Storage", TRANSFER_SYNTAXES),
    ):
        listed = uids(title)
        assert set(listed) == set(known)
        assert len(listed) == len(set(listed))
    assert f"| {len(STORAGE_SOP_CLASSES)} listed" in section("## 1 Overview")


def test_it_lists_the_sop_classes_of_every_other_service() -> None:
    rows = re.findall(
        r"^\|[^|]+\| `([0-9.]+)` \| (\w+) \|$", section("### 3.3 Presentation contexts as acceptor"), re.MULTILINE
    )
    assert dict(rows) == {uid: str(service) for uid, service in OTHER_SOP_CLASSES.items()}


def test_it_lists_every_status_that_storage_answers() -> None:
    answered = {code for _, code in status._TABLE} | {status.STORED_WITH_DEFECT}
    constants = (
        status.SUCCESS,
        status.WRONG_CONTEXT,
        status.MISSING_DATASET,
        status._OUT_OF_RESOURCES,
        status._DATABASE_BUSY,
        status._PROCESSING_FAILURE,
    )
    assert codes("#### Storage") == answered | {one.code for one in constants}


def test_it_lists_every_status_that_searches_and_retrieves_answer() -> None:
    searches = (
        status.SUCCESS,
        status.PENDING,
        status.PENDING_UNSUPPORTED,
        status.CANCELED,
        status.WRONG_CONTEXT,
        status._SEARCH_BUSY,
        status._NOT_PROCESSED,
    )
    assert codes("#### FIND") == {code for _, code in status._FIND_TABLE} | {one.code for one in searches}
    retrieves = (
        status.SUCCESS,
        status.PENDING,
        status.CANCELED,
        status.SOME_FAILED,
        status.UNABLE_TO_PERFORM,
        status._NOT_COUNTED,
        status._NOT_PROCESSED,
    )
    assert codes("#### MOVE and GET") == {code for _, code in status._RETRIEVE_TABLE} | {one.code for one in retrieves}


@pytest.mark.parametrize(
    ("title", "modules"),
    [
        ("#### Storage Commitment Push Model", ("commitment_scp", "operations")),
        ("#### Modality Performed Procedure Step", ("procedure_steps", "operations")),
    ],
)
def test_it_lists_every_status_that_the_code_of_a_normalized_service_raises(
    title: str, modules: tuple[str, ...]
) -> None:
    folder = Path(status.__file__).parent
    raised = {0x0000, 0x0110, 0x0213}
    for module in modules:
        source = (folder / f"{module}.py").read_text(encoding="utf-8")
        raised |= {int(code, 16) for code in re.findall(r"OperationRefused\(0x([0-9A-F]{4})", source)}
        constants = "\n".join(re.findall(r"^_[A-Z_, ]+ = .*$", source, re.MULTILINE))
        raised |= {int(code, 16) for code in re.findall(r"0x([0-9A-F]{4})", constants)}
    missing = raised - codes(title)
    assert not missing, {f"{code:04X}" for code in missing}


def test_it_names_the_implementation_and_the_defaults_that_hold() -> None:
    policies = section("### 3.2 Association policies")
    assert IMPLEMENTATION_CLASS_UID in policies
    assert IMPLEMENTATION_VERSION_NAME in policies
    defaults = DimseSettings()
    assert f"`dimse.maximum_pdu`, default {defaults.maximum_pdu};" in policies
    assert f"`dimse.maximum_associations`, default {defaults.maximum_associations}," in policies
    for key in ("artim_timeout_seconds", "idle_timeout_seconds", "network_timeout_seconds"):
        assert re.search(rf"`dimse\.{key}`\s\({getattr(defaults, key):g}\)", policies), key


def test_it_says_of_extended_negotiation_what_is_answered() -> None:
    told = section("### 3.3 Presentation contexts as acceptor")
    level, _, signature, _, coercion, _ = negotiation._STORAGE_SUPPORT
    assert f"{level} level 2 (full)" in told
    assert f"{signature} signature level 3" in told
    assert f"{coercion} no coercion" in told
    assert [bool(one) for one in negotiation._OPTIONS[negotiation.Service.FIND]] == [
        word in told.split("Not:")[0] and word not in told.split("Not:")[1].partition("|")[0]
        for word in (
            "relational queries",
            "combined date-time",
            "fuzzy names",
            "time zone",
            "conversion",
            "empty value",
            "multiple value",
        )
    ]
