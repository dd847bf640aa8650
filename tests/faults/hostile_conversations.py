"""What a peer says on one connection, wrong in every way, each made by a seed and a number alone.

The good conversations are those that the node knows: verification, storage in several transfer syntaxes, query,
retrieve, commitment, MPPS. What is done to them: bytes of a PDU, elements of a command set, lengths and flags of
PDVs, the order of PDUs, datasets.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from random import Random

from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

from tests.faults.hostile_datasets import CT, corpus, hostile_dataset
from tests.faults.mutations import lie, mutate
from tests.faults.wire import (
    ABORT,
    COMMAND_ENDS,
    EXPLICIT,
    IMPLICIT,
    RELEASE,
    VERIFICATION,
    associate_request,
    command,
    data_pdu,
    echo_request,
    item,
    message,
    pdu,
    store_request,
)

__all__ = ["hostile_conversation"]

#: Context id, abstract syntax, transfer syntax.
_CONTEXTS = (
    (1, VERIFICATION, IMPLICIT),
    (3, CT, ExplicitVRLittleEndian),
    (5, CT, ImplicitVRLittleEndian),
    (7, CT, DeflatedExplicitVRLittleEndian),
    (9, CT, ExplicitVRBigEndian),
    (11, "1.2.840.10008.5.1.4.1.2.2.1", EXPLICIT),  # Study Root FIND, MOVE, GET
    (13, "1.2.840.10008.5.1.4.1.2.2.2", EXPLICIT),
    (15, "1.2.840.10008.5.1.4.1.2.2.3", EXPLICIT),
    (17, "1.2.840.10008.1.20.1", EXPLICIT),  # Storage Commitment Push Model
    (19, "1.2.840.10008.3.1.2.3.3", EXPLICIT),  # Modality Performed Procedure Step
    (21, "1.2.840.10008.5.1.4.1.2.1.1", IMPLICIT),  # Patient Root FIND
)
_WELL_KNOWN = "1.2.840.10008.1.20.1.1"

_Message = tuple[int, bytes, bytes | None]


def hostile_conversation(seed: int, number: int, called: str) -> list[bytes]:
    """Return what is sent: first what asks for the association, then what follows once that is answered."""
    dice = Random(f"{seed}-{number}")
    request, messages = _request(dice, called), list(dice.choice(_good()))
    kind = dice.random()
    if kind < 0.15:
        at = dice.randrange(len(messages))
        context, command_set, dataset = messages[at]
        messages[at] = (context, _wrong_command(dice, command_set), dataset)
    elif kind < 0.25:
        context, _, syntax = dice.choice(_CONTEXTS[1:5])
        uid = generate_uid(entropy_srcs=[str(seed), str(number)])
        dataset = hostile_dataset(dice, uid, syntax)
        messages.insert(0, (context, store_request(CT, dice.choice((uid, uid, "1.2.3"))), dataset))
    elif kind < 0.35:
        at = dice.randrange(len(messages))
        context, command_set, dataset = messages[at]
        other = dice.choice((dice.choice(_CONTEXTS)[0], 2, 77, 255, 0))
        messages[at] = (other, command_set, dice.choice((dataset, None, b"", b"x" * 50)))
    fragment = dice.choice((16_000, 16_000, 300, 50))
    pdus = [one for each in messages for one in message(*each, fragment=fragment)]
    pdus.append(dice.choice((RELEASE, RELEASE, RELEASE, ABORT, b"")))
    if kind >= 0.35:
        request, pdus = _wrong_pdus(dice, request, pdus)
    return [request, *pdus]


def _request(dice: Random, called: str) -> bytes:
    contexts = [(number, abstract, (syntax,)) for number, abstract, syntax in _CONTEXTS]
    extra = b""
    if dice.random() < 0.2:
        name = item(0x53, struct.pack(">HH", 5, 5))  # asynchronous operations window
        roles = item(0x54, struct.pack(">H", len(CT)) + CT.encode() + b"\1\1")
        user = item(0x58, b"\1\0" + struct.pack(">H", 4) + b"user" + struct.pack(">H", 0))
        extra = dice.choice((name, roles, user, name + roles + user))
    return associate_request(called, contexts, calling="FUZZ", maximum=dice.choice((0, 16384, 65536)), extra=extra)


def _wrong_command(dice: Random, command_set: bytes) -> bytes:
    fields = _elements_of(command_set)
    for _ in range(dice.choice((1, 1, 2))):
        at = dice.randrange(len(fields))
        element, value = fields[at]
        what = dice.random()
        if what < 0.2:
            del fields[at]
        elif what < 0.35:
            fields.insert(dice.randrange(len(fields) + 1), (element, mutate(dice, value)))
        elif what < 0.7:
            fields[at] = (element, mutate(dice, value))
        elif what < 0.8:
            dice.shuffle(fields)
        else:
            fields[at] = (dice.choice((0x0100, 0x0110, 0x0120, 0x0800, 0x0900, 0x1000, dice.getrandbits(16))), value)
        if not fields:
            break
    written = b""
    for element, value in fields:
        length = len(value) if dice.random() < 0.95 else lie(dice, len(value))
        written += struct.pack("<HHL", dice.choice((0, 0, 0, 0, 0, 0, 0, 8)), element, length) + value
    return written if dice.random() < 0.9 else mutate(dice, written)


def _wrong_pdus(dice: Random, request: bytes, pdus: list[bytes]) -> tuple[bytes, list[bytes]]:
    everything = [request, *pdus]
    for _ in range(dice.choice((1, 1, 2, 4))):
        at = min(int(dice.random() * len(everything)), len(everything) - 1)
        one = everything[at]
        what = dice.random()
        if what < 0.45:
            body = mutate(dice, one[6:])
            kind = one[0] if one and dice.random() < 0.9 else dice.randrange(256)
            # Mostly of a right length: what is inside is to be looked at.
            everything[at] = pdu(kind, body) if dice.random() < 0.8 else mutate(dice, one)
        elif what < 0.6:
            everything[at] = _wrong_items(dice, one)
        elif what < 0.7:
            everything.insert(dice.randrange(1, len(everything) + 1), one)
        elif what < 0.78 and at:
            del everything[at]
        elif what < 0.86:
            other = dice.randrange(len(everything))
            everything[at], everything[other] = everything[other], everything[at]
        elif what < 0.96:
            stray = dice.choice(
                (
                    request,
                    RELEASE,
                    ABORT,
                    pdu(2, request[6:]),
                    pdu(3, bytes(4)),
                    pdu(6, bytes(4)),
                    pdu(dice.randrange(8, 256), bytes(8)),
                    pdu(dice.randrange(1, 8), b""),
                    data_pdu(1, COMMAND_ENDS, echo_request(dice.randrange(65536))),
                    dice.randbytes(dice.randint(1, 64)),
                )
            )
            everything.insert(dice.randrange(1, len(everything) + 1), stray)
        else:
            everything[at] = one[: dice.randrange(len(one) + 1)]
    return everything[0], everything[1:]


def _wrong_items(dice: Random, one: bytes) -> bytes:
    """Lie about the items of a data PDU: their lengths, contexts and control headers, how many there are."""
    if len(one) < 12 or one[0] != 4:
        return mutate(dice, one)
    context, control, data = one[10], one[11], one[12:]
    what = dice.randrange(6)
    if what == 0:
        return pdu(4, struct.pack(">LBB", lie(dice, len(data) + 2), context, control) + data)
    if what == 1:
        return data_pdu(context, dice.randrange(256), data)
    if what == 2:
        return data_pdu(dice.randrange(256), control, data)
    if what == 3:
        half = len(data) // 2
        pieces = data_pdu(context, control & 1, data[:half])[6:] + data_pdu(context, control, data[half:])[6:]
        return pdu(4, pieces)
    if what == 4:
        return pdu(4, dice.choice((b"", b"\0\0\0\0", b"\0\0\0\1\1", b"\0\0\0\2\1\3", one[6:] * 2)))
    return data_pdu(context, control, b"")


def _elements_of(command_set: bytes) -> list[tuple[int, bytes]]:
    found = []
    at = 0
    while at < len(command_set):
        _, element, length = struct.unpack_from("<HHL", command_set, at)
        found.append((element, command_set[at + 8 : at + 8 + length]))
        at += 8 + length
    return found


@cache
def _good() -> Sequence[Sequence[_Message]]:
    datasets = dict(zip((5, 3, 9, 7), (_without_meta(one) for one in corpus()), strict=False))
    stores = [(one, store_request(CT, "1.2.826.0.1.3680043.8.498.1"), datasets[one]) for one in (3, 5, 7, 9)]
    echo = (1, echo_request(7), None)
    query = _explicit((0x00080052, b"CS", b"STUDY "), (0x00100010, b"PN", b"Y*"), (0x0020000D, b"UI", b""))
    moved = _explicit((0x00080052, b"CS", b"STUDY "), (0x0020000D, b"UI", b"1.2.826.0.1.3680043.8.498.2\0"))
    referenced = _explicit((0x00081150, b"UI", CT.encode()), (0x00081155, b"UI", b"1.2.826.0.1.3680043.8.498.1\0"))
    asked = _explicit((0x00081195, b"UI", b"1.2.3.9\0")) + _sequence(0x00081199, referenced)
    step = _explicit((0x00080060, b"CS", b"CT"), (0x00400252, b"CS", b"IN PROGRESS ")) + _sequence(0x00400270, asked)
    find, move, get, commit, mpps, patient = (abstract for _, abstract, _ in _CONTEXTS[5:])
    plain = {0x0110: 9, 0x0800: 1}
    requests: tuple[_Message, ...] = (
        (11, command({0x0002: find, 0x0100: 0x0020, **plain, 0x0700: 0}), query),
        (11, command({0x0100: 0x0FFF, 0x0120: 9, 0x0800: 0x0101}), None),
        (21, command({0x0002: patient, 0x0100: 0x0020, **plain, 0x0700: 0}), moved),
        (13, command({0x0002: move, 0x0100: 0x0021, 0x0110: 9, 0x0600: b"NOBODY", 0x0700: 0, 0x0800: 1}), moved),
        (15, command({0x0002: get, 0x0100: 0x0010, 0x0110: 9, 0x0700: 0, 0x0800: 1}), moved),
        (17, command({0x0003: commit, 0x0100: 0x0130, **plain, 0x1001: _WELL_KNOWN, 0x1008: 1}), asked),
        (19, command({0x0002: mpps, 0x0100: 0x0140, **plain, 0x1000: "1.2.3.10"}), step),
        (19, command({0x0003: mpps, 0x0100: 0x0120, **plain, 0x1001: "1.2.3.10"}), step),
        (19, command({0x0003: mpps, 0x0100: 0x0110, 0x0110: 9, 0x0800: 0x0101, 0x1001: "1.2.3.10"}), None),
        (19, command({0x0003: mpps, 0x0100: 0x0150, 0x0110: 9, 0x0800: 0x0101, 0x1001: "1.2.3.10"}), None),
        (17, command({0x0002: commit, 0x0100: 0x0100, **plain, 0x1000: _WELL_KNOWN, 0x1002: 1}), asked),
        (1, command({0x0002: VERIFICATION, 0x0100: 0x8030, 0x0120: 7, 0x0800: 0x0101, 0x0900: 0}), None),
    )
    return (
        [echo, echo],
        *([one, echo] for one in stores),
        stores,
        *([one] for one in requests),
        [*requests[:2], echo],
        [requests[6], requests[7], requests[8]],
    )


def _without_meta(file: bytes) -> bytes:
    """Return the dataset of a Part 10 file (PS3.10 7.1), by its File Meta Information Group Length."""
    return file[144 + struct.unpack_from("<L", file, 140)[0] :]


def _explicit(*values: tuple[int, bytes, bytes]) -> bytes:
    return b"".join(
        struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value + b" " * (len(value) % 2)))
        + value
        + b" " * (len(value) % 2)
        for tag, vr, value in values
    )


def _sequence(tag: int, content: bytes) -> bytes:
    inner = struct.pack("<HHL", 0xFFFE, 0xE000, len(content)) + content
    return struct.pack("<HH2sHL", tag >> 16, tag & 0xFFFF, b"SQ", 0, len(inner)) + inner
