"""A hospital's certificate authority for tests, made by openssl: right certificates, and wrong ones of every kind."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.peers import need_program

__all__ = ["Authority", "Pair", "self_signed"]

_CONFIG = """
[ca]
default_ca = it
[it]
dir = {folder}
database = {folder}/index.txt
rand_serial = yes
new_certs_dir = {folder}
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
organizationName = optional
[leaf]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature,keyEncipherment
extendedKeyUsage = serverAuth,clientAuth
subjectAltName = {names}
"""


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as files."""

    certificate: Path
    key: Path


class Authority:
    """An authority in a folder of its own."""

    def __init__(self, folder: Path, name: str = "Hospital CA") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = folder / "ca.key"
        self.certificate = folder / "ca.pem"
        (folder / "index.txt").touch()
        _openssl(
            "req", "-x509", "-nodes", *_new_key(False), "-keyout", self._key, "-out", self.certificate,
            "-subj", f"/CN={name}", "-days", "3650",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )  # fmt: skip

    def issue(
        self, name: str, names: str = "DNS:localhost,IP:127.0.0.1", *, ends_in: timedelta = timedelta(days=400),
        rsa: bool = False,
    ) -> Pair:  # fmt: skip
        """Make a key and a certificate for it; one that ends in the past began the day before that."""
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        request, config = self._folder / f"{name}.csr", self._folder / f"{name}.cnf"
        config.write_text(_CONFIG.format(folder=self._folder, names=names))
        _openssl("req", "-new", "-nodes", *_new_key(rsa), "-keyout", pair.key, "-out", request, "-subj", f"/CN={name}")
        ends = datetime.now(UTC) + ends_in
        begins = min(datetime.now(UTC), ends) - timedelta(days=1)
        _openssl(
            "ca", "-batch", "-notext", "-config", config, "-extensions", "leaf", "-in", request,
            "-cert", self.certificate, "-keyfile", self._key, "-out", pair.certificate,
            "-startdate", begins.strftime("%Y%m%d%H%M%SZ"), "-enddate", ends.strftime("%Y%m%d%H%M%SZ"),
        )  # fmt: skip
        return pair


def self_signed(folder: Path, name: str) -> Pair:
    """Make a certificate that nobody but itself vouches for."""
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    _openssl(
        "req", "-x509", "-nodes", *_new_key(False), "-keyout", pair.key, "-out", pair.certificate,
        "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-days", "30",
    )  # fmt: skip
    return pair


def _new_key(rsa: bool) -> list[str]:
    return ["-newkey", "rsa:2048"] if rsa else ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]


def _openssl(*arguments: str | Path) -> None:
    program = need_program("/usr/bin/openssl", "openssl")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
