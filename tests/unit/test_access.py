"""Who may associate with the node, and with what each is answered who may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from node.dimse.access import EVERYONE, Access, Admitted, Identity, Rejected, Request
from node.dimse.slots import Slots
from node.peers import Peer, Service
from node.settings import DimseSettings, Settings

CALLING_NOT_RECOGNIZED, CALLED_NOT_RECOGNIZED, CONTEXT_NOT_SUPPORTED = (1, 1, 3), (1, 1, 7), (1, 1, 2)
USER_REFUSED = (1, 2, 1)
BEYOND = {"bind": "10.0.0.1"}


def ask(
    *,
    peers: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    called: str = "OVERREAD",
    calling: str = "CT1",
    host: str = "10.1.2.3",
    **request: Any,
) -> Admitted | Rejected:
    access = Access(
        DimseSettings(**(settings or {})), {name: Peer(ae_title="CT1", **one) for name, one in (peers or {}).items()}
    )
    return access.admit(Request(called=called, calling=calling, host=host, **request))


def refused(answer: Admitted | Rejected) -> tuple[int, int, int]:
    assert isinstance(answer, Rejected), answer
    assert answer.why
    return answer.diagnostic


def services(answer: Admitted | Rejected) -> frozenset[Service]:
    assert isinstance(answer, Admitted), answer
    return answer.services


def test_a_stranger_may_ask_for_everything_on_loopback_and_for_nothing_beyond() -> None:
    assert services(ask()) == set(Service)
    assert refused(ask(settings=BEYOND)) == CALLING_NOT_RECOGNIZED
    assert services(ask(settings={"strangers": ["echo"]})) == {Service.ECHO}
    assert refused(ask(settings={"strangers": []})) == CALLING_NOT_RECOGNIZED


def test_a_peer_may_ask_for_its_services_wherever_the_node_listens() -> None:
    answer = ask(settings=BEYOND, peers={"ct": {"services": ["store", "commit"]}})
    assert services(answer) == {Service.STORE, Service.COMMIT}
    assert isinstance(answer, Admitted)
    assert answer.name == "ct"
    assert refused(ask(peers={"ct": {"services": []}})) == CALLING_NOT_RECOGNIZED


def test_ae_titles_are_compared_without_the_spaces_around_them_and_with_case() -> None:
    assert services(ask(called="  OVERREAD ", calling=" CT1", settings=BEYOND, peers={"ct": {}}))
    assert refused(ask(called="overread")) == CALLED_NOT_RECOGNIZED
    assert refused(ask(calling="ct1", settings=BEYOND, peers={"ct": {}})) == CALLING_NOT_RECOGNIZED


@pytest.mark.parametrize(("called", "known"), [("OVERREAD", True), ("OLDPACS", True), ("AI", True), ("OTHER", False)])
def test_the_node_may_be_called_by_several_titles(called: str, known: bool) -> None:
    answer = ask(called=called, settings={"called_ae_titles": ["OLDPACS", "AI "]})
    if known:
        assert services(answer)
    else:
        assert refused(answer) == CALLED_NOT_RECOGNIZED


@pytest.mark.parametrize(
    ("host", "may"),
    [
        ("10.1.2.3", True),
        ("10.1.3.3", False),
        ("::ffff:10.1.2.3", True),
        ("::ffff:10.1.3.3", False),
        ("fe80::1%eth0", True),
        ("fe81::1", False),
    ],
)
def test_a_peer_calls_from_its_own_networks_only(host: str, may: bool) -> None:
    answer = ask(host=host, peers={"ct": {"hosts": ["10.1.2.0/24", "fe80::/16"]}})
    assert isinstance(answer, Admitted) if may else refused(answer) == CALLING_NOT_RECOGNIZED


def test_a_stranger_does_not_get_in_under_the_title_of_a_peer() -> None:
    """On loopback everybody may ask for everything, but nobody may pose as who is listed."""
    assert refused(ask(host="10.9.9.9", peers={"ct": {"hosts": ["10.1.2.3/32"]}})) == CALLING_NOT_RECOGNIZED


def test_another_application_context_is_refused_as_that() -> None:
    assert refused(ask(application_context="1.2.3")) == CONTEXT_NOT_SUPPORTED


USER = {"username": "ct", "passcode": "secret"}


def identity(kind: int, primary: bytes, secondary: bytes = b"") -> Identity:
    return Identity(kind=kind, primary=primary, secondary=secondary)


@pytest.mark.parametrize(
    ("peer", "shown", "may"),
    [
        (USER, identity(2, b"ct", b"secret"), True),
        (USER, identity(2, b"ct", b"Secret"), False),
        (USER, identity(2, b"ct", b"secret "), False),
        (USER, identity(2, b"mr", b"secret"), False),
        (USER, identity(2, b"ct", b""), False),
        (USER, identity(1, b"ct"), False),
        (USER, identity(1, b"ct", b"secret"), False),
        (USER, None, False),
        (USER | {"user_identity": "optional"}, None, True),
        (USER | {"user_identity": "optional"}, identity(2, b"ct", b"wrong"), False),
        (USER | {"user_identity": "optional"}, identity(3, b"ticket"), False),
        ({"username": "ct"}, identity(1, b"ct"), True),
        ({"username": "ct"}, identity(2, b"ct", b"whatever"), True),
        ({"username": "ct"}, identity(1, b"\xff\xfe"), False),
        ({"username": "Jürgen"}, identity(1, "Jürgen".encode()), True),
        (USER, identity(3, b"ticket"), False),
        (USER, identity(4, b"<saml/>"), False),
        (USER, identity(5, b"a.b.c"), False),
        (USER, identity(9, b"ct"), False),
        ({}, identity(2, b"anybody", b"anything"), True),
        ({}, identity(5, b"a.b.c"), True),
    ],
)
def test_the_user_of_a_peer_is_verified(peer: dict[str, Any], shown: Identity | None, may: bool) -> None:
    answer = ask(peers={"ct": peer}, identity=shown)
    if not may:
        assert refused(answer) == USER_REFUSED
        return
    assert isinstance(answer, Admitted)
    # Who looks at no user has verified none: the requestor that asks for a positive response gets none.
    assert answer.identified == (bool(peer) and shown is not None)


@pytest.mark.parametrize(("kind", "word"), [(3, "Kerberos"), (4, "SAML"), (5, "JSON web token")])
def test_what_cannot_be_verified_is_refused_in_words(kind: int, word: str) -> None:
    answer = ask(peers={"ct": USER}, identity=identity(kind, b"secret-ticket"))
    assert isinstance(answer, Rejected)
    assert word in answer.why
    assert "secret" not in answer.why


@pytest.mark.parametrize(
    ("shown", "may"),
    [
        (None, False),
        (frozenset(), False),
        (frozenset({"mr7.hospital"}), False),
        (frozenset({"ct1.hospital", "other"}), True),
    ],
)
def test_a_peer_that_is_known_by_its_certificate_calls_with_it_only(shown: frozenset[str] | None, may: bool) -> None:
    answer = ask(peers={"ct": {"certificates": ["CT1.Hospital"]}}, certificate=shown)
    assert isinstance(answer, Admitted) if may else refused(answer) == CALLING_NOT_RECOGNIZED


def test_a_passcode_without_a_user_name_is_a_mistake_in_the_configuration() -> None:
    with pytest.raises(ValidationError, match="username"):
        Peer(ae_title="CT1", passcode="secret")  # type: ignore[arg-type]


def test_a_passcode_is_not_shown_with_the_configuration() -> None:
    settings = Settings(peers={"ct": Peer(ae_title="CT1", username="ct", passcode="hidden")}, routes=())  # type: ignore[arg-type]
    assert "hidden" not in repr(settings)


def test_limits_are_those_of_the_node_and_of_each_peer_that_has_one() -> None:
    peers = {"a": Peer(ae_title="A", maximum_associations=2), "b": Peer(ae_title="B")}
    assert Access(DimseSettings(maximum_associations=9), peers).limits == {EVERYONE: 9, "a": 2}


def test_slots_are_counted_by_name_and_over_processes(tmp_path: Path) -> None:
    import multiprocessing

    path = tmp_path / "slots"
    limits = {EVERYONE: 3, "ct": 1}
    slots = Slots(path, limits)
    first = slots.acquire("ct")
    assert first is not None
    assert slots.acquire("ct") is None
    assert [slots.acquire(EVERYONE) is not None for _ in range(4)] == [True, True, True, False]

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_taken, (path, limits)) == {EVERYONE: True, "ct": True}
        slots.release(first)
        assert pool.apply(_taken, (path, limits)) == {EVERYONE: True, "ct": False}
    assert slots.limited("ct")
    assert not slots.limited("mr")
    slots.close()


def _taken(path: Path, limits: dict[str, int]) -> dict[str, bool]:
    slots = Slots(path, limits)
    try:
        return {name: slots.acquire(name) is None for name in limits}
    finally:
        slots.close()
