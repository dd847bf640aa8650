"""What the node is told: ``conf/node.yaml`` and the environment, checked before anything starts.

Every key may also come from the environment as ``OVERREAD__SECTION__KEY``, which wins over the file. Unknown
keys are refused, and every complaint names the file, the key and what was expected.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from inference.matching import check_condition
from node.errors import ConfigurationError
from node.listening import is_loopback
from node.peers import Peer, Service
from node.sections import AETitle, Free, Host, Port, Seconds, Section, Token, TransferSyntax, UIDPrefix
from node.security.tls import Acceptor
from node.sources import Values, read_values, read_yaml
from storage.space import Least, Marks

__all__ = [
    "DimseDestination",
    "DimseSettings",
    "FolderDestination",
    "HL7Notifier",
    "HttpSettings",
    "Route",
    "Settings",
    "StorageSettings",
    "StowDestination",
    "load_settings",
]

#: Where pydantic's own words say little to whoever writes the file.
_EXPECTED = {
    "extra_forbidden": "unknown key",
    "model_type": "expected a mapping of keys",
    "dict_type": "expected a mapping of names",
}


def _is_url(url: str) -> str:
    import httpx

    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        raise ValueError("this is no URL") from None
    # httpx itself notices some of this only when it connects.
    host = re.fullmatch(r"[a-z0-9._-]+|[0-9a-f:.]*:[0-9a-f:.]*", parsed.raw_host.decode("ascii"), re.IGNORECASE)
    if not host or parsed.port not in (None, *range(1, 65536)) or parsed.query or parsed.fragment:
        raise ValueError("expected http:// or https://, a host, a port up to 65535, and a path without a query")
    return url


class DimseSettings(Section):
    """The SCP: how it is called, by whom, and what it takes."""

    ae_title: AETitle = "OVERREAD"
    #: Under these titles it is called too.
    called_ae_titles: tuple[AETitle, ...] = ()
    bind: Host = "127.0.0.1"
    port: Port = 11112
    #: Whether the port above is listened on: without, the node is called over TLS only.
    plain: bool = True
    tls: Acceptor | None = None
    #: What AEs that are no peers may ask for. Unless it is said: everything on loopback, nothing beyond.
    strangers: tuple[Service, ...] | None = None
    receivers: Annotated[int, Field(ge=1, le=64)] = 2
    #: Of several transfer syntaxes in one presentation context these come first, in this order.
    transfer_syntaxes: tuple[TransferSyntax, ...] = ()
    private_sop_classes: bool | tuple[UIDPrefix, ...] = True
    maximum_associations: Annotated[int, Field(ge=1, le=1 << 16)] = 64
    #: C-MOVE and C-GET requests that are served at the same time; others wait for their turn.
    maximum_retrieves: Annotated[int, Field(ge=1, le=1 << 16)] = 8
    maximum_pdu: Annotated[int, Field(ge=4096, le=1 << 20)] = 131072
    #: The association request has to be there within it (ARTIM, PS3.8 9.1.5).
    artim_timeout_seconds: Seconds = 30
    idle_timeout_seconds: Seconds = 60
    network_timeout_seconds: Seconds = 60

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it is listened on."""
        plain = (self.bind,) if self.plain else ()
        return plain if self.tls is None else (*plain, self.tls.bind or self.bind)

    @model_validator(mode="after")
    def _somewhere(self) -> DimseSettings:
        if not self.plain and self.tls is None:
            raise ValueError("plain: false leaves no port to be called at; configure dimse.tls too")
        return self


class HttpSettings(Section):
    """DICOMweb, the node's own API, health and metrics."""

    bind: Host = "127.0.0.1"
    port: Port = 8080
    #: Bearer token that every request but health must carry. Best set as OVERREAD__HTTP__TOKEN.
    token: Token | None = None
    #: The largest body that STOW-RS takes.
    maximum_body_mb: Annotated[int, Field(ge=1)] = 4096


class CompletionSettings(Section):
    """When a study is judged complete; every wait is counted from its last instance, or the end of an association."""

    quiet_seconds: Seconds = 60
    #: The quiet period once the last association that carried the study was released in order; none: no shorter one.
    after_release_seconds: Seconds | None = None
    #: So long is a procedure step waited for that has not ended, or that names instances which are not here.
    mpps_seconds: Seconds = 300
    #: When a peer with ``count: true`` is asked; none: once the quiet period is over.
    count_after_seconds: Seconds | None = None
    count_every_seconds: Seconds = 30
    #: So long are instances waited for that the peer has and the node has not.
    count_seconds: Seconds = 600
    #: So long may a study grow before a revision is opened all the same.
    maximum_seconds: Seconds = 14400

    @model_validator(mode="after")
    def _can_be_quiet(self) -> CompletionSettings:
        if self.maximum_seconds <= self.quiet_seconds:
            raise ValueError("maximum_seconds: expected more than quiet_seconds, or no study could ever be quiet")
        return self


class RetrySettings(Section):
    """How deliveries and notifications are tried again."""

    first_seconds: Seconds = 5
    maximum_seconds: Seconds = 600
    #: So often may a peer that answers refuse the same thing before it is parked. One that cannot be reached waits on.
    refusals: Annotated[int, Field(ge=1)] = 5


class PerformSettings(Section):
    """How workitems are performed."""

    workers: Annotated[int, Field(ge=1, le=64)] = 1
    #: Tries that an engine may lose (died, overran) before the workitem is parked.
    tries: Annotated[int, Field(ge=1)] = 3
    #: Attempts that may be lost with the node itself before the workitem is suspected of killing it.
    losses: Annotated[int, Field(ge=1)] = 50
    lease_seconds: Seconds = 30
    #: Workitems that each worker has under way at once; each model's card says how many of them may be its own.
    concurrency: Annotated[int, Field(ge=1, le=256)] = 16
    #: What all engines together may hold; by default half of the machine's memory.
    memory_mb: Annotated[float, Field(ge=256)] | None = None
    #: What kept results may take of the disk, in MB; 0 keeps none.
    results_mb: Annotated[float, Field(ge=0)] = 2048
    #: How long a model stays loaded that has nothing to do.
    idle_seconds: Seconds = 900


class DriftSettings(Section):
    """How many inputs of a model are compared to tell whether they are still what they were."""

    #: The first so many are the reference, where a model's card declares none.
    reference: Annotated[int, Field(ge=30, le=100_000)] = 500
    #: The last so many are weighed.
    window: Annotated[int, Field(ge=30, le=100_000)] = 500


class DatabaseSettings(Section):
    """Where state lives; without a URL, SQLite in the data directory."""

    url: str | None = None


class StorageSettings(Section):
    """How much of the disks of the data directory and of the database stays free."""

    #: Below it the node says so.
    warn_free: Free = "2 GB"
    #: Below it nothing more is taken in: "out of resources" (A700) or 507.
    refuse_free: Free = "256 MB"
    warn_free_inodes: Free = "20000"
    refuse_free_inodes: Free = "2000"

    @property
    def marks(self) -> Marks:
        """The same as numbers."""
        return Marks(
            warn=Least.parse(self.warn_free),
            refuse=Least.parse(self.refuse_free),
            warn_inodes=Least.parse(self.warn_free_inodes),
            refuse_inodes=Least.parse(self.refuse_free_inodes),
        )


class DimseDestination(Section):
    """A PACS that takes documents by C-STORE: one of the peers, by its name."""

    kind: Literal["dimse"]
    peer: str
    #: Whether a document counts as delivered only once the PACS has committed to keeping it.
    commit: bool = False
    #: How long its report may take before it is asked again.
    commit_seconds: Seconds = 600


class StowDestination(Section):
    """A PACS that takes documents by STOW-RS; ``url`` is its DICOMweb root."""

    kind: Literal["stow"]
    url: Annotated[str, Field(pattern=r"^https?://"), AfterValidator(_is_url)]
    token: Token | None = None
    timeout_seconds: Seconds = 30


class FolderDestination(Section):
    """A folder that takes documents as files."""

    kind: Literal["folder"]
    path: Path


Destination = Annotated[DimseDestination | StowDestination | FolderDestination, Field(discriminator="kind")]


class HL7Notifier(Section):
    """A receiver of ORU^R01 over MLLP."""

    kind: Literal["hl7"]
    host: Host
    port: Port
    sending_application: str = "OVERREAD"
    sending_facility: str = ""
    receiving_application: str = ""
    receiving_facility: str = ""
    #: OBR-25 and OBX-11 of results: R, entered and not verified, unless the receiver wants otherwise.
    result_status: Literal["R", "P", "F"] = "R"
    timeout_seconds: Seconds = 30


class Route(Section):
    """A rule: which studies go to which models, and where the results go."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    match: Mapping[str, Any]
    models: Annotated[tuple[str, ...], Field(min_length=1)]
    deliver: tuple[str, ...] = ()
    notify: tuple[str, ...] = ()
    #: Where set, it stands over what the card says.
    select: Literal["best", "each"] | None = None
    #: How urgent its work is; it stands over what the images say was requested.
    priority: Literal["high", "medium", "low"] | None = None
    #: The quiet period of studies that it matches; it stands over that of the peer.
    quiet_seconds: Seconds | None = None
    #: Series that a study which it matches should have before it is judged, each a condition like ``match``.
    expect: tuple[Mapping[str, Any], ...] = ()
    expect_seconds: Seconds = 600

    @field_validator("match")
    @classmethod
    def _checked(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        check_condition(value, "match")
        return value

    @field_validator("expect")
    @classmethod
    def _each_checked(cls, value: tuple[Mapping[str, Any], ...]) -> tuple[Mapping[str, Any], ...]:
        for number, one in enumerate(value):
            check_condition(one, f"expect[{number}]")
        return value


class Settings(BaseSettings):
    """All of ``conf/node.yaml`` and of the environment, as :mod:`node.sources` has laid one over the other."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take the laid-over values alone: the library's own environment source passes over unknown variables."""
        return (init_settings,)

    @model_validator(mode="before")
    @classmethod
    def _lend_tls(cls, values: Any) -> Any:
        return _lent(values) if isinstance(values, dict) else values

    data_dir: Path = Path("var")
    dimse: DimseSettings = DimseSettings()
    http: HttpSettings = HttpSettings()
    completion: CompletionSettings = CompletionSettings()
    retry: RetrySettings = RetrySettings()
    perform: PerformSettings = PerformSettings()
    drift: DriftSettings = DriftSettings()
    database: DatabaseSettings = DatabaseSettings()
    storage: StorageSettings = StorageSettings()
    peers: dict[str, Peer] = {}
    destinations: dict[str, Destination] = {}
    notifiers: dict[str, HL7Notifier] = {}
    models: Path = Path("conf/models")
    demonstration_models: bool = False
    routes: tuple[Route, ...] | Path = Path("conf/routes.yaml")
    #: Listening beyond loopback without an allow-list and a token is refused, unless it is asked for by this name.
    allow_open_network: bool = False

    @property
    def database_url(self) -> str:
        """SQLAlchemy's URL of the database."""
        return self.database.url or f"sqlite:///{self.data_dir.absolute() / 'overread.sqlite'}"

    @property
    def route_list(self) -> tuple[Route, ...]:
        """The routes, once loaded."""
        assert not isinstance(self.routes, Path)
        return self.routes

    @model_validator(mode="after")
    def _names_resolve(self) -> Settings:
        if isinstance(self.routes, Path):
            return self
        seen: set[str] = set()
        wrong = []
        for route in self.routes:
            if route.name in seen:
                wrong.append(f"routes: two routes are named {route.name!r}")
            seen.add(route.name)
            for kind, names, known in (
                ("deliver", route.deliver, self.destinations),
                ("notify", route.notify, self.notifiers),
            ):
                for name in names:
                    if name not in known:
                        there = ", ".join(sorted(known)) or "none"
                        wrong.append(f"routes.{route.name}.{kind}: no {name!r} is configured (there is: {there})")
        return self._unless(wrong)

    def _unless(self, wrong: Sequence[str]) -> Settings:
        """Raise all that is wrong among several keys, a line for each: a validator can raise but once."""
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    @model_validator(mode="after")
    def _peers_resolve(self) -> Settings:
        by_title: dict[str, str] = {}
        wrong = []
        for name, peer in self.peers.items():
            other = by_title.setdefault(peer.ae_title.strip(), name)
            if other != name:
                wrong.append(f"peers.{name}.ae_title: peer {other!r} has the same; one entry an AE title")
        there = ", ".join(sorted(self.peers)) or "none"
        for name, destination in self.destinations.items():
            if not isinstance(destination, DimseDestination):
                continue
            if destination.peer not in self.peers:
                wrong.append(
                    f"destinations.{name}.peer: no peer {destination.peer!r} is configured (there is: {there})"
                )
                continue
            if self.peers[destination.peer].address is None:
                wrong.append(f"destinations.{name}.peer: peer {destination.peer!r} has no host and port to call")
            if destination.commit and Service.COMMIT not in self.peers[destination.peer].services:
                wrong.append(
                    f"destinations.{name}.commit: the PACS reports over associations of its own; "
                    f"add commit to peers.{destination.peer}.services"
                )
        for name, peer in self.peers.items():
            if peer.count and peer.address is None:
                wrong.append(f"peers.{name}.count: it has no host and port to be asked at")
        return self._unless(wrong)

    @model_validator(mode="after")
    def _not_open_by_accident(self) -> Settings:
        if self.allow_open_network:
            return self
        open_to = next((one for one in self.dimse.addresses if not is_loopback(one)), None)
        if open_to is not None and (self.dimse.strangers or not self.peers):
            raise ValueError(
                f"dimse.bind: {open_to} is reachable from outside; list who may call under peers and leave "
                "dimse.strangers away, or set allow_open_network: true"
            )
        if not is_loopback(self.http.bind) and self.http.token is None:
            raise ValueError(
                f"http.bind: {self.http.bind} is reachable from outside; set a token in OVERREAD__HTTP__TOKEN, "
                "or set allow_open_network: true"
            )
        return self


def _lent(values: dict[str, Any]) -> dict[str, Any]:
    """Give peers that are called over TLS what they do not name themselves of what ``dimse.tls`` names."""
    dimse, peers = values.get("dimse"), values.get("peers")
    if not isinstance(peers, dict):
        return values
    own = dimse.get("tls") if isinstance(dimse, dict) else None
    own = own if isinstance(own, dict) else {}
    lent = dict(peers)
    for name, peer in peers.items():
        tls = peer.get("tls") if isinstance(peer, dict) else None
        if tls is True or tls == "true":
            tls = {}
        if isinstance(tls, dict):
            shown = () if {"certificate", "key"} & tls.keys() else ("certificate", "key", "key_passcode")
            given = {key: own[key] for key in ("authorities", "profile", *shown) if key in own}
            lent[name] = {**peer, "tls": given | tls}
    return {**values, "peers": lent}


def load_settings(path: Path) -> Settings:
    """Read and check a configuration; paths in it are relative to the folder that ``overread`` is run in.

    Raises
    ------
    ConfigurationError
        With one line for each complaint: file, key, what was expected.
    """
    values = read_values(path, os.environ)
    settings = _validated(values, values.merged)
    if isinstance(settings.routes, Path):
        # Read here and not by a validator: a complaint about a route has to name the routes' own file.
        routes = read_yaml(
            settings.routes,
            named_by=f"{path}: routes names it, and paths start at the folder that overread is run in ({Path.cwd()})",
        )
        if not isinstance(routes, list):
            found = "nothing" if routes is None else type(routes).__name__
            raise ConfigurationError(f"{settings.routes}: expected a list of routes ([] for none), found {found}")
        settings = _validated(values, {**values.merged, "routes": routes}, routes_file=settings.routes)
    return settings


def _validated(values: Values, merged: dict[str, Any], *, routes_file: Path | None = None) -> Settings:
    for key in merged:
        if not isinstance(key, str):
            raise ConfigurationError(f"{values.file}: {key}: Keys should be strings")
    try:
        return Settings(**merged)
    except ValidationError as error:
        lines = []
        for one in error.errors(include_url=False, include_context=False, include_input=False):
            place = [str(part) for part in one["loc"]]
            expected = _EXPECTED.get(one["type"]) or one["msg"].removeprefix("Value error, ")
            if place[:1] == ["routes"] and len(place) > 1:
                # A list or a path: pydantic complains once for each, under its name for it.
                if not isinstance(merged["routes"], list):
                    place, expected = ["routes"], "expected a list of routes, or the path of a file that holds it"
                elif not place[1].startswith("tuple"):
                    continue
                else:
                    del place[1]
            for complaint in expected.splitlines():
                # What concerns several keys begins with the one to change.
                named = place or re.split(r"[. ]", complaint.partition(": ")[0])
                kindless = named[:2] + named[3:] if place[:1] == ["destinations"] else named
                by_file = routes_file is not None and named[0] == "routes"
                where = str(routes_file) if by_file else values.source_of(kindless)
                lines.append(f"{where}: {'.'.join(place) + ': ' if place else ''}{complaint}")
        raise ConfigurationError("\n".join(dict.fromkeys(lines))) from None
