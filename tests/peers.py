"""Pytest fixtures that bring up the node's real peers: Orthanc as the PACS, an MLLP receiver as the EMR.

A peer that is not installed skips the test and says what to install; with ``CI=true`` it fails instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from demo.peers import MllpReceiver, Orthanc, PeerError, find_orthanc, free_port, tcp_open, wait_until

__all__ = [
    "MllpReceiver",
    "Orthanc",
    "PeerError",
    "free_port",
    "need",
    "need_program",
    "start_mllp_receiver",
    "start_orthanc",
    "tcp_open",
    "wait_until",
]


def need(present: object, what: str) -> None:
    """Skip the test with ``what`` is missing; in CI, where everything has to be there, fail it."""
    if present:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must have everything: {what}")
    pytest.skip(what)


def need_program(path: str, package: str) -> str:
    """Return the path of an installed program, or skip naming the Debian package that has it."""
    need(Path(path).exists(), f"{path} is not installed (Debian package {package})")
    return path


@pytest.fixture
def start_orthanc(tmp_path: Path) -> Iterator[Callable[..., Orthanc]]:
    """Give a function that starts one more Orthanc: ``start_orthanc(ae_title="PACS2")``; all are stopped at the end."""
    need(find_orthanc(), "Orthanc with DICOMweb is not installed (Debian packages orthanc, orthanc-dicomweb)")
    started = 0
    with ExitStack() as stack:

        def start(**options: object) -> Orthanc:
            nonlocal started
            started += 1
            peer = Orthanc(folder=tmp_path / f"orthanc-{started}", **options)  # type: ignore[arg-type]
            # Its storage goes with the test, so it need not end in order.
            stack.callback(peer.stop, kill=True)
            return peer.start()

        yield start


@pytest.fixture
def orthanc(start_orthanc: Callable[..., Orthanc]) -> Orthanc:
    """Give a running, empty Orthanc."""
    return start_orthanc()


@pytest.fixture(scope="module")
def orthanc_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """Give one Orthanc that the tests of a module share; each of them uses studies of its own."""
    need(find_orthanc(), "Orthanc with DICOMweb is not installed (Debian packages orthanc, orthanc-dicomweb)")
    peer = Orthanc(folder=tmp_path_factory.mktemp("orthanc"))
    try:
        yield peer.start()
    finally:
        peer.stop(kill=True)


@pytest.fixture
def start_mllp_receiver(tmp_path: Path) -> Iterator[Callable[..., MllpReceiver]]:
    """Give a function that starts one more receiver: ``start_mllp_receiver("AE:2", "silence:1")``."""
    started = 0
    with ExitStack() as stack:

        def start(*behave: str, port: int | None = None) -> MllpReceiver:
            nonlocal started
            started += 1
            folder = tmp_path / f"mllp-{started}"
            peer = MllpReceiver(folder=folder) if port is None else MllpReceiver(folder=folder, port=port)
            stack.callback(peer.stop)
            return peer.start(behave)

        yield start


@pytest.fixture
def mllp_receiver(start_mllp_receiver: Callable[..., MllpReceiver]) -> MllpReceiver:
    """Give a running receiver that accepts everything (AA)."""
    return start_mllp_receiver()
