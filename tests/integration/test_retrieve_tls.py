"""What is retrieved over TLS, on an association of either side, is what is stored."""

from __future__ import annotations

import ssl
from pathlib import Path

import numpy as np
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from demo.peers import free_port
from node.dimse.scu import send
from node.peers import Address
from tests.certificates import Authority
from tests.dicom_factory import ct_series
from tests.receiver import receiving
from tests.retrieving import SUCCESS, get, identifier, move, stored_digests

STUDY = "1.2.826.8"


def test_a_study_is_moved_to_a_peer_over_tls_and_got_from_it_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    first, second, asking = (authority.issue(name) for name in ("first", "second", "asking"))
    files = ct_series(tmp_path / "ct", np.random.default_rng(1).integers(0, 1000, (4, 512, 512)), study_uid=STUDY)
    port = free_port()
    shown = {"certificate": str(first.certificate), "key": str(first.key), "authorities": str(authority.certificate)}
    peers = {"second": {"ae_title": "SECOND", "host": "localhost", "port": port, "tls": shown}}
    secured = {
        "tls": {
            "port": port,
            "certificate": str(second.certificate),
            "key": str(second.key),
            "authorities": str(authority.certificate),
        }
    }
    with (
        receiving(tmp_path / "first", peers=peers) as one,
        receiving(tmp_path / "second", ae_title="SECOND", options=secured) as other,
    ):
        assert send(files, Address(one.ae_title, "127.0.0.1", one.port), "CT1").stored == len(files)
        answers = move(one, "SECOND", identifier("STUDY", StudyInstanceUID=STUDY))
        assert (answers.final, answers.counts[-1]) == (SUCCESS, (None, len(files), 0, 0)), answers.comment
        assert stored_digests(other) == stored_digests(one)
        context = ssl.create_default_context(cafile=str(authority.certificate))
        context.load_cert_chain(asking.certificate, asking.key)
        got, destination = get(
            other,
            identifier("STUDY", StudyInstanceUID=STUDY),
            [(CTImageStorage, [ExplicitVRLittleEndian])],
            secured=(port, context),
        )
        assert (got.final, got.counts[-1]) == (SUCCESS, (None, len(files), 0, 0))
        assert destination.digests == stored_digests(one)
